package call

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// TestGoneBeforeItBegan: a call whose caller has left takes no place and asks nothing.
func TestGoneBeforeItBegan(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := limit(1, time.Minute, context.Background(), func(string) {})(ctx, nil, nil, func(context.Context, any) (any, error) {
		t.Error("the call began")
		return nil, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestCutOff: who is cut off by the service's end may try elsewhere, unless his delete may have been done. Nothing else that goes wrong
// is taken for that.
func TestCutOff(t *testing.T) {
	forbidden := &apierror.Error{Reason: apierror.AtlasForbidden}
	for name, tc := range map[string]struct {
		cut, left bool // the service ends; the caller has gone
		err       error
		want      apierror.Reason
		unknown   bool // whether a delete was done
	}{
		"a create":                       {true, false, context.Canceled, apierror.AtlasTimeout, false},
		"a delete that was sent":         {true, false, &apierror.Error{Reason: apierror.Cancelled, OutcomeUnknown: true}, apierror.DeleteOutcomeUnknown, true},
		"refused by Atlas meanwhile":     {true, false, forbidden, apierror.AtlasForbidden, false},
		"the caller left meanwhile":      {true, true, context.Canceled, apierror.Cancelled, false},
		"the caller left":                {false, true, context.Canceled, apierror.Cancelled, false},
		"cancelled, and nobody says why": {false, false, context.Canceled, apierror.Cancelled, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			cut, end := context.WithCancel(t.Context())
			defer end()
			_, err := limit(1, time.Minute, cut, func(string) {})(ctx, nil, nil, func(ctx context.Context, _ any) (any, error) {
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
			if e.Reason != tc.want || e.OutcomeUnknown != tc.unknown || errors.Is(err, errCutOff) != (tc.want == apierror.AtlasTimeout || tc.unknown) {
				t.Errorf("got %v (%v), want %v; whether it was done is unknown: %t", e.Reason, e.Cause, tc.want, e.OutcomeUnknown)
			}
		})
	}
	_, err := limit(1, time.Minute, canceled(t), func(string) {})(t.Context(), nil, nil, ok)
	if err != nil {
		t.Errorf("a call that was answered: %v", err)
	}
}

func canceled(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
