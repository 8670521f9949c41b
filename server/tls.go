package server

import (
	"crypto/tls"
	"crypto/x509"
)

// TLS is what the gRPC and REST listeners go by at each handshake, so that a certificate can be replaced while they serve.
type TLS struct {
	// Certificate has the server's own, with any intermediates. If nil, the listeners are plaintext.
	Certificate func() tls.Certificate
	// ClientCAs, if set, makes both listeners ask for a client certificate and refuse those not signed by one of these
	// authorities (mTLS). Who shows none is refused too, unless a rule of the policy in force can let in such a caller.
	ClientCAs func() *x509.CertPool
	// CheckClient, if set, says what else is wrong with a client certificate that one of ClientCAs has signed. Its chain has it first,
	// then what the client sent with it.
	CheckClient func(chain []*x509.Certificate) error
}

// Mode is "off", "server" or "mutual".
func (t TLS) Mode() string {
	switch {
	case t.Certificate == nil:
		return "off"
	case t.ClientCAs == nil:
		return "server"
	}
	return "mutual"
}

// tlsConfig serves on each handshake the certificate of that time. A client certificate that is shown has
// to be signed by one of the authorities of that time in any case; whether one has to be, the policy of that time says.
func (c *Config) tlsConfig(protocols ...string) *tls.Config {
	// Without tickets each connection of mTLS is checked against the authorities of its own time.
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, SessionTicketsDisabled: c.TLS.ClientCAs != nil}
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		present := base.Clone()
		present.Certificates = []tls.Certificate{c.TLS.Certificate()}
		if c.TLS.ClientCAs != nil {
			present.ClientAuth, present.ClientCAs = tls.RequireAndVerifyClientCert, c.TLS.ClientCAs()
			if c.Auth.AllowsWithoutCertificate() {
				present.ClientAuth = tls.VerifyClientCertIfGiven
			}
			present.VerifyConnection = c.TLS.verifyClient
		}
		return present, nil
	}
	return outer
}

// verifyClient is called once crypto/tls has found nothing wrong, neither with the client's certificate nor with that there is none.
func (t TLS) verifyClient(state tls.ConnectionState) error {
	if t.CheckClient == nil || len(state.PeerCertificates) == 0 {
		return nil
	}
	if err := t.CheckClient(state.PeerCertificates); err != nil {
		return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
	}
	return nil
}
