package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
)

// Config says who is let in. With neither Policy nor DefaultProfile, everybody with an Atlas JWT is, and Atlas decides.
type Config struct {
	// Policy says who may do what. It can be replaced while running.
	Policy *Policy
	// DefaultProfile is the profile of every caller with a verified client certificate, whoever it names; nobody else is
	// let in. Not together with Policy.
	DefaultProfile string
	// HTTPClient reaches the OIDC issuers. Only its Transport is used, with bounds of our own: a [Transport] is for
	// authorities that are not the system's. If nil, those and the environment's proxy are used.
	HTTPClient *http.Client
	// Logger is told of issuers that cannot be reached. If nil, nobody is.
	Logger *slog.Logger

	timing timing // of tests
}

// Authenticator says for each call who makes it, and with which Atlas identity it goes on.
type Authenticator struct {
	profile   string // Config.DefaultProfile
	transport http.RoundTripper
	log       *slog.Logger
	timing    timing

	state atomic.Pointer[state]

	mu     sync.Mutex // guards closed and the succession of states
	closed bool
	wg     sync.WaitGroup
}

// state is a policy with the issuers that it names.
type state struct {
	policy  *Policy
	issuers map[string]*runningIssuer // by URL
}

type runningIssuer struct {
	*issuer

	stop context.CancelFunc
}

// New returns an Authenticator that is ready at once, also if an OIDC issuer is not: its callers are then told to wait. It
// must be closed.
func New(cfg Config) (*Authenticator, error) {
	switch {
	case cfg.Policy != nil && cfg.DefaultProfile != "":
		return nil, errors.New("a policy and a default profile contradict each other: the policy says which profile is for whom")
	case cfg.DefaultProfile == Passthrough:
		return nil, fmt.Errorf("the default profile cannot be %s", Passthrough)
	}
	a := &Authenticator{profile: cfg.DefaultProfile, log: cfg.Logger, timing: cfg.timing}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if a.timing == (timing{}) {
		a.timing = defaultTiming
	}
	switch {
	case cfg.HTTPClient == nil:
		a.transport = NewTransport(nil)
	case cfg.HTTPClient.Transport == nil:
		a.transport = http.DefaultTransport
	default:
		a.transport = cfg.HTTPClient.Transport
	}
	a.state.Store(&state{})
	if cfg.Policy != nil {
		a.install(cfg.Policy)
	}
	return a, nil
}

// PassThrough is the Authenticator of a service that holds no Atlas identity: everybody with an Atlas JWT is let in with
// it, and Atlas decides. It need not be closed.
func PassThrough() *Authenticator {
	a := &Authenticator{log: slog.New(slog.DiscardHandler)}
	a.state.Store(&state{})
	return a
}

// SetPolicy replaces the policy. A call that has begun is decided by the policy it began with. Issuers that both policies
// name keep their keys. It fails if there was no policy before, since it would turn a service that is open to every
// Atlas JWT into another one or back, and after Close.
func (a *Authenticator) SetPolicy(p *Policy) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case p == nil || a.state.Load().policy == nil:
		return errors.New("a policy can only replace a policy")
	case a.closed:
		return errors.New("the authenticator is closed")
	}
	a.install(p)
	return nil
}

// install makes p the policy in force. Whoever calls it holds mu, or is New.
func (a *Authenticator) install(p *Policy) {
	old := a.state.Load()
	next := &state{policy: p, issuers: make(map[string]*runningIssuer, len(p.issuers))}
	for _, named := range p.issuers {
		if running := old.issuers[named.URL]; running != nil && running.Issuer == named {
			next.issuers[named.URL] = running
			continue
		}
		next.issuers[named.URL] = a.start(named)
	}
	a.state.Store(next)
	for url, running := range old.issuers {
		if next.issuers[url] != running {
			running.stop()
		}
	}
}

func (a *Authenticator) start(named Issuer) *runningIssuer {
	ctx, stop := context.WithCancel(context.Background())
	i := &issuer{Issuer: named, transport: a.transport, timing: a.timing, log: a.log}
	a.wg.Go(func() { i.run(ctx) })
	return &runningIssuer{issuer: i, stop: stop}
}

// Close stops asking the issuers. Calls with an OIDC token may fail from then on.
func (a *Authenticator) Close() {
	a.mu.Lock()
	a.closed = true
	for _, running := range a.state.Load().issuers {
		running.stop()
	}
	a.mu.Unlock()
	a.wg.Wait()
	if t, ok := a.transport.(interface{ CloseIdleConnections() }); ok && a.transport != http.DefaultTransport {
		t.CloseIdleConnections()
	}
}

// Check returns an error for each issuer whose callers cannot be checked at present: for readiness, in words.
func (a *Authenticator) Check() error {
	s := a.state.Load()
	if s.policy == nil {
		return nil
	}
	var errs []error
	for _, named := range s.policy.issuers {
		if i := s.issuers[named.URL]; i.ready.Load() == nil {
			if failed := i.failed.Load(); failed != nil {
				errs = append(errs, fmt.Errorf("OIDC issuer %s: %w", i.URL, *failed))
			} else {
				errs = append(errs, fmt.Errorf("OIDC issuer %s has not answered yet", i.URL))
			}
		}
	}
	return errors.Join(errs...)
}

// AllowsWithoutCertificate reports whether the policy in force has a rule for callers without a client certificate. Without
// a policy it is false: then, whoever asks for certificates wants one of everybody.
func (a *Authenticator) AllowsWithoutCertificate() bool {
	p := a.state.Load().policy
	return p != nil && p.AllowsWithoutCertificate()
}

// Authenticate says who makes the call, and how it goes on. The peer and the incoming metadata are in ctx, where gRPC puts
// them; the method is its short or its full gRPC name. If it fails, all that the Grant can have is the Caller, as far as it
// has been verified: for the audit record, and for nothing else.
//
// The error is one of this package's, or the context's if it ended while an issuer was asked.
func (a *Authenticator) Authenticate(ctx context.Context, method string) (Grant, error) {
	var room [4]Caller
	leaf := verifiedLeaf(ctx)
	identities := room[:0]
	if leaf != nil {
		identities = appendCertificateCallers(identities, leaf)
	}
	var refused Grant
	if len(identities) > 0 {
		refused.Caller = identities[0]
	}

	jwt, bearer, err := parseCredential(callCredentials(ctx))
	brought := err == nil
	if err != nil && !errors.Is(err, ErrMissing) {
		return refused, err
	}
	s := a.state.Load()
	switch {
	case s.policy == nil && a.profile == "":
		if !brought {
			return refused, ErrMissing
		}
		if refused.Caller == (Caller{}) {
			refused.Caller.Kind = KindAtlas
		}
		return Grant{Caller: refused.Caller, Profile: Passthrough, JWT: jwt}, nil
	case s.policy == nil:
		return a.byCertificate(leaf, refused, brought, method)
	}

	isAtlas := brought
	if brought && bearer {
		claimed, err := peekIssuer(string(jwt))
		if err != nil {
			return refused, err
		}
		if claimed != "" {
			isAtlas = false
			caller, err := s.verifyToken(ctx, claimed, string(jwt))
			if err != nil {
				return refused, err
			}
			identities = append(identities, caller)
		}
	}
	if isAtlas {
		identities = append(identities, Caller{Kind: KindAtlas})
	}
	switch {
	case len(identities) == 0 && leaf != nil:
		return refused, fmt.Errorf("%w, and its client certificate names nobody: it has no DNS name, or a SPIFFE ID that is not valid", ErrMissing)
	case len(identities) == 0:
		return refused, ErrMissing
	}
	d, err := s.policy.Decide(identities, method)
	if err != nil {
		return Grant{Caller: d.Caller}, err
	}
	switch {
	case d.Profile == Passthrough && !isAtlas:
		return Grant{Caller: d.Caller}, fmt.Errorf("%w: %s is to bring its own Atlas JWT", ErrMissing, d.Caller)
	case d.Profile == Passthrough:
		return Grant{Caller: d.Caller, Profile: Passthrough, JWT: jwt}, nil
	case isAtlas:
		return Grant{Caller: d.Caller}, fmt.Errorf("%w: %s has profile %s and brings an Atlas JWT", ErrAmbiguous, d.Caller, d.Profile)
	}
	return Grant{Caller: d.Caller, Profile: d.Profile, UserauthtokenFile: s.policy.files[d.Profile]}, nil
}

// byCertificate lets in whoever the TLS layer has verified, and nobody else.
func (a *Authenticator) byCertificate(leaf *x509.Certificate, caller Grant, brought bool, method string) (Grant, error) {
	switch {
	case leaf == nil && brought:
		return caller, ErrUnknownCaller
	case leaf == nil:
		return caller, ErrMissing
	case brought:
		return caller, fmt.Errorf("%w: callers have profile %s, and this one brings an authorization value", ErrAmbiguous, a.profile)
	case methodBit(method) == 0:
		return caller, ErrNotPermitted
	}
	caller.Profile = a.profile
	return caller, nil
}

// verifyToken has the issuer that a token claims to be from verify it.
func (s *state) verifyToken(ctx context.Context, claimed, token string) (Caller, error) {
	i := s.issuers[claimed]
	if i == nil {
		return Caller{}, fmt.Errorf("%w: the policy does not name its issuer", ErrCallerRejected)
	}
	return i.verify(ctx, token)
}
