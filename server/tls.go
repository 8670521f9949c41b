package server

import (
	"crypto/tls"
	"crypto/x509"
)

// TLS configures the gRPC and REST listeners. Its functions are called at each handshake, so that
// certificates can be replaced at run time.
type TLS struct {
	// Certificate returns the server's certificate, with any intermediates. If nil, the listeners
	// are plaintext.
	Certificate func() tls.Certificate
	// ClientCAs, if set, turns on mTLS: client certificates must be signed by one of these
	// authorities. A client without one is refused too, unless a rule of the current policy can
	// admit it.
	ClientCAs func() *x509.CertPool
	// CheckClient, if set, is a further check of a client certificate that one of ClientCAs has
	// signed. The chain is as the client sent it, its certificate first.
	CheckClient func(chain []*x509.Certificate) error
}

// Mode returns "off", "server" or "mutual".
func (t TLS) Mode() string {
	switch {
	case t.Certificate == nil:
		return "off"
	case t.ClientCAs == nil:
		return "server"
	}
	return "mutual"
}

// tlsConfig returns a configuration that uses the current certificate, authorities and policy at
// each handshake. A client certificate is always verified; the policy decides whether one is
// required.
func (c *Config) tlsConfig(protocols ...string) *tls.Config {
	// Without tickets, each mTLS connection is checked against the current authorities.
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, SessionTicketsDisabled: c.TLS.ClientCAs != nil}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		current := base.Clone()
		current.Certificates = []tls.Certificate{c.TLS.Certificate()}
		if c.TLS.ClientCAs != nil {
			current.ClientAuth, current.ClientCAs = tls.RequireAndVerifyClientCert, c.TLS.ClientCAs()
			if c.Auth.AllowsWithoutCertificate() {
				current.ClientAuth = tls.VerifyClientCertIfGiven
			}
			current.VerifyConnection = c.TLS.verifyClient
		}
		return current, nil
	}
	return outer
}

// verifyClient runs CheckClient after crypto/tls has verified the certificate, if the client sent
// one.
func (t TLS) verifyClient(state tls.ConnectionState) error {
	if t.CheckClient == nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	if err := t.CheckClient(state.PeerCertificates); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}
