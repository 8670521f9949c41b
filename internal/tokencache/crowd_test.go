//go:build !race

package tokencache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The race detector fails on this many timers in a bubble (CHECK failed: tsan_rtl.cpp). Other tests
// cover the same code under it.

// crowd is a number of callers with one credential, each of which calls again a turnaround after it
// was answered.
type crowd struct {
	callers    int
	turnaround time.Duration // 0 to twice that, at random
}

// crowdOutcome is the latency that they see and the calls that they cost.
type crowdOutcome struct {
	median, p99 time.Duration
	perAnswer   float64 // calls to Atlas for each answer
	perSecond   float64 // calls to Atlas
	most        int64   // calls to Atlas at a time
}

// call has the crowd call for d, of which the first tenth does not count.
func (w crowd) call(tb testing.TB, c *Cache, s *slowAtlas, d time.Duration) crowdOutcome {
	tb.Helper()
	var (
		all     sync.WaitGroup
		took    = make([][]time.Duration, w.callers)
		cred    = own(newJWT(orgA, "u", time.Time{}))
		begin   = time.Now().Add(d / 10)
		end     = begin.Add(d - d/10)
		answers int
	)
	for i := range w.callers {
		all.Go(func() {
			for time.Now().Before(end) {
				came := time.Now()
				if _, err := c.Create(context.Background(), cred, false); err != nil {
					tb.Error(err)
					return
				}
				if now := time.Now(); now.After(begin) && !now.After(end) {
					took[i] = append(took[i], now.Sub(came))
				}
				<-time.After(time.Duration(rand.Float64() * 2 * float64(w.turnaround)))
			}
		})
	}
	<-time.After(time.Until(begin))
	s.reset()
	<-time.After(time.Until(end))
	calls, most := float64(s.creates.Load()), s.most.Load()
	all.Wait()
	sorted := slices.Concat(took...)
	slices.Sort(sorted)
	if answers = len(sorted); answers == 0 {
		tb.Fatal("no caller was answered")
	}
	return crowdOutcome{
		sorted[answers/2], sorted[answers*99/100], calls / float64(answers), calls / end.Sub(begin).Seconds(), most,
	}
}

// inBubble is the outcome in virtual time.
func (w crowd) inBubble(t *testing.T, jitter float64) (o crowdOutcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &slowAtlas{latency: 20 * ms, jitter: jitter}
		c, err := New(s, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		o = w.call(t, c, s, 5*time.Second)
	})
	return o
}

func TestCrowdWaitsForLittleMoreThanOneCall(t *testing.T) {
	for _, callers := range []int{1, 2, 4, 16, 64, 256} {
		for _, turnaround := range []time.Duration{0, ms / 2, 20 * ms, 100 * ms} {
			for _, jitter := range []float64{0, .3} {
				t.Run(fmt.Sprintf("%d callers, %v, %v", callers, turnaround, jitter), func(t *testing.T) {
					o := crowd{callers, turnaround}.inBubble(t, jitter)
					t.Logf("%+v", o)
					if o.median > 26*ms {
						t.Errorf("the median is %v, want 1.3 times Atlas's 20 ms at most", o.median)
					}
					if o.perAnswer > 1.05 || o.most > maxInFlight {
						t.Errorf("%.3f calls an answer, %d at a time", o.perAnswer, o.most)
					}
				})
			}
		}
	}
}

// BenchmarkCrowd is TestCrowdWaitsForLittleMoreThanOneCall in real time: 64 callers of one
// credential.
func BenchmarkCrowd(b *testing.B) {
	s := &slowAtlas{latency: 20 * ms}
	c, err := New(s, Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	var o crowdOutcome
	for b.Loop() {
		o = crowd{callers: 64}.call(b, c, s, 3*time.Second)
	}
	b.ReportMetric(o.median.Seconds()*1000, "p50-ms")
	b.ReportMetric(o.p99.Seconds()*1000, "p99-ms")
	b.ReportMetric(o.perSecond, "atlas-calls/s")
	b.ReportMetric(float64(o.most), "atlas-calls-at-a-time")
	b.ReportMetric(0, "ns/op")
}
