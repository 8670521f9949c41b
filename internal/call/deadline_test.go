package call

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestDeadlined compares with context.WithDeadline, for each time at which Done may first be called.
func TestDeadlined(t *testing.T) {
	type key struct{}
	for name, end := range map[string]func(cancelParent, stop func()){
		"its time is up":    func(func(), func()) { <-time.After(time.Minute) },
		"the parent ends":   func(cancelParent, _ func()) { cancelParent() },
		"it is stopped":     func(_, stop func()) { stop() },
		"nothing has ended": func(func(), func()) {},
		"a moment before":   func(func(), func()) { <-time.After(time.Minute - 1) },
	} {
		for _, early := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cause := errors.New("the parent's cause")
					parent, cancelParent := context.WithCancelCause(context.WithValue(t.Context(), key{}, "value"))
					defer cancelParent(nil)
					deadline := time.Now().Add(time.Minute)
					got := withDeadline(parent, deadline, context.Background())
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
							t.Error("a value of the parent is not there")
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

// TestDeadlinedEndsItsChildren: without a goroutine for each, as those of package context.
func TestDeadlinedEndsItsChildren(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := withDeadline(t.Context(), time.Now().Add(time.Minute), context.Background())
		defer ctx.stop()
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		<-child.Done()
		if !errors.Is(child.Err(), context.DeadlineExceeded) || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("the child: %v, the parent: %v", child.Err(), ctx.Err())
		}
	})
}

// BenchmarkDeadline compares what a deadline costs that nobody waits for.
func BenchmarkDeadline(b *testing.B) {
	parent, cancel := context.WithCancel(b.Context())
	defer cancel()
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			withDeadline(parent, time.Now().Add(time.Minute), context.Background()).stop()
		}
	})
	b.Run("context", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, cancel := context.WithDeadline(parent, time.Now().Add(time.Minute))
			cancel()
		}
	})
}
