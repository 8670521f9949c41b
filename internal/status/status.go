// Package status is the operator's page: what the service knows about itself now, and small plots of
// the last hour. It reads the process's own metrics, so whatever is on the page is also in /metrics.
package status

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// sampleInterval is the time between two points of a plot.
	sampleInterval = time.Minute
	// maxSamples is enough for an hour: sixty intervals.
	maxSamples = 61
)

// Check is the state of one thing that calls depend on.
type Check struct {
	Name  string
	Err   error // nil if all is well
	Since time.Time
}

// Setting is a setting in force, and where its value is from. It must not be a secret.
type Setting struct{ Name, Value, Source string }

// Config says what the page shows.
type Config struct {
	// Version is that of the program, such as "v1.2.3".
	Version string
	// State returns the state that /readyz has, such as "ready".
	State func() string
	// Checks returns the checks that /readyz has.
	Checks func() []Check
	// Metrics has the metrics that the page reads.
	Metrics prometheus.Gatherer
	// Settings are shown in this order.
	Settings []Setting
}

// Page is an http.Handler. Run collects what its plots show.
type Page struct {
	cfg     Config
	started time.Time

	mu      sync.Mutex
	samples []sample // guarded by mu; oldest first, at most maxSamples
}

// New returns a page for a process that starts now.
func New(cfg Config) *Page {
	p := &Page{cfg: cfg, started: time.Now()}
	p.add(time.Now())
	return p
}

// Run samples the metrics once a minute until ctx is done.
func (p *Page) Run(ctx context.Context) error {
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			p.add(now)
		case <-ctx.Done():
			return nil
		}
	}
}

// add appends a sample.
func (p *Page) add(now time.Time) {
	s := read(p.cfg.Metrics, now)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples = append(p.samples, s)
	if extra := len(p.samples) - maxSamples; extra > 0 {
		p.samples = append(p.samples[:0], p.samples[extra:]...)
	}
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	page := render(p.view(time.Now()))
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	// The page has styles of its own and nothing else: no script, no request.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, page) // the client has gone if this fails
}
