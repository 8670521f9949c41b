package call

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"google.golang.org/grpc"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// panicError is a recovered panic. A panic value may hold anything, a credential too, so unless the runtime made it
// only its type is told. The stack names functions and prints addresses, no strings.
type panicError struct {
	value any
	stack string
}

func (e *panicError) Error() string {
	if err, ok := e.value.(runtime.Error); ok {
		return "panic: " + err.Error()
	}
	return fmt.Sprintf("panic: a value of type %T", e.value)
}

// Recover turns a panic into an internal error of this one call.
func Recover(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, Panicked(v)
		}
	}()
	return handler(ctx, req)
}

// Panicked is how a call fails whose panic was just recovered.
func Panicked(value any) *apierror.Error {
	return &apierror.Error{Reason: apierror.Internal, Cause: &panicError{value, string(debug.Stack())}}
}
