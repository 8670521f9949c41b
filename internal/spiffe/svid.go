// Package svid has the server's certificate and the authorities of its callers from a SPIFFE agent, by way of the Workload API: an
// X.509-SVID, and the bundle of its trust domain. It shows and logs them as package reload does those of files.
//
// It says which certificates are good. Who a caller is that shows one, and what it may do, package auth says.
package spiffe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// Source has what the agent gave last, for as long as it gives nothing better. Before Await has returned, there is nothing to have.
type Source struct {
	addr  string
	files *reload.Watcher
	log   *slog.Logger

	current atomic.Pointer[Identity]
	first   chan struct{} // closed when there is an Identity

	mu       sync.Mutex
	cause    error               // guarded by mu; why the agent gives nothing, nil while it does
	reported map[string]struct{} // guarded by mu; causes that the log has, since all was well

	// Of whoever watches the agent, and set when first is closed.
	certificate, bundle *reload.Received
	shown               error // why they are not
}

// New returns a Source that is to be run. addr is what CheckAddr takes. The watcher shows the certificates.
func New(addr string, files *reload.Watcher, log *slog.Logger) *Source {
	return &Source{
		addr: addr, files: files, log: log.With(slog.String("agent", addr)),
		first: make(chan struct{}), reported: map[string]struct{}{},
	}
}

// Await waits for the first SVID, while Run runs. If there is none by the end of ctx, the error is the agent's last, or the
// context's.
func (s *Source) Await(ctx context.Context) error {
	select {
	case <-s.first:
		return s.shown
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause != nil {
		return s.cause
	}
	return ErrNoAnswer
}

// Certificate is the SVID with its key.
func (s *Source) Certificate() tls.Certificate { return s.current.Load().Certificate }

// ClientCAs are the authorities of the SVID's own trust domain. Those of federated ones are not among them: a policy, or the lack
// of one, would let in callers of whom nobody has thought.
func (s *Source) ClientCAs() *x509.CertPool { return s.current.Load().pool }

// CheckClient reports a client certificate that is no X.509-SVID of the server's own trust domain. Its chain comes first, with the
// certificate. That an authority of the domain has signed it is not enough: one may have signed for others too.
func (s *Source) CheckClient(chain []*x509.Certificate) error {
	own := s.current.Load()
	if _, _, err := x509svid.Verify(chain, own.Bundle); err != nil {
		return fmt.Errorf("the client certificate is no X.509-SVID of %s: %w", own.ID.TrustDomain(), err)
	}
	return nil
}

// Check says for how long the SVID is still good, if the agent gives no other, and that it has expired.
func (s *Source) Check() error {
	own := s.current.Load()
	if own == nil {
		return errors.New("there is no X.509-SVID yet")
	}
	s.mu.Lock()
	cause := s.cause
	s.mu.Unlock()
	until := own.expires().UTC().Format(time.RFC3339)
	switch expired := time.Now().After(own.expires()); {
	case expired && cause != nil:
		return fmt.Errorf("the X.509-SVID expired at %s: %w", until, cause)
	case expired:
		return fmt.Errorf("the X.509-SVID expired at %s", until)
	case cause != nil:
		return fmt.Errorf("%w; the last X.509-SVID is valid until %s", cause, until)
	}
	return nil
}
