package call

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// TestGoneBeforeItBegan checks that a call whose caller has left does not begin.
func TestGoneBeforeItBegan(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := limit(time.Minute, context.Background())(ctx, nil, nil, func(context.Context, any) (any, error) {
		t.Error("the call began")
		return nil, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestFault94 checks that a call that the service cuts off says so, unless it is a delete that may have been done, and that no other
// failure does.
func TestFault94(t *testing.T) {
	forbidden := &apierror.Error{Reason: apierror.AtlasForbidden}
	for name, tc := range map[string]struct {
		cut, left bool // the service ends; the caller has gone
		err       error
		want      apierror.Reason
		unknown   bool // whether a delete was done
	}{
		"a create":                      {true, false, context.Canceled, apierror.ShuttingDown, false},
		"a delete that was sent":        {true, false, &apierror.Error{Reason: apierror.Cancelled, OutcomeUnknown: true}, apierror.DeleteOutcomeUnknown, true},
		"refused by Atlas meanwhile":    {true, false, forbidden, apierror.AtlasForbidden, false},
		"the caller left meanwhile":     {true, true, context.Canceled, apierror.Cancelled, false},
		"the caller left":               {false, true, context.Canceled, apierror.Cancelled, false},
		"cancelled for no known reason": {false, false, context.Canceled, apierror.Cancelled, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			cut, end := context.WithCancel(t.Context())
			defer end()
			_, err := limit(time.Minute, cut)(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
				if tc.left {
					leave()
				}
				if tc.cut {
					end()
				}
				if tc.left || tc.cut {
					<-ctx.Done()
				}
				return nil, tc.err
			})
			e := apierror.From(err)
			if e.Reason != tc.want || e.OutcomeUnknown != tc.unknown || errors.Is(e.Cause, errShuttingDown) != (tc.want == apierror.ShuttingDown || tc.unknown) {
				t.Errorf("got %v (%v), want %v; whether it was done is unknown: %t", e.Reason, e.Cause, tc.want, e.OutcomeUnknown)
			}
		})
	}
	_, err := limit(time.Minute, canceled(t))(t.Context(), nil, nil, ok)
	if err != nil {
		t.Errorf("a call that was answered: %v", err)
	}
}

// TestFault98 checks that a call that the server evicts, by the cause of its context's end, is not CANCELLED.
func TestFault98(t *testing.T) {
	t.Parallel()
	ctx, evict := context.WithCancelCause(t.Context())
	defer evict(nil)
	_, err := limit(time.Minute, context.Background())(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
		evict(&apierror.Error{Reason: apierror.Overloaded})
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if e := apierror.From(err); e.Reason != apierror.Overloaded || e.RetryDelay() == 0 {
		t.Errorf("got %s, retry after %v, want OVERLOADED with a delay", e.ReasonName(), e.RetryDelay())
	}
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
