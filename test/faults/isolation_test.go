package faults

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestIsolation runs a tenant in trouble next to ten ordinary orgs over the whole service. No call
// of these may fail or wait.
func TestIsolation(t *testing.T) {
	t.Parallel()
	length := 1500 * time.Millisecond
	if testutil.Long() {
		length = 4 * time.Second
	}
	for name, tc := range map[string]struct {
		fault     emulator.Fault // of the tenant in trouble
		op        testutil.Operation
		perSecond int
		invented  bool // each call of the tenant in trouble has another JWT that Atlas does not know
	}{
		"fault 66, all calls fail":     {emulator.Fault{Status: 500}, testutil.Create, 50, false},
		"fault 66, connections reset":  {emulator.Fault{Drop: emulator.AbortStream}, testutil.Create, 50, false},
		"fault 67, calls take seconds": {emulator.Fault{Delay: 5 * time.Second}, testutil.Create, 200, false},
		"fault 67, calls hang":         {emulator.Fault{Delay: time.Hour}, testutil.Create, 200, false},
		"fault 68, deletes":            {emulator.Fault{Delay: 100 * time.Millisecond}, testutil.Delete, 2000, false},
		"fault 69, invented JWTs":      {emulator.Fault{}, testutil.Create, 2000, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				const others = 10
				em := v.StartAtlas(t, emulator.Config{Orgs: others + 1})
				s := v.StartWith(t, testutil.Plaintext, em)
				troubled := em.Org(others)
				tc.fault.Org = troubled.ID
				em.Inject(tc.fault)
				em.Inject(emulator.Fault{Delay: 20 * time.Millisecond})
				callers := s.Callers(t)
				var own []testutil.Caller // a connection has 100 streams
				for range 8 {
					own = append(own, s.GRPCCaller(t))
				}
				var jwts []string
				for i := range others { // until Atlas has accepted them, all JWTs are one tenant
					jwts = append(jwts, "JWT "+em.Org(i).JWT())
					testutil.WantCreated.Check(t, callers["gRPC"].Call(testutil.Context(t), testutil.Create, "authorization", jwts[i]))
				}
				jwt := troubled.JWT()

				ctx, cancel := context.WithTimeout(t.Context(), length)
				defer cancel()
				var calls sync.WaitGroup
				var troubles, failed atomic.Int64
				calls.Go(func() {
					everySecond(ctx, tc.perSecond, func(i int) {
						calls.Go(func() {
							jwt := jwt
							if tc.invented {
								jwt = fmt.Sprintf("%s.%d.c2lnbmF0dXJl", jwt[:strings.IndexByte(jwt, '.')], 1_000_000+i)
							}
							callCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
							defer cancel()
							troubles.Add(1)
							own[i%len(own)].Call(callCtx, tc.op, "authorization", "JWT "+jwt)
						})
					})
				})
				for i := range others {
					caller := callers[[]string{"gRPC", "REST"}[i%2]]
					calls.Go(func() {
						everySecond(ctx, 5, func(int) {
							began := time.Now()
							got := caller.Call(t.Context(), testutil.Create, "authorization", jwts[i])
							if got.Code != codes.OK && failed.Add(1) == 1 {
								t.Errorf("a call of another org failed: %v %s %s", got.Code, got.Reason, got.Message)
							}
							if took := time.Since(began); took > 150*time.Millisecond {
								t.Errorf("a call of another org took %v", took)
							}
						})
					})
				}
				calls.Wait()
				if n := failed.Load(); n > 1 {
					t.Errorf("%d calls of other orgs failed", n)
				}
				if n := float64(troubles.Load()); n < .75*length.Seconds()*float64(tc.perSecond) {
					t.Errorf("only %v calls of the tenant in trouble", n)
				}
			})
		})
	}
}

// everySecond calls f n times a second until ctx is done.
func everySecond(ctx context.Context, n int, f func(i int)) {
	tick := time.NewTicker(time.Second / time.Duration(n))
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
			f(i)
		case <-ctx.Done():
			return
		}
	}
}
