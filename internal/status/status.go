// Package status serves the operator's page: the state of the service, and small plots of the last
// hour. It reads the process's own metrics, so all figures are also in /metrics.
package status

import (
	"context"
	"io"
	"net/http"
	"slices"
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

// Check is the state of one dependency.
type Check struct {
	Name  string    // such as "profile acme"
	Err   error     // nil if all is well
	Since time.Time // when it became so
}

// Setting is a setting and the source of its value. It must not be a secret.
type Setting struct{ Name, Value, Source string }

// Config configures the page.
type Config struct {
	// Version is that of the program, such as "v1.2.3".
	Version string
	// State returns the state as in /readyz, such as "ready".
	State func() string
	// Checks returns the checks as in /readyz.
	Checks func() []Check
	// Metrics are the metrics that the page reads.
	Metrics prometheus.Gatherer
	// Settings are shown in this order.
	Settings []Setting
}

// Page is an http.Handler. Run collects the data of its plots.
type Page struct {
	cfg     Config
	started time.Time

	mu      sync.Mutex
	samples []sample // guarded by mu; oldest first, at most maxSamples
}

// New returns the page of a process that starts now.
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
	s := gather(p.cfg.Metrics).sample(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples = append(p.samples, s)
	p.samples = slices.Delete(p.samples, 0, max(len(p.samples)-maxSamples, 0))
}

// history returns the samples so far.
func (p *Page) history() []sample {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.samples)
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	page := p.render(time.Now())
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	// The page has inline styles, no scripts, and loads nothing.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, page) // fails only if the client has gone
}
