package auth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Config says who is let in. With neither Policy nor DefaultProfile, everybody with an Atlas JWT is, and Atlas decides.
type Config struct {
	// Policy says who may do what. It can be replaced while running.
	Policy *Policy
	// DefaultProfile is the profile of every caller with a verified client certificate, whoever it names; nobody else is
	// let in. Not together with Policy.
	DefaultProfile string
	// Sources has one for each profile of the Policy, or the DefaultProfile's.
	Sources Sources
	// RootCAs returns the authorities of the OIDC issuers' certificates. It is asked for each request to one, so they can be
	// replaced. If nil, they are the system's.
	RootCAs func() *x509.CertPool
	// Logger is told of issuers that cannot be reached. If nil, nobody is.
	Logger *slog.Logger

	timing timing // of tests
}

// Authenticator says for each call who makes it, and how it goes on to Atlas.
type Authenticator struct {
	cfg   Config
	state atomic.Pointer[state]

	mu   sync.Mutex      // guards the succession of states
	ctx  context.Context // of all issuers
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// state is a policy with all that it names; without one, the sources alone.
type state struct {
	policy  *Policy
	sources Sources
	issuers map[string]*issuer // by URL
}

// New returns an Authenticator that is ready at once, also if an OIDC issuer is not: its callers are then told to wait. It
// must be closed.
func New(cfg Config) (*Authenticator, error) {
	switch {
	case cfg.Policy != nil && cfg.DefaultProfile != "":
		return nil, errors.New("a policy and a default profile contradict each other: the policy says which profile is for whom")
	case cfg.DefaultProfile == Passthrough:
		return nil, fmt.Errorf("the default profile cannot be %s", Passthrough)
	case cfg.DefaultProfile != "" && cfg.Sources[cfg.DefaultProfile] == nil:
		return nil, fmt.Errorf("profile %s has no source", cfg.DefaultProfile)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.timing == (timing{}) {
		cfg.timing = defaultTiming
	}
	a := &Authenticator{cfg: cfg}
	a.ctx, a.stop = context.WithCancel(context.Background())
	a.state.Store(&state{sources: cfg.Sources})
	if cfg.Policy != nil {
		if err := a.install(cfg.Policy, cfg.Sources); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// NewPassThrough returns the Authenticator of a service that holds no profile: everybody with an Atlas JWT is let in with it, and
// Atlas decides.
func NewPassThrough() *Authenticator {
	a, _ := New(Config{}) // which nothing can be wrong with
	return a
}

// SetPolicy replaces the policy, and the sources of its profiles with it. A call that has begun is decided by the policy it
// began with, and goes on with that one's source. Issuers that both policies name keep their keys. It fails if a profile
// has no source; if there was no policy before, since it would turn a service that is open to every Atlas JWT into
// another one or back; and after Close.
func (a *Authenticator) SetPolicy(p *Policy, sources Sources) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case p == nil || a.state.Load().policy == nil:
		return errors.New("a policy can only replace a policy")
	case a.ctx.Err() != nil:
		return errors.New("the authenticator is closed")
	}
	return a.install(p, sources)
}

// install makes p the policy in force. Whoever calls it holds mu, or is New.
func (a *Authenticator) install(p *Policy, sources Sources) error {
	for _, profile := range p.profiles {
		if sources[profile.Name] == nil {
			return fmt.Errorf("profile %s has no source", profile.Name)
		}
	}
	old := a.state.Load()
	next := &state{policy: p, sources: sources, issuers: make(map[string]*issuer, len(p.issuers))}
	for _, named := range p.issuers {
		i := old.issuers[named.URL]
		if i == nil || i.issuerConfig != named {
			i = a.start(named)
		}
		next.issuers[named.URL] = i
	}
	a.state.Store(next)
	for url, i := range old.issuers {
		if next.issuers[url] != i {
			i.stop()
		}
	}
	return nil
}

func (a *Authenticator) start(named issuerConfig) *issuer {
	ctx, stop := context.WithCancel(a.ctx)
	i := &issuer{
		issuerConfig: named, roots: a.cfg.RootCAs, timing: a.cfg.timing, log: a.cfg.Logger,
		stop: stop, stopped: ctx.Done(), wanted: make(chan struct{}), waiting: make(chan struct{}, maxIssuerWaits),
	}
	i.last.Store(&fetched{next: make(chan struct{})})
	a.wg.Go(func() { i.run(ctx) })
	return i
}

// Close stops asking the issuers. Calls with an OIDC token may fail from then on. The sources are their owner's to close.
func (a *Authenticator) Close() {
	a.mu.Lock() // no issuer starts meanwhile
	a.stop()
	a.mu.Unlock()
	a.wg.Wait()
}

// Refused reports whether no call can succeed because Atlas refuses every profile, and no caller may bring a JWT of its own.
func (a *Authenticator) Refused() bool {
	s := a.state.Load()
	if len(s.sources) == 0 || s.policy != nil && s.policy.usesPassthrough() {
		return false
	}
	for _, source := range s.sources {
		if !source.Refused() {
			return false
		}
	}
	return true
}

// Starting reports whether the first login of a profile is in progress, so that it is not known yet whether all are refused.
func (a *Authenticator) Starting() bool {
	s := a.state.Load()
	if s.policy != nil && s.policy.usesPassthrough() {
		return false
	}
	for _, source := range s.sources {
		if source.Status().Starting {
			return true
		}
	}
	return false
}

// AllowsWithoutCertificate reports whether the policy in force has a rule for callers without a client certificate. Without
// a policy it is false: then, whoever asks for certificates wants one of everybody.
func (a *Authenticator) AllowsWithoutCertificate() bool {
	p := a.state.Load().policy
	return p != nil && p.allowsWithoutCertificate()
}

// Authenticate says who makes the call, and how it goes on. The peer and the incoming metadata are in ctx, where gRPC puts
// them; the method is its short or its full gRPC name. If it fails, all that the Grant can have is the Caller, as far as it
// has been verified: for the audit record, and for nothing else.
//
// The error is one of this package's, or the context's if it ended while an issuer was asked.
func (a *Authenticator) Authenticate(ctx context.Context, method string) (Grant, error) {
	callers, known, err := verifiedCallers(ctx)
	refused := Grant{Caller: known}
	if err != nil {
		return refused, err
	}
	jwt, bearer, err := parseCredential(callCredentials(ctx))
	isAtlas := err == nil // the JWT
	if err != nil && !errors.Is(err, ErrMissing) {
		return refused, err
	}
	s := a.state.Load()
	if s.policy == nil {
		return a.withoutPolicy(s, known, jwt, method)
	}
	if bearer {
		claimed, err := peekIssuer(string(jwt))
		if err != nil {
			return refused, err
		}
		if claimed != "" {
			isAtlas = false
			issuer := s.issuers[claimed]
			if issuer == nil {
				return refused, fmt.Errorf("%w: the policy does not name its issuer", ErrCallerRejected)
			}
			caller, err := issuer.verify(ctx, string(jwt))
			if err != nil {
				return refused, err
			}
			callers = append(callers, caller)
		}
	}
	if isAtlas {
		callers = append(callers, Caller{Kind: kindAtlas})
	}
	switch {
	case len(callers) == 0 && known != (Caller{}):
		return refused, fmt.Errorf("%w, and its client certificate names no caller: it has no DNS name, or a SPIFFE ID that is not valid", ErrMissing)
	case len(callers) == 0 && s.policy.asksForCertificates():
		return refused, ErrMissing
	case len(callers) == 0:
		return refused, noToken
	}
	d, err := s.policy.decide(callers, method)
	switch passthrough := d.Profile == Passthrough; {
	case err != nil:
	case passthrough && !isAtlas:
		err = fmt.Errorf("%w; %s must bring its own", noJWT, d.Caller)
	case passthrough:
		return s.grant(d.Caller, Passthrough, jwt), nil
	case isAtlas:
		err = fmt.Errorf("%w: %s has profile %s and brings an Atlas JWT", ErrAmbiguous, d.Caller, d.Profile)
	default:
		return s.grant(d.Caller, d.Profile, ""), nil
	}
	if d.Caller == (Caller{}) {
		return refused, err
	}
	return Grant{Caller: d.Caller}, err
}

// withoutPolicy lets in every caller with a verified certificate, if there is a default profile, else every caller with an Atlas JWT.
func (a *Authenticator) withoutPolicy(s *state, known Caller, jwt atlas.JWT, method string) (Grant, error) {
	profile, refused := a.cfg.DefaultProfile, Grant{Caller: known}
	switch {
	case jwt == "" && profile == "":
		return refused, noJWT
	case jwt == "" && known == (Caller{}):
		return refused, noCertificate
	case profile == "" && known == (Caller{}):
		return s.grant(Caller{Kind: kindAtlas}, Passthrough, jwt), nil
	case profile == "":
		return s.grant(known, Passthrough, jwt), nil
	case known == (Caller{}):
		return refused, ErrUnknownCaller
	case jwt != "":
		return refused, fmt.Errorf("%w: callers have profile %s, and this one brings an authorization value", ErrAmbiguous, profile)
	case !slices.Contains(methods, methodName(method)):
		return refused, ErrNotPermitted
	}
	return s.grant(known, profile, ""), nil
}

// grant lets a caller in, with the source of its profile.
func (s *state) grant(caller Caller, profile string, jwt atlas.JWT) Grant {
	return Grant{Caller: caller, Profile: profile, JWT: jwt, Source: s.sources[profile]}
}
