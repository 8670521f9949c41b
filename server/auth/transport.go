package auth

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"sync/atomic"
	"time"
)

// Transport reaches OIDC issuers, through the environment's proxy if there is one. It is for the HTTPClient of a [Config]
// whose issuers have certificates of authorities that the system does not know, and may come to have others.
type Transport struct {
	current atomic.Pointer[http.Transport]
}

// NewTransport returns a Transport that believes those authorities; nil are the system's.
func NewTransport(roots *x509.CertPool) *Transport {
	t := &Transport{}
	t.current.Store(issuerBase(roots))
	return t
}

// SetRoots replaces the authorities. Requests in progress end on the connections they have; every later one makes a new
// connection, so no issuer is believed on the word of an authority that is gone.
func (t *Transport) SetRoots(roots *x509.CertPool) {
	t.current.Swap(issuerBase(roots)).CloseIdleConnections() // those in use are closed in IdleConnTimeout
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.current.Load().RoundTrip(req)
}

// CloseIdleConnections closes the connections that no request is using.
func (t *Transport) CloseIdleConnections() { t.current.Load().CloseIdleConnections() }

func issuerBase(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    issuerTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    1,
		IdleConnTimeout:        30 * time.Second,
		ForceAttemptHTTP2:      true,
	}
}
