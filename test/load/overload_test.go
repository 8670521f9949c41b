package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// standIn is an Atlas that takes every credential, over HTTP/1.1.
type standIn struct {
	*httptest.Server
	calls atomic.Int64
	// answer is what it does with a call, by its number; whatever it leaves alone is answered with
	// a token.
	answer atomic.Pointer[func(w http.ResponseWriter, call int64) (done bool)]
}

func startStandIn(t *testing.T, mode testutil.Security, answer func(w http.ResponseWriter, call int64) bool) (*standIn, *testutil.Service) {
	t.Helper()
	a := &standIn{}
	a.answer.Store(&answer)
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if (*a.answer.Load())(w, a.calls.Add(1)) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"token":"t"}`)
	}))
	a.Config.ErrorLog = log.New(io.Discard, "", 0)
	a.StartTLS()
	t.Cleanup(a.Close)
	s := testutil.Start(t, mode, func(_ *server.Config, cfg *atlas.Config) {
		cfg.BaseURL, cfg.RootCAs, cfg.MaxConns = a.URL, x509.NewCertPool(), 300
		cfg.RootCAs.AddCert(a.Certificate())
	})
	return a, s
}

// drop ends a connection without a word: by a reset, or as an idle one is ended.
func drop(w http.ResponseWriter, reset bool) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if reset {
		_ = conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
		_ = conn.(*tls.Conn).NetConn().Close()
	}
	_ = conn.Close()
}

// everybody makes calls creates, each with a credential of its own, a few at a time, and says how
// many failed.
func everybody(t *testing.T, s *testutil.Service, calls int) int {
	t.Helper()
	const atATime = 10
	var failed, next atomic.Int64
	var wg sync.WaitGroup
	for _, c := range s.Callers(t) {
		for range atATime / 2 {
			wg.Go(func() {
				for n := next.Add(1); n <= int64(calls); n = next.Add(1) {
					if c.Call(testutil.Context(t), testutil.Create, "authorization", fmt.Sprintf("JWT j.w.%d", n)).Code != codes.OK {
						failed.Add(1)
					}
				}
			})
		}
	}
	wg.Wait()
	return int(failed.Load())
}

// TestFailingCreates: one create in twenty fails at Atlas, and hardly a caller notices, at the
// price of a tenth more calls at most; all fail, and Atlas has no more than that either, beside the
// reserve of ten repeats.
func TestFailingCreates(t *testing.T) {
	t.Parallel()
	const reserve = 10
	calls := 400
	if testutil.Long() {
		calls = 2000
	}
	a, s := startStandIn(t, testutil.Plaintext, func(w http.ResponseWriter, call int64) bool {
		switch call % 60 {
		case 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 20:
			drop(w, true)
		case 40:
			drop(w, false)
		default:
			return false
		}
		return true
	})
	failed, cost := everybody(t, s, calls), a.calls.Load()
	t.Logf("5 %% fail: %d of %d callers' creates fail, %.3f calls to Atlas for each", failed, calls, float64(cost)/float64(calls))
	if failed > 2 { // three failures in a row are rare
		t.Errorf("%d of %d creates failed", failed, calls)
	}
	if cost > int64(calls)*11/10 {
		t.Errorf("%d creates cost %d calls to Atlas", calls, cost)
	}

	a, s = startStandIn(t, testutil.Plaintext, func(w http.ResponseWriter, _ int64) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	failed, cost = everybody(t, s, calls), a.calls.Load()
	t.Logf("100 %% fail: %d calls to Atlas for %d", cost, calls)
	if failed != calls || cost > int64(calls)*11/10+reserve {
		t.Errorf("%d of %d creates failed, and cost %d calls to Atlas", failed, calls, cost)
	}
	works := func(http.ResponseWriter, int64) bool { return false }
	a.answer.Store(&works)
	testutil.Eventually(t, func() bool { return everybody(t, s, 1) == 0 }, "calls still fail after Atlas is back")
}

// TestHangingAtlas: Atlas stops answering under many new calls. None of them gets a token, memory
// stays bounded, and when Atlas is back, calls are answered as before. That each is answered by its
// deadline is for TestChaos to check, in virtual time.
func TestHangingAtlas(t *testing.T) {
	const (
		patience = time.Second
		mostHeap = 256 << 20
	)
	calls := 1000
	if testutil.Long() {
		calls = 6000 // each without a bound, with its stream, they would take more than mostHeap
	}
	hanging, back := make(chan struct{}), make(chan struct{})
	a, s := startStandIn(t, testutil.Plaintext, func(http.ResponseWriter, int64) bool {
		select {
		case <-hanging:
			<-back
		default:
		}
		return false
	})
	if failed := everybody(t, s, 100); failed > 0 {
		t.Fatalf("%d of 100 creates failed while all was well", failed)
	}
	close(hanging)
	pool := s.CallerPool(t)
	var answered atomic.Int64
	var wg sync.WaitGroup
	var heap uint64
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for n := range calls {
		<-tick.C
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if pool[n%len(pool)].Call(ctx, testutil.Create, "authorization", fmt.Sprintf("JWT j.h.%d", n)).Code == codes.OK {
				answered.Add(1)
			}
		})
		if n%500 == 499 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			heap = max(heap, m.HeapInuse)
		}
	}
	wg.Wait()
	asked := a.calls.Load()
	close(back)
	testutil.Eventually(t, func() bool { return everybody(t, s, 20) == 0 }, "calls still fail after Atlas is back")
	t.Logf("%d calls, %d reached Atlas; heap %d MiB", calls, asked, heap>>20)
	if n := answered.Load(); n > 0 {
		t.Errorf("%d calls were answered with a token that Atlas cannot have sent", n)
	}
	if heap > mostHeap {
		t.Errorf("the heap grew to %d MiB", heap>>20)
	}
}
