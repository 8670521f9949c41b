package atlas

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

const (
	// assumedLife is how long a JWT is taken to live that does not say. minLife is the least for one that Atlas has just
	// issued: if our clock says less, our clock is wrong.
	assumedLife = time.Hour
	minLife     = time.Minute

	// A refused login is not repeated sooner than minRefusedWait, since a series of them could lock the account.
	minRefusedWait = 30 * time.Second
	maxRefusedWait = 5 * time.Minute

	// A login or refresh that failed for another reason than a refusal is repeated after these.
	minFailedWait = time.Second
	maxFailedWait = 30 * time.Second
)

// ErrClosed is returned by a TokenSource after Close.
var ErrClosed = errors.New("the token source is closed")

// Credential is what one call shows to Atlas.
type Credential struct {
	// JWT is what travels.
	JWT JWT
	// Profile names the service's own Atlas identity that the JWT is of, and Secret is what the JWT was traded for: the same
	// for every process that has this identity, whereas each logs in to a JWT of its own. Both are empty for a caller's own
	// JWT.
	Profile string
	Secret  UserAuthToken

	claims *Claims      // of the JWT, if they have been read already
	source *TokenSource // of a profile
}

// Claims reads what the JWT says of itself: to be believed only if Atlas has issued it to this process, as it has for a
// profile, or has just accepted it.
func (c Credential) Claims() Claims {
	if c.claims != nil {
		return *c.claims
	}
	return c.JWT.UnverifiedClaims()
}

// WithClaims is c with its claims read, which costs more than all else that is done with one: whoever asks for them twice
// does that first.
func (c Credential) WithClaims() Credential {
	claims := c.Claims()
	c.claims = &claims
	return c
}

// Renewed is what the profile of c has at present; c itself, if it is a caller's own.
func (c Credential) Renewed(ctx context.Context) (Credential, error) {
	if c.source == nil {
		return c, nil
	}
	return c.source.Credential(ctx)
}

// CredentialError says that Atlas refuses the credential that a TokenSource holds. No caller can do anything about it.
type CredentialError struct {
	RetryAfter time.Duration // until the next login is tried
	Err        error         // what Atlas said, safe to log
}

func (e *CredentialError) Error() string {
	return fmt.Sprintf("Atlas refuses the service's own credential: %v", e.Err)
}

func (e *CredentialError) Unwrap() error { return e.Err }

// identityProvider is what a TokenSource needs of Atlas. *Client is one.
type identityProvider interface {
	LogIn(ctx context.Context, secret UserAuthToken) (JWT, error)
	RefreshJWT(ctx context.Context, jwt JWT) (JWT, error)
}

// TokenSourceConfig says whose JWT a TokenSource has.
type TokenSourceConfig struct {
	// Client logs in and refreshes. Required.
	Client *Client
	// Profile is what every Credential is marked with: no two sources that are in use at once have the same. Required.
	Profile string
	// Secret returns the bot's userauthtoken. It is asked at each login, so that a replaced secret is used. If Atlas refuses
	// that, the last one that it took is used as long as it takes it. Required.
	Secret func() (UserAuthToken, error)
	// OnEvent, if set, hears of each login and refresh. It must not block.
	OnEvent func(TokenEvent)
	// Clock says when to refresh, and when a login may be repeated. Default: the system's.
	Clock Clock
}

// TokenEvent is one login or refresh, by its Op. Err is nil if it went well.
type TokenEvent struct {
	Op  Operation
	Err error
}

// Routine reports whether it is a failure that is nobody's concern: Atlas refuses a refresh once the login behind it is too
// old, and a login follows.
func (e TokenEvent) Routine() bool { return e.Op == OpRefresh && isRefusal(e.Err) }

// TokenSource has the JWT of one Atlas identity: it logs in when first asked, refreshes at about half of the JWT's
// remaining life, and logs in anew when a refresh is refused. All callers share one login; each waits no longer than its
// own context allows, and none ends it for the others.
//
// Whether a JWT still works is Atlas's to say: a wrong clock here leads to an early refresh or to a 401 that [WithReLogin]
// heals, never to a failed call.
type TokenSource struct {
	profile string
	atlas   identityProvider
	secret  func() (UserAuthToken, error)
	onEvent func(TokenEvent)
	clock   Clock

	ctx    context.Context // of all logins and refreshes
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	present  *session    // guarded by mu; nil if there is none
	renewal  *renewal    // guarded by mu; in progress, nil if none is
	stop     func() bool // guarded by mu; keeps the next refresh from starting, nil if there never was one
	failures int         // guarded by mu; in a row
	nextTry  time.Time   // guarded by mu; no login before this
	err      error       // guarded by mu; why the last login or refresh failed, nil if it did not
	closed   bool        // guarded by mu
	retired  bool        // guarded by mu

	// Of the renewal in progress.
	accepted UserAuthToken // the last one that Atlas took, "" if it takes none any more
	refused  UserAuthToken // the last one that Atlas did not take
}

// session is a JWT with the secret that it was traded for, from the login to the last refresh: the two are never put together
// from different places.
type session struct {
	cred    Credential
	ahead   time.Duration // how far Atlas's clock is ahead of ours, as far as a JWT has told
	expires time.Time     // when the JWT is given up, on the monotonic clock
}

// renewal is one shared login or refresh.
type renewal struct {
	done chan struct{} // closed at the end
	cred Credential    // valid after done
	err  error         // valid after done
}

// NewTokenSource returns a TokenSource. It does no I/O; the first login happens when the first token is asked for.
func NewTokenSource(config TokenSourceConfig) *TokenSource {
	return newTokenSource(config.Client, config)
}

func newTokenSource(atlas identityProvider, config TokenSourceConfig) *TokenSource {
	s := &TokenSource{profile: config.Profile, atlas: atlas, secret: config.Secret, onEvent: config.OnEvent, clock: config.Clock.withDefaults()}
	if s.onEvent == nil {
		s.onEvent = func(TokenEvent) {}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Credential returns the present JWT at once, or waits for a login. It fails with a [*CredentialError] while Atlas refuses
// the identity, with the [*Error] of the last login while that is not to be repeated yet, and with ctx's error.
func (s *TokenSource) Credential(ctx context.Context) (Credential, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Credential{}, ErrClosed
	}
	if s.present != nil && s.clock.Now().Before(s.present.expires) {
		defer s.mu.Unlock()
		return s.present.cred, nil
	}
	s.present = nil
	if s.renewal == nil {
		if wait := s.clock.until(s.nextTry); wait > 0 {
			defer s.mu.Unlock()
			return Credential{}, s.waitError(wait)
		}
		s.renew()
	}
	current := s.renewal
	s.mu.Unlock()

	select {
	case <-current.done:
		return current.cred, current.err
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
}

// waitError is the last error, with the time that is left. The caller holds mu.
func (s *TokenSource) waitError(wait time.Duration) error {
	if refused, ok := errors.AsType[*CredentialError](s.err); ok {
		return &CredentialError{RetryAfter: wait, Err: refused.Err}
	}
	if failed, ok := errors.AsType[*Error](s.err); ok && failed.RetryAfter > 0 {
		left := *failed
		left.RetryAfter = wait
		return &left
	}
	return s.err
}

// Invalidate drops jwt, which Atlas has refused, if it is still the present one. So a thousand callers that were refused
// with the same JWT cause one login.
func (s *TokenSource) Invalidate(jwt JWT) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(jwt)
}

// drop reports whether jwt was the present one, which there is none of from then on. The caller holds mu.
func (s *TokenSource) drop(jwt JWT) bool {
	if s.present == nil || s.present.cred.JWT != jwt {
		return false
	}
	s.present = nil
	return true
}

// reject drops jwt, which Atlas has refused although it had just issued it. Another login would not help, and one for
// every call could lock the account, so this counts as a refused one.
func (s *TokenSource) reject(jwt JWT, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drop(jwt) {
		s.failed(&CredentialError{Err: err})
	}
	return &CredentialError{RetryAfter: max(s.clock.until(s.nextTry), time.Second), Err: err}
}

// SecretChanged says that there is a new secret, so a login is worth trying again at once.
func (s *TokenSource) SecretChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextTry, s.failures = time.Time{}, 0
}

// Err is why the last login or refresh failed, nil if it did not.
func (s *TokenSource) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Retire says that no new call will ask: no refresh is scheduled any more. Calls that have the source already are answered
// as before, by a login if need be.
func (s *TokenSource) Retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	if s.stop != nil {
		s.stop()
	}
}

// Close ends what is in progress and waits for it. Token fails from then on.
func (s *TokenSource) Close() {
	s.mu.Lock()
	s.closed = true
	if s.stop != nil {
		s.stop()
	}
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
}

// renew starts the one renewal: a refresh of the present session, or a login if there is none. The caller holds mu.
func (s *TokenSource) renew() {
	r := &renewal{done: make(chan struct{})}
	s.renewal = r
	present := s.present
	s.work.Go(func() {
		next, err := s.obtain(present)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.renewal = nil
		if err != nil {
			s.failed(err)
			r.err = s.err
		} else {
			s.succeeded(next)
			r.cred = next.cred
		}
		close(r.done)
	})
}

// succeeded takes a new session. The caller holds mu.
func (s *TokenSource) succeeded(next *session) {
	s.present = next
	s.err, s.failures, s.nextTry = nil, 0, time.Time{}
	now := s.clock.Now()
	life := assumedLife
	if expiry := next.cred.claims.Expiry; !expiry.IsZero() {
		life = max(expiry.Sub(now.Add(next.ahead)), minLife)
	}
	next.expires = now.Add(life)
	// Half of the life is a margin for a wrong clock, and the jitter keeps replicas that started together apart.
	s.schedule(life * time.Duration(45+rand.IntN(10)) / 100) //nolint:gosec // not a secret
}

// failed notes a failure and when to try again. A JWT that is there stays: it may still work. The caller holds mu.
func (s *TokenSource) failed(err error) {
	s.failures++
	var refused *CredentialError
	wait := backOff(minFailedWait, maxFailedWait, s.failures)
	if errors.As(err, &refused) {
		wait = backOff(minRefusedWait, maxRefusedWait, s.failures)
		err = &CredentialError{RetryAfter: wait, Err: refused.Err}
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		wait = max(wait, e.RetryAfter)
	}
	s.err, s.nextTry = err, s.clock.Now().Add(wait)
	if s.present != nil {
		s.schedule(wait)
	}
}

// schedule starts a renewal after wait, in place of the one scheduled before. The caller holds mu.
func (s *TokenSource) schedule(wait time.Duration) {
	if s.stop != nil {
		s.stop()
	}
	if s.retired {
		return
	}
	s.stop = s.clock.AfterFunc(wait, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		// Without a JWT there is nothing to refresh, and the next caller logs in.
		if !s.closed && s.renewal == nil && s.present != nil {
			s.renew()
		}
	})
}

// backOff doubles least with each failure in a row, up to most, and adds up to a fifth.
func backOff(least, most time.Duration, failures int) time.Duration {
	wait := min(least<<min(failures-1, 10), most)
	return wait + rand.N(wait/5) //nolint:gosec // not a secret
}

// WithReLogin runs call with the JWT of cred. If Atlas refuses one of a profile with a 401, it is dropped, and call runs
// exactly once more after a new login. That is safe for a delete too: a 401 means that Atlas did not do it.
//
// A new login may be to another org, when the secret has been replaced by one of another Atlas user. What was begun for one
// org does not go on for another: that is [ErrOrgChanged].
func WithReLogin[T any](ctx context.Context, cred Credential, call func(context.Context, JWT) (T, error)) (T, error) {
	answer, err := call(ctx, cred.JWT)
	if cred.source == nil || !isUnauthorized(err) {
		return answer, err
	}
	var none T
	cred.source.Invalidate(cred.JWT)
	next, err := cred.Renewed(ctx)
	switch {
	case err != nil:
		return none, err
	case next.Claims().OrgID != cred.Claims().OrgID:
		return none, ErrOrgChanged
	}
	answer, err = call(ctx, next.JWT)
	if isUnauthorized(err) {
		return none, cred.source.reject(next.JWT, err)
	}
	return answer, err
}

// ErrOrgChanged says that the identity behind a call is now one of another org. Nothing was done; a call with the source's
// present Credential is for the new one.
var ErrOrgChanged = errors.New("the service's own credential is now one of another org")

func isUnauthorized(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == KindStatus && e.StatusCode == http.StatusUnauthorized
}
