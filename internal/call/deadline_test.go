package call

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// TestCancelledBeforeStart checks that a cancelled call does not start.
func TestCancelledBeforeStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := limit(ctx, time.Minute, context.Background())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestFault94 checks the reason of a call that the service cuts off: SHUTTING_DOWN, or
// DELETE_OUTCOME_UNKNOWN for a delete that was sent.
func TestFault94(t *testing.T) {
	forbidden := &apierror.Error{Reason: apierror.AtlasForbidden}
	for name, tc := range map[string]struct {
		cut, left bool // by the service; by the caller
		err       error
		want      apierror.Reason
		unknown   bool // the outcome of a delete
	}{
		"a create":                   {true, false, context.Canceled, apierror.ShuttingDown, false},
		"a delete that was sent":     {true, false, &apierror.Error{Reason: apierror.Cancelled, OutcomeUnknown: true}, apierror.DeleteOutcomeUnknown, true},
		"refused by Atlas":           {true, false, forbidden, apierror.AtlasForbidden, false},
		"after the caller cancelled": {true, true, context.Canceled, apierror.Cancelled, false},
		"the caller cancelled":       {false, true, context.Canceled, apierror.Cancelled, false},
		"cancelled without a cause":  {false, false, context.Canceled, apierror.Cancelled, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			cut, end := context.WithCancel(t.Context())
			defer end()
			limited, err := limit(ctx, time.Minute, cut)
			if err != nil {
				t.Fatal(err)
			}
			if tc.left {
				leave()
			}
			if tc.cut {
				end()
			}
			if tc.left || tc.cut {
				<-limited.Done()
			}
			e := apierror.From(limited.explain(tc.err))
			if e.Reason != tc.want || e.OutcomeUnknown != tc.unknown || errors.Is(e.Cause, errShuttingDown) != (tc.want == apierror.ShuttingDown || tc.unknown) {
				t.Errorf("got %v (%v), want %v; outcome unknown: %t", e.Reason, e.Cause, tc.want, e.OutcomeUnknown)
			}
		})
	}
	cut, end := context.WithCancel(t.Context())
	end()
	limited, err := limit(t.Context(), time.Minute, cut)
	if err != nil {
		t.Fatal(err)
	}
	if err := limited.explain(nil); err != nil {
		t.Errorf("a successful call: %v", err)
	}
}

// TestDeadlined compares with context.WithDeadline, with Done called before and after the end.
func TestDeadlined(t *testing.T) {
	type key struct{}
	for name, end := range map[string]func(cancelParent, stop func()){
		"the deadline":             func(func(), func()) { <-time.After(time.Minute) },
		"the parent ends":          func(cancelParent, _ func()) { cancelParent() },
		"stop":                     func(_, stop func()) { stop() },
		"none":                     func(func(), func()) {},
		"just before the deadline": func(func(), func()) { <-time.After(time.Minute - 1) },
	} {
		for _, early := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cause := errors.New("the parent's cause")
					parent, cancelParent := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
					defer cancelParent(nil)
					deadline := time.Now().Add(time.Minute)
					got := &deadlined{Context: parent, deadline: deadline, cut: context.Background()}
					defer got.stop()
					want, stopWant := context.WithDeadline(parent, deadline)
					defer stopWant()
					if early {
						got.Done()
					}
					end(func() { cancelParent(cause) }, func() { got.stop(); stopWant() })
					synctest.Wait()
					compare := func(got, want context.Context) {
						t.Helper()
						if got.Err() != want.Err() { //nolint:errorlint // the same
							t.Errorf("Err is %v, want %v", got.Err(), want.Err())
						}
						if d, ok := got.Deadline(); d != deadline || !ok {
							t.Errorf("Deadline is %v, %v", d, ok)
						}
						if got.Value(key{}) != "value" {
							t.Error("the parent's value is missing")
						}
						isDone := func(ctx context.Context) bool {
							select {
							case <-ctx.Done():
								return true
							default:
								return false
							}
						}
						if isDone(got) != isDone(want) {
							t.Errorf("Done is %v, want %v", isDone(got), isDone(want))
						}
						if got.Err() != want.Err() || context.Cause(got) != context.Cause(want) { //nolint:errorlint // the same
							t.Errorf("after Done: %v by %v, want %v by %v", got.Err(), context.Cause(got), want.Err(), context.Cause(want))
						}
					}
					compare(got, want)
					child, cancel := context.WithCancel(got)
					defer cancel()
					wantChild, cancelWant := context.WithCancel(want)
					defer cancelWant()
					compare(child, wantChild)
				})
			})
		}
	}
}

// TestDeadlinedEndsItsChildren checks that a derived context ends too.
func TestDeadlinedEndsItsChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := &deadlined{Context: t.Context(), deadline: time.Now().Add(time.Minute), cut: context.Background()}
		defer ctx.stop()
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		<-child.Done()
		if !errors.Is(child.Err(), context.DeadlineExceeded) || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("the child: %v, the parent: %v", child.Err(), ctx.Err())
		}
	})
}
