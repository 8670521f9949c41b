package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// TestSentDelete: whatever went wrong after a delete was sent, it is not answered as if it had not been, and nobody is
// invited to repeat it. What Atlas refused it did not do, and what was not sent may be repeated.
func TestSentDelete(t *testing.T) {
	for _, kind := range []atlas.Kind{atlas.KindUnreachable, atlas.KindTLS, atlas.KindTimeout, atlas.KindCanceled, atlas.KindInvalidResponse} {
		err := &atlas.Error{Op: atlas.OpDelete, Kind: kind, Sent: true, RetryAfter: time.Second, Err: context.Canceled}
		if e := toCallError(err); !e.outcomeUnknown || e.retryDelay() != 0 {
			t.Errorf("%v: %v, outcome unknown %v, retry after %v", kind, e, e.outcomeUnknown, e.retryDelay())
		}
		err.Sent = false
		if e := toCallError(err); e.outcomeUnknown {
			t.Errorf("%v: a delete that was not sent has an unknown outcome", kind)
		}
		err.Op, err.Sent = atlas.OpCreate, true
		if e := toCallError(err); e.outcomeUnknown || e.reason == reasonDeleteUnknown {
			t.Errorf("%v: a create is answered like a delete", kind)
		}
	}
	for status, unknown := range map[int]bool{401: false, 403: false, 404: false, 409: false, 429: false, 408: true, 500: true, 503: true} {
		e := toCallError(&atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindStatus, StatusCode: status, Sent: true, Err: errors.New("x")})
		if e.outcomeUnknown != unknown {
			t.Errorf("status %d: outcome unknown %v, want %v", status, e.outcomeUnknown, unknown)
		}
	}
}

func TestUnknownErrorIsInternal(t *testing.T) {
	if e := toCallError(errors.New("planted")); e.reason != reasonInternal || e.GRPCStatus().Code() != codes.Internal || e.Error() != "INTERNAL" {
		t.Errorf("got %v", e)
	}
}

func FuzzGRPCTimeout(f *testing.F) {
	for _, seed := range []string{"1S", "0n", "99999999H", "-1S", "", "1", "12345678m"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d, ok := grpcTimeout([]string{value}); d < 0 || !ok && d != noTimeout {
			t.Errorf("%q: %v, %v", value, d, ok)
		}
	})
}
