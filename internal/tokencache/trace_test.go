package tokencache

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// waiterContext is the context of the nth waiter.
func waiterContext(ctx context.Context, n int, sampled bool) context.Context {
	return trace.ContextWithSpanContext(ctx, trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: trace.TraceID{15: byte(n)}, SpanID: trace.SpanID{6: byte(n >> 8), 7: byte(n)}, TraceFlags: trace.TraceFlags(0).WithSampled(sampled),
	}))
}

// TestCallTrace uses the first sampled waiter as the parent of a shared call, or the first waiter.
// It links to the other sampled waiters, up to a limit.
func TestCallTrace(t *testing.T) {
	for name, test := range map[string]struct {
		waiters       []int // negative: not sampled
		parent, links int
	}{
		"one":                {[]int{1}, 1, 0},
		"three":              {[]int{1, 2, 3}, 1, 2},
		"none sampled":       {[]int{-1, -2}, 0, 0}, // so there is no span either
		"the second sampled": {[]int{-1, 2, -3, 4}, 2, 1},
		"not traced":         {[]int{0}, 0, 0}, // a root
	} {
		t.Run(name, func(t *testing.T) {
			recorder := tracetest.NewSpanRecorder()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
			var traced callTrace
			for _, n := range test.waiters {
				ctx := t.Context()
				if n != 0 {
					ctx = waiterContext(ctx, max(n, -n), n > 0)
				}
				traced.joined(ctx)
			}
			traced.begin(t.Context(), provider.Tracer(""), len(test.waiters))
			traced.end(Result{}, nil)
			ended := recorder.Ended()
			if name == "none sampled" {
				if len(ended) > 0 {
					t.Errorf("%d spans", len(ended))
				}
				return
			}
			if parent := int(ended[0].Parent().SpanID()[7]); parent != test.parent {
				t.Errorf("the parent is waiter %d, want %d", parent, test.parent)
			}
			if got := len(ended[0].Links()); got != test.links {
				t.Errorf("%d links, want %d", got, test.links)
			}
		})
	}
}

func TestCallTraceOfCrowd(t *testing.T) {
	var traced callTrace
	for n := range 1000 {
		traced.joined(waiterContext(t.Context(), n+1, true))
	}
	if len(traced.waiters) != 1+maxLinks {
		t.Errorf("%d of 1000 waiters are kept", len(traced.waiters))
	}
}

// TestOverlappingCallsAreTraced gives each overlapping call its own span, with its own waiters.
func TestOverlappingCallsAreTraced(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	synctest.Test(t, func(t *testing.T) {
		tg := newOverlapGroup(t)
		tg.tracer = provider.Tracer("")
		var callers sync.WaitGroup
		arrive := func(n int) {
			callers.Go(func() { _, _ = tg.join(waiterContext(context.Background(), n, true), key{1}, false, tg.call) })
			synctest.Wait()
		}
		arrive(1)
		arrive(2)
		arrive(3)
		after(8 * ms)
		synctest.Wait() // the call of 2 and 3 has left
		arrive(4)
		arrive(5)
		arrive(6)
		after(8 * ms)
		synctest.Wait() // and so has that of the others
		for range 3 {
			tg.end <- ending{token: "token"}
		}
		callers.Wait()
	})
	got := map[int]int{}
	for _, span := range recorder.Ended() {
		got[int(span.Parent().SpanID()[7])] = len(span.Links())
	}
	if diff := cmp.Diff(map[int]int{1: 0, 2: 1, 4: 2}, got); diff != "" {
		t.Errorf("links by the call's first waiter (-want +got):\n%s", diff)
	}
}

// TestWaitersLinkToTheirCall finds the call from the trace of any waiter: the first is its parent,
// the others link to it.
func TestWaitersLinkToTheirCall(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)).Tracer("")
	synctest.Test(t, func(t *testing.T) {
		tg := newTestGroup(t, time.Minute)
		tg.tracer = tracer
		inFlight := tg.arrive(1, tg.call)
		var callers sync.WaitGroup
		for _, name := range []string{"first", "second", "third"} {
			callers.Go(func() {
				ctx, span := tracer.Start(context.Background(), name)
				defer span.End()
				_, _ = tg.join(ctx, key{1}, false, tg.call)
			})
			synctest.Wait()
		}
		tg.end <- ending{token: "one"}
		inFlight.want(t, "one", nil)
		tg.end <- ending{token: "two"}
		callers.Wait()
	})
	spans := map[string]sdktrace.ReadOnlySpan{}
	for _, span := range recorder.Ended() {
		name := span.Name()
		if span.Parent().IsValid() {
			name = "the call below the first"
		}
		spans[name] = span
	}
	call := spans["the call below the first"].SpanContext()
	for name, want := range map[string]int{"first": 0, "second": 1, "third": 1} {
		links := spans[name].Links()
		if len(links) != want || want > 0 && !links[0].SpanContext.Equal(call) {
			t.Errorf("the %s waiter has %d links, want %d to the call", name, len(links), want)
		}
	}
}
