package spiffe

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// How long it takes at least, and at most, until an agent that has failed is tried again. It is on the same machine.
const (
	minRetry = 250 * time.Millisecond
	maxRetry = 5 * time.Second
)

// Run takes what the agent gives until ctx is done.
func (s *Source) Run(ctx context.Context) {
	a := newAgent(s.addr)
	defer a.CloseIdleConnections()
	for wait := minRetry; ; wait = min(2*wait, maxRetry) {
		err := a.watch(ctx, func(given *workload.X509SVIDResponse) {
			wait = minRetry
			s.take(given)
		})
		if ctx.Err() != nil {
			return
		}
		s.failed(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// take uses what the agent gives, if it is of use.
func (s *Source) take(given *workload.X509SVIDResponse) {
	next, err := newIdentity(given)
	if err != nil {
		s.failed(err)
		return
	}
	s.use(next)
}

// use has handshakes go by next from now on.
func (s *Source) use(next *Identity) {
	old := s.current.Swap(next)
	if old == nil || old.ID != next.ID {
		s.log.Info("this process has a SPIFFE ID", slog.String("spiffe_id", next.ID.String()), slog.Time("expires", next.expires()))
	}
	if old == nil {
		s.show(next)
		close(s.first)
	} else {
		if slices.EqualFunc(old.Certificate.Certificate, next.Certificate.Certificate, slices.Equal) {
			s.certificate.SetOK(true)
		} else {
			s.certificate.Replace(next.firstOfChain())
		}
		if old.Bundle.Equal(next.Bundle) {
			s.bundle.SetOK(true)
		} else {
			s.bundle.Replace(next.lastOfBundle())
		}
	}
	s.recovered()
}

// show has the metrics of the first Identity, by the names of certificates that are in files.
func (s *Source) show(own *Identity) {
	var errs [2]error
	s.certificate, errs[0] = s.files.Receive("server", own.firstOfChain(), s.log)
	s.bundle, errs[1] = s.files.Receive("client_ca", own.lastOfBundle(), s.log)
	s.shown = errors.Join(errs[:]...)
}

// maxReported bounds what is remembered of the causes already reported.
const maxReported = 64

// failed notes why there is nothing new. The log has a line for each different cause.
func (s *Source) failed(cause error) {
	s.mu.Lock()
	s.cause = cause
	_, known := s.reported[cause.Error()]
	if len(s.reported) == maxReported {
		clear(s.reported)
	}
	s.reported[cause.Error()] = struct{}{}
	s.mu.Unlock()
	own := s.current.Load()
	if own != nil {
		s.certificate.SetOK(false)
		s.bundle.SetOK(false)
	}
	switch {
	case known:
	case own == nil:
		s.log.Warn("there is no X.509-SVID yet, trying again", slog.Any("cause", cause))
	default:
		s.log.Warn("the SPIFFE agent fails; the last good X.509-SVID stays, trying again",
			slog.Time("expires", own.expires()), slog.Any("cause", cause))
	}
}

func (s *Source) recovered() {
	s.mu.Lock()
	had := s.cause
	s.cause = nil
	clear(s.reported)
	s.mu.Unlock()
	if had != nil {
		s.log.Info("the SPIFFE agent gives X.509-SVIDs again")
	}
}
