package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

const spiffeSocketFlag = "--spiffe-socket"

// openSPIFFE asks nobody yet.
func (f *tlsFlags) openSPIFFE(s *setup) {
	for _, other := range []struct{ flag, value string }{
		{"--tls-cert-file", f.CertFile}, {"--tls-key-file", f.KeyFile}, {"--tls-client-ca-file", f.ClientCAFile},
	} {
		if other.value != "" {
			s.fail(spiffeSocketFlag+" and "+other.flag, errors.New("choose one: certificate, key and client authorities are all the SPIFFE agent's, or all in files"))
		}
	}
	if err := spiffe.CheckAddr(f.SPIFFESocket); err != nil {
		s.fail(spiffeSocketFlag, err)
	}
	s.svid = spiffe.New(f.SPIFFESocket, s.files, s.Logger)
	s.TLS = server.TLS{Certificate: s.svid.Certificate, ClientCAs: s.svid.ClientCAs, CheckClient: s.svid.CheckClient}
}

// firstSVID is how long serve waits for the agent, which may have been started at the same time, and hear of a new workload from its
// server every few seconds only. It is less than platforms wait for a service to start, so that the reason is the last that they see.
const firstSVID = 20 * time.Second

// awaitSVID has the agent watched until stop, if there is one, and returns once it has given an SVID, or ctx ends. That it gives none
// in time is an error.
func (s *setup) awaitSVID(ctx context.Context) (stop func(), err error) {
	if s.svid == nil {
		return func() {}, nil
	}
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	var watched sync.WaitGroup
	watched.Go(func() { s.svid.Run(watching) })
	stop = func() {
		stopWatching()
		watched.Wait()
	}
	s.systemd.waiting("Waiting for an X.509-SVID from the SPIFFE agent.")
	waiting, cancel := context.WithTimeout(ctx, firstSVID)
	defer cancel()
	if err := s.svid.Await(waiting); err != nil && ctx.Err() == nil {
		return stop, fmt.Errorf("%s: no X.509-SVID within %v: %w. %s", spiffeSocketFlag, firstSVID, err, agentRemedy(err))
	}
	return stop, nil
}

// askAgent finds out what serve would have from the agent, if there is one.
func (s *setup) askAgent(ctx context.Context, addr string) {
	if s.svid == nil {
		return
	}
	own, err := spiffe.Fetch(ctx, addr)
	if err != nil {
		s.fail(spiffeSocketFlag, fmt.Errorf("%w. %s", err, agentRemedy(err)))
		return
	}
	s.ownID = fmt.Sprintf("This process is %s, and its X.509-SVID is valid until %s. Client certificates are those of %s.\n",
		own.ID, utc(own.Certificate.Leaf.NotAfter), own.ID.TrustDomain())
}

// agentRemedies are by cause; the last fits all.
var agentRemedies = []struct {
	cause  error
	remedy string
}{
	{spiffe.ErrNotRegistered, "Make a registration entry whose selectors fit this process, such as unix:user:tokend or k8s:sa:tokend."},
	{spiffe.ErrUnreachable, "Start the agent, let tokend's user connect to its socket, or correct --spiffe-socket."},
	{spiffe.ErrNoAnswer, "Look into the agent's log, and whether it reaches its server."},
	{spiffe.ErrNoAgent, "Have --spiffe-socket name the socket of an agent's Workload API."},
	{spiffe.ErrUnusable, "Have this process issued an X.509-SVID for servers, with the bundle of its trust domain."},
	{nil, "Look into the agent's log."},
}

func agentRemedy(err error) string {
	for _, r := range agentRemedies {
		if r.cause == nil || errors.Is(err, r.cause) {
			return r.remedy
		}
	}
	return ""
}
