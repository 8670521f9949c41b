package load

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

var soak = flag.Duration("soak", 0, "how long TestSoak lasts; 0: it is skipped")

// soakWorkers call in a closed loop to find out what the machine does, and then half as often.
const soakWorkers = 64

// TestSoak: under half of the load that the machine can take, the service needs no more at the end
// than at the beginning.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("it takes minutes: give -soak")
	}
	if runtime.GOOS != "linux" {
		t.Skip("it reads /proc")
	}
	s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) {
		c.Logger, c.Cache = nil, tokencache.Config{TTL: 5 * time.Second, StaleIfError: 5 * time.Second}
	})
	l := newSoakLoad(t, s)
	most := l.measure(min(10*time.Second, *soak/6))
	t.Logf("%d workers get %.0f calls a second", soakWorkers, most)

	var samples []sample
	interval := min(10*time.Second, *soak/30)
	began := time.Now()
	stop := l.start(most / 2)
	for tick := time.NewTicker(interval); time.Since(began) < *soak; <-tick.C {
		samples = append(samples, takeSample(t))
	}
	stop()
	took := time.Since(began)
	t.Logf("%.0f calls a second for %v: %s", float64(l.calls.Load())/took.Seconds(), took.Round(time.Second), history.Tally(l.reasons))
	for i, about := range []string{"memory in KiB", "goroutines", "descriptors"} {
		var series []int
		for _, s := range samples {
			series = append(series, s[i])
		}
		t.Logf("%s, each %v: %v", about, interval, series)
		checkSteady(t, about, series)
	}
}

// sample is what the process has at one time: resident memory in KiB, goroutines, descriptors.
type sample [3]int

func takeSample(t *testing.T) sample {
	t.Helper()
	statm, err := os.ReadFile("/proc/self/statm") // see proc_pid_statm(5): the second number is of resident pages
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(string(bytes.Fields(statm)[1]))
	if err != nil {
		t.Fatal(err)
	}
	s := sample{pages * os.Getpagesize() / 1024, runtime.NumGoroutine(), testutil.Descriptors(t)}
	for range 10 { // what is there at all times: calls and connections come and go
		<-time.After(20 * time.Millisecond)
		s[1], s[2] = min(s[1], runtime.NumGoroutine()), min(s[2], testutil.Descriptors(t))
	}
	return s
}

// checkSteady compares the thirds of a series, without its first fifth.
func checkSteady(t *testing.T, about string, series []int) {
	t.Helper()
	series = series[len(series)/5:]
	third := len(series) / 3
	if third == 0 {
		t.Fatalf("%s: %d samples are too few", about, len(series))
	}
	first, last := median(series[:third]), median(series[len(series)-third:])
	t.Logf("%s: the median of the first third is %d, of the last %d", about, first, last)
	if last*5 > first*6 {
		t.Errorf("%s: the last third is more than a fifth above the first", about)
	}
}

func median(series []int) int { return slices.Sorted(slices.Values(series))[len(series)/2] }

// soakLoad is what the workers call.
type soakLoad struct {
	service *testutil.Service
	ways    []testutil.Caller // two for each transport
	jwts    []string
	calls   atomic.Int64

	mu      sync.Mutex
	reasons map[string]int // guarded by mu
}

func newSoakLoad(t *testing.T, s *testutil.Service) *soakLoad {
	t.Helper()
	l := &soakLoad{service: s, reasons: map[string]int{}}
	for range 2 {
		transport := &http.Transport{MaxIdleConnsPerHost: soakWorkers}
		t.Cleanup(transport.CloseIdleConnections)
		rest := testutil.RESTCaller{Base: "http://" + s.HTTPAddr().String(), Client: &http.Client{Transport: transport}}
		l.ways = append(l.ways, s.GRPCCaller(t), rest)
	}
	for range 200 {
		l.jwts = append(l.jwts, s.Atlas.Org(0).JWT(), s.Atlas.Org(1).JWT())
	}
	return l
}

// measure is how many calls a second there are if nobody waits.
func (l *soakLoad) measure(d time.Duration) float64 {
	began := time.Now()
	stop := l.start(0)
	<-time.After(d)
	stop()
	return float64(l.calls.Swap(0)) / time.Since(began).Seconds()
}

// start has the workers call so many times a second together, or as often as they can, until the
// returned function is called.
func (l *soakLoad) start(rate float64) (stop func()) {
	var (
		work sync.WaitGroup
		done atomic.Bool
	)
	clear(l.reasons)
	for worker := range soakWorkers {
		work.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 5)) // repeatable on purpose
			reasons := map[string]int{}
			for next := time.Now(); !done.Load(); {
				reasons[l.call(random)]++
				l.calls.Add(1)
				if rate > 0 {
					next = next.Add(time.Duration(random.ExpFloat64() * soakWorkers / rate * float64(time.Second)))
					<-time.After(time.Until(next))
				}
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			for reason, n := range reasons {
				l.reasons[reason] += n
			}
		})
	}
	return func() {
		done.Store(true)
		work.Wait()
	}
}

// call makes one call: most are for what is remembered, others go to Atlas by themselves, some
// fail.
func (l *soakLoad) call(random *rand.Rand) string {
	through := l.ways[random.IntN(len(l.ways))]
	headers := []string{"authorization", "JWT " + l.jwts[random.IntN(8)]}
	op, patience := testutil.Create, 10*time.Second
	switch dice := random.IntN(1000); {
	case dice < 200: // not shared, and mostly not remembered
		headers[1] = "JWT " + l.jwts[random.IntN(len(l.jwts))]
		headers = append(headers, "cache-control", "no-cache")
	case dice < 240:
		headers[1] = fmt.Sprintf("JWT %s", history.MadeUp(l.jwts[0]))
	case dice < 270:
		headers = nil
	case dice < 300:
		patience = time.Duration(random.IntN(5000)) * time.Microsecond
	case dice < 302:
		op = testutil.Delete
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return history.Reason(through.Call(ctx, op, headers...))
}
