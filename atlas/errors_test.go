package atlas

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestClassify has the errors that the servers of the other tests cannot cause.
func TestClassify(t *testing.T) {
	dialTimeout := &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	for _, tc := range []struct {
		err  error
		kind Kind
		text string
	}{
		{errors.New("tls: server selected unsupported protocol version 301"), KindTLS, "tls: server selected unsupported protocol version 301"},
		{
			&net.OpError{Op: "proxyconnect", Net: "tcp", Err: errors.New("tls: internal error")},
			KindTLS, "tls: internal error",
		},
		{&net.OpError{Op: "proxyconnect", Net: "tcp", Err: dialTimeout}, KindUnreachable, "dial tcp: i/o timeout"},
		{
			fmt.Errorf("planted: %w", &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}),
			KindUnreachable, "write tcp: write: broken pipe",
		},
		{fmt.Errorf("planted: %w", io.EOF), KindUnreachable, errCutShort.Error()},
		{fmt.Errorf("planted: %w", context.DeadlineExceeded), KindUnreachable, "the answer was not valid HTTP, or the connection failed (*fmt.wrapError)"},
		{errors.New("http: server closed idle connection"), KindUnreachable, "http: server closed idle connection"},
		{streamError{Code: 2, Cause: errors.New(fromPeer)}, KindUnreachable, "the HTTP/2 stream was reset with code 2"},
		{streamError{Code: 2}, KindUnreachable, "the HTTP/2 stream was reset with code 2"},
		{streamError{Code: 1, Cause: errors.New("planted")}, KindUnreachable, ErrProtocol.Error()},
		{errors.New("planted"), KindUnreachable, "the answer was not valid HTTP, or the connection failed (*errors.errorString)"},
	} {
		kind, cause := classify(tc.err)
		if kind != tc.kind || cause.Error() != tc.text {
			t.Errorf("%v: got %v, %q, want %v, %q", tc.err, kind, cause, tc.kind, tc.text)
		}
		outcomeOf(t, OpCreate, &Error{Op: OpCreate, Kind: kind, Err: cause})
	}
}
