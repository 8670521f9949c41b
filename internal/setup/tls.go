package setup

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// openTLS sets up TLS of the listeners, from files or from a SPIFFE agent.
func (s *Setup) openTLS() {
	set := &s.Settings
	switch {
	case !set.wantsTLS():
	case set.SPIFFESocket != "":
		s.openSPIFFE()
	case set.TLSCertFile == "" && set.TLSKeyFile == "":
		s.wrong("--tls-client-ca-file", errors.New("there is no TLS without --tls-cert-file and --tls-key-file"))
		s.Config.TLS.Certificate = noCertificate
	default:
		s.Config.TLS.Certificate = s.certificate("tls", "server", set.TLSCertFile, set.TLSKeyFile, reload.ForServers, nil)
		s.Config.TLS.ClientCAs = s.authorities("--tls-client-ca-file", "client_ca", set.TLSClientCAFile, nil, nil)
	}
}

// noCertificate replaces a certificate that could not be opened, so that no other error follows
// from it.
func noCertificate() tls.Certificate { return tls.Certificate{} }

// certificate watches a certificate and its key. The flags begin with purpose, the metric has name,
// and fit returns why a certificate is unsuitable.
func (s *Setup) certificate(purpose, name, certFile, keyFile string, fit func(*x509.Certificate) error, onChange func()) func() tls.Certificate {
	flags := "--" + purpose + "-cert-file and --" + purpose + "-key-file"
	if certFile == "" || keyFile == "" {
		s.wrong(flags, errors.New("a certificate needs its key, and a key its certificate"))
		return noCertificate
	}
	get, err := s.files.Certificate(name, certFile, keyFile, fit, onChange)
	if err != nil {
		s.unusable(flags, err)
		return noCertificate
	}
	s.warnIfPublic("--"+purpose+"-key-file", keyFile)
	s.checkExpiry(flags, get().Leaf)
	return get
}

// authorities watches a file of certificate authorities, if there is one.
func (s *Setup) authorities(flag, name, file string, base func() (*x509.CertPool, error), onChange func()) func() *x509.CertPool {
	if file == "" {
		return nil
	}
	get, err := s.files.Authorities(name, file, base, onChange)
	s.unusable(flag, err)
	return get
}

const spiffeFlag = "--spiffe-socket"

// openSPIFFE does not ask the agent yet.
func (s *Setup) openSPIFFE() {
	set := &s.Settings
	for _, other := range []struct{ flag, value string }{
		{"--tls-cert-file", set.TLSCertFile}, {"--tls-key-file", set.TLSKeyFile}, {"--tls-client-ca-file", set.TLSClientCAFile},
	} {
		if other.value != "" {
			s.wrong(spiffeFlag+" and "+other.flag, errors.New("choose one: certificate, key and client authorities all come from the SPIFFE agent, or all from files"))
		}
	}
	s.wrong(spiffeFlag, cmp.Or(spiffe.CheckAddr(set.SPIFFESocket), checkSocketURL(set.SPIFFESocket)))
	s.svid = spiffe.New(set.SPIFFESocket, s.files, s.log)
	s.Config.TLS = server.TLS{Certificate: s.svid.Certificate, ClientCAs: s.svid.ClientCAs, CheckClient: s.svid.CheckClient}
}

// maxSVIDWait is how long a start waits for the agent, which may have been started at the same time
// and may hear of a new workload only every few seconds. Platforms wait longer for a service to
// start, so the reason is the last thing that they see.
const maxSVIDWait = 20 * time.Second

// awaitSVID watches the agent, if there is one, until stop. It returns once there is an SVID or ctx
// is done. If there is none within maxWait, it returns an error.
func (s *Setup) awaitSVID(ctx context.Context, maxWait time.Duration) (stop func(), err error) {
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
	s.notify("STATUS=Waiting for an X.509-SVID from the SPIFFE agent.")
	waiting, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	if err := s.svid.Await(waiting); err != nil && ctx.Err() == nil {
		return stop, fmt.Errorf("%s: no X.509-SVID within %v: %w. %s", spiffeFlag, maxWait, err, AgentRemedy(err))
	}
	return stop, nil
}

// agentRemedies are by cause; the last one fits all.
var agentRemedies = []struct {
	cause  error
	remedy string
}{
	{spiffe.ErrNotRegistered, "Make a registration entry whose selectors match this process, such as unix:user:tokend or k8s:sa:tokend."},
	{spiffe.ErrUnreachable, "Start the agent, let tokend's user connect to its socket, or correct --spiffe-socket."},
	{spiffe.ErrNoAnswer, "Check the agent's log, and whether it reaches its server."},
	{spiffe.ErrNoAgent, "Set --spiffe-socket to the socket of an agent's Workload API."},
	{spiffe.ErrUnusable, "Have an X.509-SVID for servers issued to this process, with the bundle of its trust domain."},
	{nil, "Check the agent's log."},
}

// AgentRemedy returns the remedy of an error of the SPIFFE agent.
func AgentRemedy(err error) string {
	for _, r := range agentRemedies {
		if r.cause == nil || errors.Is(err, r.cause) {
			return r.remedy
		}
	}
	return ""
}
