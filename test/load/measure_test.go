package load

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestMeasureFloods prints how long the calls of a caller at ten a second take, on each transport, alone and beside floods. Those share
// the machine with the service, which alone makes others wait: what the floods cost beyond that shows beside the same at another server.
func TestMeasureFloods(t *testing.T) {
	if !*measure {
		t.Skip("only with -measure")
	}
	// As tokend has it while its heap is small. With Go's default, collecting what the callers leave behind is what takes longest here.
	before := debug.SetGCPercent(800)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	const seconds = 12
	for _, callerRate := range []int{0, 2000} {
		settings := func(c *server.Config, _ *atlas.Config) {
			c.CallerRate, c.Cache.TTL = callerRate, time.Minute
			c.Logger = nil // or this process would be busy with collecting it
		}
		s, another := testutil.Start(t, testutil.Plaintext, settings), testutil.Start(t, testutil.Plaintext, settings)
		run := func(name string, flood func(ctx context.Context) string) {
			ctx, cancel := context.WithTimeout(t.Context(), seconds*time.Second)
			defer cancel()
			var said string
			var wg sync.WaitGroup
			wg.Go(func() { said = flood(ctx) })
			good := testutil.Credential(s.Atlas)
			for transport, c := range s.Callers(t) {
				wg.Go(func() {
					var took []time.Duration
					for ctx.Err() == nil {
						next, start := time.After(100*time.Millisecond), time.Now()
						got := c.Call(testutil.Context(t), testutil.Create, good...)
						took = append(took, time.Since(start))
						if got.Token == "" {
							t.Errorf("%s: %v %s %s", transport, got.Code, got.Reason, got.Message)
						}
						<-next
					}
					slices.Sort(took)
					at := func(p float64) time.Duration { return took[int(p*float64(len(took)-1))].Round(10 * time.Microsecond) }
					t.Logf("--caller-rate %d, %s, %s: p50 %v, p99 %v, max %v", callerRate, name, transport, at(.5), at(.99), at(1))
				})
			}
			wg.Wait()
			t.Logf("--caller-rate %d, %s: %s", callerRate, name, said)
		}
		run("alone", func(ctx context.Context) string { <-ctx.Done(); return "" })
		run("rapid reset", func(ctx context.Context) string { return rapidReset(ctx, t, s) })
		run("rapid reset at another server", func(ctx context.Context) string { return rapidReset(ctx, t, another) })
		run("one caller at 10,000 a second", func(ctx context.Context) string { return floodCalls(ctx, t, s) })
		run("one caller at 10,000 a second at another server", func(ctx context.Context) string { return floodCalls(ctx, t, another) })
		_, _ = s.Stop(), another.Stop()
	}
}

// rapidReset opens and resets streams on one connection, as fast as it can, until ctx ends or it is cut off; then on another.
func rapidReset(ctx context.Context, t *testing.T, s *testutil.Service) string {
	resets, conns := 0, 0
	for ; ctx.Err() == nil; conns++ {
		h := s.RawHTTP2(t, testutil.GRPC, true)
		resets += h.Flood(1<<30, func(i int) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := h.Call(uint32(2*i+1), "a.flood.c"); err != nil {
				return err
			}
			return h.Framer.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel)
		})
		_ = h.Close()
	}
	return fmt.Sprintf("%d resets on %d connections", resets, conns)
}

// floodCalls makes 10,000 calls a second with one credential, which Atlas accepts, over gRPC.
func floodCalls(ctx context.Context, t *testing.T, s *testutil.Service) string {
	const workers, perSecond = 50, 10_000
	c, jwt := s.GRPCCaller(t), s.Atlas.Org(1).JWT() // each is another one
	var served, refused atomic.Int64
	var slowest atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				<-time.After(time.Until(start.Add(time.Duration(i) * time.Second * workers / perSecond)))
				began := time.Now()
				got := c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+jwt)
				switch {
				case got.Token != "":
					served.Add(1)
				case got.Reason == "OVERLOADED":
					refused.Add(1)
					if took := int64(time.Since(began)); took > slowest.Load() {
						slowest.Store(took)
					}
				}
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(start).Seconds()
	return fmt.Sprintf("%.0f a second served, %.0f refused, the slowest of those after %v", float64(served.Load())/elapsed, float64(refused.Load())/elapsed, time.Duration(slowest.Load()))
}
