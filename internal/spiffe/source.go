// Package spiffe gets the server's certificate and the authorities of its clients from a SPIFFE
// agent over the Workload API: an X.509-SVID and the bundle of its trust domain. Their state is
// shown and logged like that of files in package reload.
//
// It decides which certificates are good. What their holders may do is for package auth.
package spiffe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// Source keeps the last usable SVID that the agent gave. Certificate, ClientCAs and CheckClient
// may be called once Await has returned nil, from any goroutine.
type Source struct {
	addr  string
	files *reload.Watcher
	log   *slog.Logger

	current  atomic.Pointer[SVID]
	first    chan struct{} // closed when there is an SVID
	failures reload.Failures
}

// New returns a Source for an address that CheckAddr accepts. The watcher shows the certificates.
func New(addr string, files *reload.Watcher, log *slog.Logger) *Source {
	return &Source{addr: addr, files: files, log: log.With(slog.String("agent", addr)), first: make(chan struct{})}
}

// Run takes what the agent gives until ctx is done.
func (s *Source) Run(ctx context.Context) {
	client, err := newClient(ctx, s.addr)
	if err != nil { // not with an address that CheckAddr accepts
		s.failed(err)
		return
	}
	defer client.Close()
	for ctx.Err() == nil {
		// It retries by itself, except after the agent cancels the call or calls it invalid.
		_ = client.WatchX509Context(ctx, watcher{s, ctx}) // the watcher has the error
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watcher takes what the client of the Workload API reports to a Source.
type watcher struct {
	*Source
	ctx context.Context // of Run
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w watcher) OnX509ContextUpdate(given *workloadapi.X509Context) {
	next, err := newSVID(given)
	old := w.current.Load()
	if err == nil && old != nil {
		err = errors.Join(reload.CheckReplacement(next.first, old.first), reload.CheckReplacement(next.last, old.last))
	}
	if err != nil {
		w.failed(err)
		return
	}
	w.use(next, old)
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w watcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() == nil {
		w.failed(classify(err))
	}
}

// use makes next the SVID of all further handshakes.
func (s *Source) use(next, old *SVID) {
	s.current.Store(next)
	if old == nil || old.ID != next.ID {
		s.log.Info("this process has a SPIFFE ID", slog.String("spiffe_id", next.ID.String()), slog.Time("expires", next.first.NotAfter))
	}
	certificate := &shown{s, "server", func(id *SVID) *x509.Certificate { return id.first }}
	bundle := &shown{s, "client_ca", func(id *SVID) *x509.Certificate { return id.last }}
	if old == nil {
		for _, c := range []*shown{certificate, bundle} {
			reload.LogExpiry(c.log(), c.of(next))
			s.files.Add(c)
		}
		close(s.first)
	} else {
		if !slices.EqualFunc(old.Certificate.Certificate, next.Certificate.Certificate, slices.Equal) {
			reload.LogReplaced(certificate.log(), next.first)
		}
		if !old.Bundle.Equal(next.Bundle) {
			reload.LogReplaced(bundle.log(), next.last)
		}
	}
	if s.failures.Clear() {
		s.log.Info("the SPIFFE agent gives X.509-SVIDs again")
	}
}

// shown shows one certificate of the SVID in use like that of a file.
type shown struct {
	source *Source
	name   string
	of     func(*SVID) *x509.Certificate
}

func (c *shown) log() *slog.Logger { return c.source.log.With(slog.String("certificate", c.name)) }

// Status implements reload.Shown.
func (c *shown) Status() reload.Status {
	own := c.source.current.Load()
	return reload.Status{What: "certificate", Name: c.name, Err: c.source.failures.Err(), Since: own.since, Certificate: c.of(own)}
}

// failed notes why there is nothing new. The log has one line for each different cause.
func (s *Source) failed(cause error) {
	if !s.failures.Add(cause) {
		return
	}
	if own := s.current.Load(); own == nil {
		s.log.Warn("there is no X.509-SVID yet, trying again", slog.Any("cause", cause))
	} else {
		s.log.Warn("the SPIFFE agent fails; the last good X.509-SVID stays, trying again",
			slog.Time("expires", own.first.NotAfter), slog.Any("cause", cause))
	}
}

// Await waits for the first SVID while Run runs. If there is none when ctx ends, the error is the
// agent's last.
func (s *Source) Await(ctx context.Context) error {
	select {
	case <-s.first:
		return nil
	case <-ctx.Done():
	}
	if err := s.failures.Err(); err != nil {
		return err
	}
	return ErrNoAnswer
}

// Certificate returns the SVID with its key.
func (s *Source) Certificate() tls.Certificate { return s.current.Load().Certificate }

// ClientCAs returns the authorities of the SVID's own trust domain. Those of federated domains are
// left out: most policies were not written with their callers in mind.
func (s *Source) ClientCAs() *x509.CertPool { return s.current.Load().pool }

// CheckClient reports a client certificate that is no X.509-SVID of the server's own trust domain.
// It comes first in its chain. A signature by an authority of the domain is not enough, because
// that may sign other certificates too.
func (s *Source) CheckClient(chain []*x509.Certificate) error {
	own := s.current.Load()
	if _, _, err := x509svid.Verify(chain, own.Bundle); err != nil {
		return fmt.Errorf("the client certificate is no X.509-SVID of %s: %w", own.ID.TrustDomain(), err)
	}
	return nil
}
