package atlas

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// ErrClosed is returned by a TokenSource after Close.
var ErrClosed = errors.New("the token source is closed")

// CredentialError says that Atlas refuses the credential that a TokenSource holds. No caller can do
// anything about it.
type CredentialError struct {
	RetryAfter time.Duration // until the next login is tried
	Err        error         // what Atlas said, safe to log
}

func (e *CredentialError) Error() string {
	return fmt.Sprintf("Atlas refuses the service's own credential: %v", e.Err)
}

func (e *CredentialError) Unwrap() error { return e.Err }

// IdentityProvider is what a TokenSource needs of Atlas. *Client is one.
type IdentityProvider interface {
	LogIn(ctx context.Context, secret UserAuthToken) (JWT, error)
	RefreshJWT(ctx context.Context, jwt JWT) (JWT, error)
}

// TokenSourceConfig configures a TokenSource.
type TokenSourceConfig struct {
	// Client logs in and refreshes. Required.
	Client IdentityProvider
	// Profile is the Profile of every Credential. It must be unique among the sources that are in
	// use. Required.
	Profile string
	// Secret returns the bot's userauthtoken. It is called for each login, so that a replaced
	// secret is used. If Atlas refuses that, the last secret that Atlas accepted is used as long as
	// Atlas accepts it. Required.
	Secret func() (UserAuthToken, error)
	// OnEvent, if set, is called after each login and refresh. It must not block.
	OnEvent func(TokenEvent)
	// Clock says when to refresh, and when a login may be repeated. Default: the system's.
	Clock Clock
}

// TokenEvent reports the end of a login or refresh. Err is nil if it succeeded.
type TokenEvent struct {
	Op  Operation
	Err error
}

// Routine reports whether the failure is expected: Atlas refuses a refresh once the login behind
// the JWT is too old. A login follows.
func (e TokenEvent) Routine() bool { return e.Op == OpRefresh && Classify(e.Err) == ClassUnauthorized }

// TokenSource has the JWT of one Atlas identity: it logs in when first asked, refreshes at about
// half of the JWT's remaining life, and logs in again when a refresh is refused. All callers share
// one login; each waits no longer than its own context allows, and none cancels it for the others.
//
// Atlas decides whether a JWT still works. A wrong clock here leads to an early refresh, or to a
// 401 after which [WithReLogin] logs in again, but not to a failed call.
type TokenSource struct {
	profile string
	atlas   IdentityProvider
	secret  func() (UserAuthToken, error)
	onEvent func(TokenEvent)
	clock   Clock

	ctx    context.Context // of all logins and refreshes
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	present  *session    // guarded by mu; nil if there is none
	renewal  *renewal    // guarded by mu; the one in progress, or nil
	stop     func() bool // guarded by mu; cancels the scheduled renewal; nil if none was ever scheduled
	failures int         // guarded by mu; in a row, outages of Atlas excluded
	nextTry  time.Time   // guarded by mu; no login before this
	nextDue  time.Time   // guarded by mu; of the scheduled renewal
	starting bool        // guarded by mu; from Start until Atlas accepts the identity
	failedAt time.Time   // guarded by mu; of the last login or refresh that failed, zero if none ever did
	err      error       // guarded by mu; of the last login or refresh
	closed   bool        // guarded by mu
	retired  bool        // guarded by mu

	shortLived int                   // guarded by mu; JWTs in a row that Atlas refused within minLife
	blocked    map[Operation]blocked // guarded by mu

	// Secrets. Only the renewal in progress uses them, and there is one at a time, so mu does not
	// guard them.
	accepted UserAuthToken // the last one that Atlas accepted; "" if it has refused that since
	refused  UserAuthToken // the last one that Atlas refused
}

// NewTokenSource returns a TokenSource. It does no I/O: Start, or the first call of Credential,
// logs in.
func NewTokenSource(config TokenSourceConfig) *TokenSource {
	s := &TokenSource{
		profile: config.Profile, atlas: config.Client, secret: config.Secret, onEvent: config.OnEvent,
		clock: config.Clock.withDefaults(), blocked: map[Operation]blocked{},
	}
	if s.onEvent == nil {
		s.onEvent = func(TokenEvent) {}
	}
	s.ctx, s.cancel = context.WithCancel(WithProfile(context.Background(), config.Profile))
	return s
}

// Start begins the first login, so that it is known whether Atlas lets the identity in before a
// caller needs it.
func (s *TokenSource) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.renewal == nil && s.present == nil && s.failedAt.IsZero() {
		s.starting = true
		s.renew()
	}
}

// Credential returns the current JWT at once, or waits for a login. It fails with a
// [*CredentialError] while Atlas refuses the identity, with the [*Error] of the last login until
// the next one may be tried, or with ctx's error.
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

// waitError is the last error, with the remaining wait. The caller holds mu.
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

// Invalidate drops jwt, which Atlas has refused, if it is still the present one. So a thousand
// callers that were refused with the same JWT cause one login.
func (s *TokenSource) Invalidate(jwt JWT) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.present == nil || s.present.cred.JWT != jwt {
		return
	}
	now := s.clock.Now()
	s.shortLived++
	if now.Sub(s.present.since) >= minLife {
		s.shortLived = 1
	}
	s.present = nil
	if s.renewal != nil {
		s.renewal.revoked = true
		return
	}
	if n := s.shortLived - freeLogins; n > 0 {
		wait := backOff(minFailedWait, maxRefusedWait, n)
		s.err, s.failedAt, s.nextTry = &CredentialError{RetryAfter: wait, Err: errShortLived}, now, now.Add(wait)
		s.schedule(wait)
	}
}

// blocked says that Atlas has refused an operation with a JWT that it had just issued.
type blocked struct {
	until      time.Time // until then, a 401 for the operation causes no login
	rejections int       // in a row
}

// block notes that Atlas has refused an operation with a JWT that it had just issued. The JWT
// stays, since other operations may work. Perhaps it was revoked in that moment, so another login
// may be tried a second later; if none helps, the wait grows, since one for every call could lock
// the account.
func (s *TokenSource) block(e *Error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, b := s.clock.Now(), s.blocked[e.Op]
	s.failedAt = now
	if !now.Before(b.until) { // otherwise another call has noted it
		if now.Sub(b.until) >= minLife {
			b.rejections = 0
		}
		b.rejections++
		b.until = now.Add(backOff(minFailedWait, minRefusedWait, b.rejections))
		s.blocked[e.Op] = b
	}
	return &CredentialError{RetryAfter: b.until.Sub(now), Err: e}
}

// blockedError returns the error of an operation that was refused, if another login is not worth
// trying yet.
func (s *TokenSource) blockedError(e *Error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if wait := s.clock.until(s.blocked[e.Op].until); wait > 0 {
		return &CredentialError{RetryAfter: wait, Err: e}
	}
	return nil
}

// SecretChanged says that there is a new secret. If Atlas has refused the last one, or is asked
// with it at present, the new one is tried at once; otherwise with the next login.
func (s *TokenSource) SecretChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.blocked) > 0 { // some operations fail with the JWT
		s.present = nil
	}
	refused := s.isRefused() || len(s.blocked) > 0
	s.nextTry, s.failures, s.shortLived = time.Time{}, 0, 0
	clear(s.blocked)
	switch {
	case s.closed:
	case s.renewal != nil:
		s.renewal.secretChanged = true
	case refused:
		s.renew()
	}
}

// Err returns why the last login or refresh failed, or why operations fail with its JWT; nil if all
// is well.
func (s *TokenSource) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for _, op := range slices.Sorted(maps.Keys(s.blocked)) {
		if wait := s.clock.until(s.blocked[op].until); wait > 0 {
			return &CredentialError{RetryAfter: wait, Err: fmt.Errorf("%s: %w", op, errBlocked)}
		}
	}
	return nil
}

var errBlocked = errors.New("Atlas answers 401 although it has just issued the JWT") //nolint:staticcheck // a name

// Refused reports whether Atlas refuses the identity, so that no create can succeed. A login is
// tried again from time to time without a call.
func (s *TokenSource) Refused() bool { return s.Status().Refused }

// isRefused reports whether the last login was refused. The caller holds mu.
func (s *TokenSource) isRefused() bool {
	_, refused := errors.AsType[*CredentialError](s.err)
	return refused
}

// TokenStatus is the state of a TokenSource.
type TokenStatus struct {
	Starting bool      // the first login is in progress
	Valid    bool      // there is a JWT that has not expired
	Refused  bool      // see [TokenSource.Refused]
	Issued   time.Time // when the JWT came; zero without one
	Expires  time.Time // when it is no longer used; zero without one
	NextDue  time.Time // when the next login or refresh is scheduled; zero if none is
	FailedAt time.Time // when a login or refresh last failed; zero if none ever did
}

// Status returns the state of the source. It does not log in.
func (s *TokenSource) Status() TokenStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	status, now := TokenStatus{FailedAt: s.failedAt, Refused: s.isRefused()}, s.clock.Now()
	status.Starting = s.renewal != nil && s.present == nil && s.failedAt.IsZero() && s.nextDue.IsZero()
	if now.Before(s.nextDue) {
		status.NextDue = s.nextDue
	}
	if s.present != nil && now.Before(s.present.expires) {
		status.Valid, status.Refused = true, now.Before(s.blocked[OpCreate].until)
		status.Issued, status.Expires = s.present.since, s.present.expires
	}
	return status
}

// Retire stops scheduling refreshes, because no new calls will come. Calls that have the source
// already still get a JWT, by a login if necessary.
func (s *TokenSource) Retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	if s.stop != nil {
		s.stop()
	}
}

// Close ends what is in progress and waits for it. Credential fails from then on.
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

// Clock is a TokenSource's clock. The zero Clock is the system's; tests have one that they can
// move.
type Clock struct {
	// Now is time.Now.
	Now func() time.Time
	// AfterFunc is time.AfterFunc: it runs f once, in another goroutine, after d. The function that
	// it returns keeps f from running, if it has not begun.
	AfterFunc func(d time.Duration, f func()) (stop func() bool)
}

func (c Clock) withDefaults() Clock {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.AfterFunc == nil {
		c.AfterFunc = func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop }
	}
	return c
}

// until is time.Until.
func (c Clock) until(t time.Time) time.Duration { return t.Sub(c.Now()) }
