package atlas

import (
	"context"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Sequential calls use one connection, whatever the answers, as long as their bodies are small.
func TestConnectionIsReused(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		status := http.StatusCreated
		conns, config := newHTTPServer(t, http2, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if status != 204 {
				_ = http.NewResponseController(w).Flush() // no Content-Length
				_, _ = io.WriteString(w, `{"token":"t","detail":"`+strings.Repeat("x", 5000)+`"}`)
			}
		})
		c := newTestClient(t, config)
		for _, status = range []int{201, 200, 202, 204, 302, 400, 401, 429, 500, 503, 201} {
			_, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
			outcomeOf(t, OpCreate, err)
			err = c.DeleteEphemeralToken(t.Context(), plantedJWT)
			outcomeOf(t, OpDelete, err)
		}
		if n := conns.Load(); n != 1 {
			t.Errorf("HTTP/2 %v: %d connections, want 1", http2, n)
		}
	}
}

// Calls share a connection over HTTP/2. Over HTTP/1.1 each has its own, and they are kept.
func TestConcurrentCalls(t *testing.T) {
	const calls = 40
	for _, tc := range []struct {
		http2 bool
		want  int32
	}{{true, 1}, {false, calls}} {
		var inside sync.WaitGroup
		conns, config := newHTTPServer(t, tc.http2, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				inside.Done()
				inside.Wait() // all are in progress at once
			}
			answerToken(w)
		})
		c := newTestClient(t, config)
		if err := c.DeleteEphemeralToken(t.Context(), plantedJWT); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			inside.Add(calls)
			var wg sync.WaitGroup
			for range calls {
				wg.Go(func() {
					if token, err := c.CreateEphemeralToken(t.Context(), plantedJWT); err != nil || token != plantedToken {
						t.Errorf("got %q, %v", string(token), err)
					}
				})
			}
			wg.Wait()
		}
		if n := conns.Load(); n != tc.want {
			t.Errorf("HTTP/2 %v: %d connections, want %d", tc.http2, n, tc.want)
		}
	}
}

// A call that finds no connection free waits, and has not been sent until it gets one.
func TestMaxConns(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	conns, config := newHTTPServer(t, false, func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		answerToken(w)
	})
	config.MaxConns = 2
	c := newTestClient(t, config)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := c.CreateEphemeralToken(t.Context(), plantedJWT); err != nil {
				t.Error(err)
			}
		})
		<-arrived
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := c.DeleteEphemeralToken(ctx, plantedJWT)
	if got, want := outcomeOf(t, OpDelete, err), (outcome{Kind: KindCanceled}); got != want {
		t.Errorf("got %+v, want %+v: %v", got, want, err)
	}
	close(release)
	wg.Wait()
	if n := conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// When Atlas's limit of concurrent streams is reached, calls get another connection, even beyond
// MaxConns.
func TestStreamLimitOfAtlas(t *testing.T) {
	const calls = 6
	var inside sync.WaitGroup
	inside.Add(calls)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		inside.Done()
		inside.Wait() // all are in progress at once
		answerToken(w)
	}))
	s.EnableHTTP2 = true
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 2}
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c := newTestClient(t, Config{BaseURL: s.URL, RootCAs: pool, MaxConns: 1})
	var wg sync.WaitGroup
	for range calls {
		wg.Go(func() {
			if _, err := c.CreateEphemeralToken(t.Context(), plantedJWT); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
