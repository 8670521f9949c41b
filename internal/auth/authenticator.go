// Package auth identifies the caller of each call and decides what it may do, and with which
// credential Atlas is called on its behalf. It fetches the keys of OIDC issuers; it does not call
// Atlas.
//
// A caller is identified by its verified client certificate or by an OIDC token that verifies with
// its issuer's keys. Only Atlas can verify an Atlas JWT (HS256), so the claims in one are not
// trusted. No other header that names a caller is read.
package auth

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Passthrough is the profile of callers whose own Atlas JWT is passed on. The name is reserved.
const Passthrough = "passthrough"

// Identities has the identity of each profile by name. It must not change after it is passed on.
type Identities map[string]*atlas.Identity

// Grant is the result of authenticating a call.
type Grant struct {
	Caller Caller
	// Profile is the name of the profile to use at Atlas, or Passthrough.
	Profile string
	// JWT is the caller's own Atlas JWT; with Passthrough only.
	JWT atlas.JWT
	// Identity is the identity of the profile, nil with Passthrough. It belongs to the policy that
	// decided: a later policy may give the name to another Atlas user.
	Identity *atlas.Identity
}

// Credential returns the credential for Atlas: the caller's own JWT, or the profile's, which may
// need a login. It returns ErrMissing for the Grant of a refused call.
func (g Grant) Credential(ctx context.Context) (atlas.Credential, error) {
	switch {
	case g.Identity != nil:
		return g.Identity.Credential(ctx)
	case g.JWT != "":
		return atlas.Credential{JWT: g.JWT}, nil
	}
	return atlas.Credential{}, ErrMissing
}

// Config configures an [Authenticator].
type Config struct {
	// Policy says which callers may do what. SetPolicy can replace it. If nil, every caller with an
	// Atlas JWT is accepted, and Atlas decides.
	Policy *Policy
	// Identities has the identity of each profile of the Policy.
	Identities Identities
	// RootCAs returns the authorities trusted for OIDC issuers. It is called for each request. If
	// nil, the system's are trusted.
	RootCAs func() *x509.CertPool
	// Logger logs issuers that cannot be reached. It may be nil.
	Logger *slog.Logger

	timing timing // set by tests
}

// Authenticator identifies the caller of each call and its credential for Atlas.
type Authenticator struct {
	cfg   Config
	state atomic.Pointer[state]

	mu   sync.Mutex      // guards changes of state
	ctx  context.Context // of all issuers
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// state is a policy with its identities and issuers.
type state struct {
	policy     *Policy
	identities Identities
	issuers    map[string]*issuer // by URL
}

// New returns an Authenticator. It does not wait for OIDC issuers; until one answers, its callers
// get ErrCallerCheckUnavailable. The Authenticator must be closed.
func New(cfg Config) (*Authenticator, error) {
	cfg.Policy = cmp.Or(cfg.Policy, passThrough)
	cfg.Logger = cmp.Or(cfg.Logger, slog.New(slog.DiscardHandler))
	cfg.timing = cmp.Or(cfg.timing, defaultTiming)
	a := &Authenticator{cfg: cfg}
	a.ctx, a.stop = context.WithCancel(context.Background())
	a.state.Store(&state{})
	if err := a.SetPolicy(cfg.Policy, cfg.Identities); err != nil {
		return nil, err
	}
	return a, nil
}

// NewPassThrough returns an Authenticator that accepts every caller with an Atlas JWT and passes
// the JWT on.
func NewPassThrough() *Authenticator {
	a, _ := New(Config{}) // an empty Config is valid
	return a
}

// SetPolicy replaces the policy and the identities of its profiles. Calls in progress keep the
// policy and the identity they started with; issuers in both policies keep their keys. It fails if
// a profile has no identity, and after Close.
func (a *Authenticator) SetPolicy(p *Policy, identities Identities) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx.Err() != nil {
		return errors.New("the authenticator is closed")
	}
	for _, profile := range p.profiles {
		if identities[profile.Name] == nil {
			return fmt.Errorf("profile %s has no identity", profile.Name)
		}
	}
	old := a.state.Load()
	next := &state{policy: p, identities: identities, issuers: make(map[string]*issuer, len(p.issuers))}
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
		stop: stop, wanted: make(chan struct{}),
	}
	i.last.Store(&fetched{next: make(chan struct{})})
	a.wg.Go(func() { i.run(ctx) })
	return i
}

// Close stops fetching issuers' keys. Calls with an OIDC token may fail afterwards. It does not
// close the identities.
func (a *Authenticator) Close() {
	a.mu.Lock() // so that no issuer starts
	a.stop()
	a.mu.Unlock()
	a.wg.Wait()
}

// Refused reports whether no call can succeed because Atlas refuses every profile and no rule is
// for pass-through.
func (a *Authenticator) Refused() bool {
	s := a.state.Load()
	if s.policy.usesPassthrough() {
		return false
	}
	for _, identity := range s.identities {
		if !identity.Status().Refused {
			return false
		}
	}
	return true
}

// Starting reports whether the first login of a profile is in progress, so that Refused may change.
func (a *Authenticator) Starting() bool {
	s := a.state.Load()
	if s.policy.usesPassthrough() {
		return false
	}
	for _, identity := range s.identities {
		if identity.Status().Starting {
			return true
		}
	}
	return false
}

// AllowsWithoutCertificate reports whether the policy has a rule for callers without a client
// certificate.
func (a *Authenticator) AllowsWithoutCertificate() bool {
	return a.state.Load().policy.hasRule(kindOIDC, kindAtlas)
}

// Authenticate identifies the caller of a call and decides about it. It reads the peer and the
// incoming metadata from ctx; the method is the short or the full gRPC name. On failure the Grant
// has at most the Caller, for the audit record.
//
// The error wraps one of this package's, or is the context's.
func (a *Authenticator) Authenticate(ctx context.Context, method string) (Grant, error) {
	var refused Grant
	callers, err := certificateCallers(ctx)
	if len(callers) > 0 {
		refused.Caller = callers[0]
	}
	if err != nil {
		return refused, err
	}
	jwt, bearer, err := parseCredential(callCredentials(ctx))
	if err != nil && !errors.Is(err, ErrMissing) {
		return refused, err
	}
	s := a.state.Load()
	isAtlas := false // the JWT
	if jwt != "" {
		caller, err := s.verify(ctx, jwt, bearer)
		if err != nil {
			return refused, err
		}
		callers = append(callers, caller)
		isAtlas = caller.Kind == kindAtlas
	}
	caller, profile, err := s.policy.decide(callers, method)
	switch {
	case err != nil:
	case profile == Passthrough && !isAtlas:
		err = fmt.Errorf("%w; %s must bring its own", noJWT, caller)
	case profile != Passthrough && isAtlas:
		err = fmt.Errorf("%w: %s has profile %s and sent an Atlas JWT", ErrAmbiguous, caller, profile)
	case isAtlas:
		return Grant{Caller: caller, Profile: profile, JWT: jwt}, nil
	default:
		return Grant{Caller: caller, Profile: profile, Identity: s.identities[profile]}, nil
	}
	return Grant{Caller: cmp.Or(caller, refused.Caller)}, err
}

// verify returns the caller that a JWT identifies. An OIDC token is a Bearer token that names its
// issuer. A built-in policy leaves all JWTs to Atlas.
func (s *state) verify(ctx context.Context, jwt atlas.JWT, bearer bool) (Caller, error) {
	if !bearer || s.policy.isBuiltIn() {
		return Caller{Kind: kindAtlas}, nil
	}
	claimed, err := peekIssuer(string(jwt))
	switch {
	case err != nil:
		return Caller{}, err
	case claimed == "":
		return Caller{Kind: kindAtlas}, nil
	case s.issuers[claimed] == nil:
		return Caller{}, fmt.Errorf("%w: the policy does not name its issuer", ErrCallerRejected)
	}
	return s.issuers[claimed].verify(ctx, string(jwt))
}

// Profiles returns the state of each profile by name.
func (a *Authenticator) Profiles() map[string]atlas.IdentityStatus {
	status := map[string]atlas.IdentityStatus{}
	for profile, identity := range a.state.Load().identities {
		status[profile] = identity.Status()
	}
	return status
}

// IssuerStatus is the state of an OIDC issuer.
type IssuerStatus struct {
	OK   bool      // the last fetch of its keys succeeded
	Keys time.Time // when the keys in use were fetched; zero if there are none
	Err  error     // why there are none; names the issuer
}

// Issuers returns the state of each issuer by URL.
func (a *Authenticator) Issuers() map[string]IssuerStatus {
	status := map[string]IssuerStatus{}
	for url, issuer := range a.state.Load().issuers {
		last := issuer.last.Load()
		status[url] = IssuerStatus{OK: last.keys != nil && last.err == nil, Keys: last.keysAt, Err: last.check(url)}
	}
	return status
}
