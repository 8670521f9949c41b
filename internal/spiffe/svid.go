package spiffe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// Reasons why there is no X.509-SVID. The error that wraps one of these says more.
var (
	ErrNotRegistered = errors.New("the SPIFFE agent has no registration entry for this workload")
	ErrUnreachable   = errors.New("the SPIFFE agent cannot be reached")
	ErrNoAnswer      = errors.New("the SPIFFE agent does not answer")
	ErrNoAgent       = errors.New("what listens there does not speak the SPIFFE Workload API")
	ErrUnusable      = errors.New("the SPIFFE agent's answer cannot be used")
	ErrFailed        = errors.New("the SPIFFE agent fails")
)

// CheckAddr reports an address other than a socket file's, unix:///path. The Workload API may also
// be on a TCP port, but there every process of the machine is the same workload and the private key
// travels in plaintext.
func CheckAddr(addr string) error {
	u, err := url.Parse(addr)
	if err != nil || u.Scheme != "unix" || u.Host != "" || !strings.HasPrefix(u.Path, "/") || workloadapi.ValidateAddress(addr) != nil {
		return errors.New("must be unix:// and the absolute path of the agent's socket, such as unix:///run/spire/agent.sock")
	}
	return nil
}

// Bounds of the backoff after the agent has failed. It is on the same machine.
const (
	minRetry = 250 * time.Millisecond
	maxRetry = 5 * time.Second
)

// newClient returns a client of the Workload API. It does not connect yet.
func newClient(ctx context.Context, addr string) (*workloadapi.Client, error) {
	connect := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: minRetry, Multiplier: 2, Jitter: 0.2, MaxDelay: maxRetry},
		MinConnectTimeout: maxRetry,
	}
	return workloadapi.New(ctx, workloadapi.WithAddr(addr), workloadapi.WithBackoffStrategy(retries{}), workloadapi.WithDialOptions(grpc.WithConnectParams(connect)))
}

// retries is a workloadapi.BackoffStrategy.
type retries struct{}

func (retries) NewBackoff() workloadapi.Backoff { return &retry{minRetry} }

type retry struct{ wait time.Duration }

func (r *retry) Next() time.Duration {
	wait := r.wait
	r.wait = min(2*r.wait, maxRetry)
	return wait
}

func (r *retry) Reset() { r.wait = minRetry }

var causes = map[codes.Code]error{
	codes.PermissionDenied: ErrNotRegistered,
	codes.Unavailable:      ErrUnreachable,
	codes.DeadlineExceeded: ErrNoAnswer,
	codes.Unimplemented:    ErrNoAgent,
}

// classify wraps an error of the client in one of this package's.
func classify(err error) error {
	s, ok := status.FromError(err)
	if !ok { // the client could not parse the answer
		return fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	if cause := causes[s.Code()]; cause != nil {
		return fmt.Errorf("%w: %s", cause, s.Message())
	}
	return fmt.Errorf("%w: %v: %s", ErrFailed, s.Code(), s.Message())
}

// SVID is an X.509-SVID with what belongs to it. It does not change.
type SVID struct {
	ID spiffeid.ID
	// Certificate is the X.509-SVID, then any intermediates, with the key. Its Leaf is set.
	Certificate tls.Certificate
	// Bundle has the authorities of ID's trust domain, at least one.
	Bundle *x509bundle.Bundle

	first *x509.Certificate // of the chain, to expire
	last  *x509.Certificate // of the bundle, to expire: an agent leaves those before it there
	pool  *x509.CertPool    // of the bundle
	since time.Time         // when the agent gave it
}

// newSVID returns the default SVID of those that an agent gives, or why it cannot be used.
func newSVID(given *workloadapi.X509Context) (*SVID, error) {
	svid := given.DefaultSVID()
	bundle, err := given.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err == nil && bundle.Empty() {
		err = fmt.Errorf("the bundle of %s has no authorities in it", svid.ID.TrustDomain())
	}
	if err == nil {
		err = reload.ForServers(svid.Certificates[0])
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	id := &SVID{
		ID: svid.ID, Bundle: bundle, pool: x509.NewCertPool(), since: time.Now(),
		Certificate: tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]},
		first:       reload.FirstToExpire(svid.Certificates),
		last:        reload.LastToExpire(bundle.X509Authorities()),
	}
	for _, cert := range svid.Certificates {
		id.Certificate.Certificate = append(id.Certificate.Certificate, cert.Raw)
	}
	for _, authority := range bundle.X509Authorities() {
		id.pool.AddCert(authority)
	}
	return id, nil
}

// Fetch asks the agent once for what a Source would have.
func Fetch(ctx context.Context, addr string) (*SVID, error) {
	client, err := newClient(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	given, err := client.FetchX509Context(ctx)
	if err != nil {
		return nil, classify(err)
	}
	return newSVID(given)
}
