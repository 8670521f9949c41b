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

// ErrClosed is returned by an Identity after Close.
var ErrClosed = errors.New("the identity is closed")

// CredentialError says that Atlas refuses the credential that an Identity holds. No caller can do
// anything about it.
type CredentialError struct {
	RetryAfter time.Duration // until the next login is tried
	Err        error         // what Atlas said, safe to log
}

func (e *CredentialError) Error() string {
	return fmt.Sprintf("Atlas refuses the service's own credential: %v", e.Err)
}

func (e *CredentialError) Unwrap() error { return e.Err }

// IdentityProvider is what an Identity needs of Atlas. *Client is one.
type IdentityProvider interface {
	LogIn(ctx context.Context, secret UserAuthToken) (JWT, error)
	RefreshJWT(ctx context.Context, jwt JWT) (JWT, error)
}

// IdentityConfig configures an Identity.
type IdentityConfig struct {
	// Client logs in and refreshes. Required.
	Client IdentityProvider
	// Profile is the Profile of every Credential. It must be unique among the identities that are
	// in use. Required.
	Profile string
	// Secret returns the bot's userauthtoken. It is called for each login, so that a replaced
	// secret is used. If Atlas refuses that, the last secret that Atlas accepted is used as long as
	// Atlas accepts it. Required.
	Secret func() UserAuthToken
	// OnEvent, if set, is called after each login and refresh. It must not block.
	OnEvent func(IdentityEvent)
	// Clock says when to refresh, and when a login may be repeated. Default: the system's.
	Clock Clock
}

// IdentityEvent reports the end of a login or refresh. Err is nil if it succeeded.
type IdentityEvent struct {
	Op  Operation
	Err error
}

// Routine reports whether the failure is expected: Atlas refuses a refresh once the login behind
// the JWT is too old. A login follows.
func (e IdentityEvent) Routine() bool {
	return e.Op == OpRefresh && Classify(e.Err) == ClassUnauthorized
}

// Identity is an Atlas user that this service calls Atlas as. It has the user's JWT: it logs in
// when first asked, refreshes at about half of the JWT's remaining life, and logs in again when a
// refresh is refused. All callers share one login; each waits no longer than its own context
// allows, and none cancels it for the others.
//
// Atlas decides whether a JWT still works. A wrong clock here leads to an early refresh, or to a
// 401 after which [WithReLogin] logs in again, but not to a failed call.
type Identity struct {
	profile string
	atlas   IdentityProvider
	secret  func() UserAuthToken
	onEvent func(IdentityEvent)
	clock   Clock

	ctx    context.Context // of all logins and refreshes; done after Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	session  *session    // guarded by mu; nil if there is none
	renewal  *renewal    // guarded by mu; the one in progress, or nil
	stop     func() bool // guarded by mu; cancels the scheduled renewal; nil if none was ever scheduled
	failures int         // guarded by mu; in a row, outages of Atlas excluded
	nextTry  time.Time   // guarded by mu; no login before this
	nextDue  time.Time   // guarded by mu; of the scheduled renewal
	eager    bool        // guarded by mu; renews without a caller: from Start until Atlas accepts the identity
	failedAt time.Time   // guarded by mu; of the last login or refresh that failed, zero if none ever did
	err      error       // guarded by mu; of the last login or refresh
	retired  bool        // guarded by mu

	shortLived int                   // guarded by mu; JWTs in a row that Atlas refused within minLife
	blocked    map[Operation]blocked // guarded by mu

	// Secrets. Only the renewal in progress uses them, and there is one at a time, so mu does not
	// guard them.
	accepted UserAuthToken // the last one that Atlas accepted; "" if it has refused that since
	refused  UserAuthToken // the last one that Atlas refused
}

// NewIdentity returns an Identity. It does no I/O: Start, or the first call of Credential, logs in.
func NewIdentity(config IdentityConfig) *Identity {
	i := &Identity{
		profile: config.Profile, atlas: config.Client, secret: config.Secret, onEvent: config.OnEvent,
		clock: config.Clock.withDefaults(), blocked: map[Operation]blocked{},
	}
	if i.onEvent == nil {
		i.onEvent = func(IdentityEvent) {}
	}
	i.ctx, i.cancel = context.WithCancel(WithTenant(context.Background(), Tenant{Profile: config.Profile}))
	return i
}

// Start begins the first login, so that it is known whether Atlas lets the identity in before a
// caller needs it.
func (i *Identity) Start() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.session == nil && i.failedAt.IsZero() {
		i.eager = true
		i.renew()
	}
}

// Credential returns the current JWT at once, or waits for a login. It fails with a
// [*CredentialError] while Atlas refuses the identity, with the [*Error] of the last login until
// the next one may be tried, or with ctx's error.
func (i *Identity) Credential(ctx context.Context) (Credential, error) {
	i.mu.Lock()
	if i.ctx.Err() != nil {
		i.mu.Unlock()
		return Credential{}, ErrClosed
	}
	if i.session != nil && i.clock.Now().Before(i.session.expires) {
		defer i.mu.Unlock()
		return i.session.cred, nil
	}
	i.session = nil
	if i.renewal == nil {
		if wait := i.clock.until(i.nextTry); wait > 0 {
			defer i.mu.Unlock()
			return Credential{}, i.waitError(wait)
		}
		i.renew()
	}
	renewal := i.renewal
	i.mu.Unlock()

	select {
	case <-renewal.done:
		return renewal.cred, renewal.err
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
}

// waitError is the last error, with the remaining wait. The caller holds mu.
func (i *Identity) waitError(wait time.Duration) error {
	if refused, ok := errors.AsType[*CredentialError](i.err); ok {
		return &CredentialError{RetryAfter: wait, Err: refused.Err}
	}
	if failed, ok := errors.AsType[*Error](i.err); ok && failed.RetryAfter > 0 {
		left := *failed
		left.RetryAfter = wait
		return &left
	}
	return i.err
}

// Invalidate drops jwt, which Atlas has refused, if it is still the current one. So a thousand
// callers that were refused with the same JWT cause one login.
func (i *Identity) Invalidate(jwt JWT) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.session == nil || i.session.cred.JWT != jwt {
		return
	}
	now := i.clock.Now()
	i.shortLived++
	if now.Sub(i.session.since) >= minLife {
		i.shortLived = 1
	}
	i.session = nil
	if i.renewal != nil {
		i.renewal.revoked = true
		return
	}
	if n := i.shortLived - freeLogins; n > 0 {
		wait := backOff(minFailedWait, maxRefusedWait, n)
		i.err, i.failedAt, i.nextTry = &CredentialError{RetryAfter: wait, Err: errShortLived}, now, now.Add(wait)
		i.schedule(wait)
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
func (i *Identity) block(e *Error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	now, b := i.clock.Now(), i.blocked[e.Op]
	i.failedAt = now
	if !now.Before(b.until) { // otherwise another call has noted it
		if now.Sub(b.until) >= minLife {
			b.rejections = 0
		}
		b.rejections++
		b.until = now.Add(backOff(minFailedWait, minRefusedWait, b.rejections))
		i.blocked[e.Op] = b
	}
	return &CredentialError{RetryAfter: b.until.Sub(now), Err: e}
}

// blockedError returns the error of an operation that was refused, if another login is not worth
// trying yet.
func (i *Identity) blockedError(e *Error) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if wait := i.clock.until(i.blocked[e.Op].until); wait > 0 {
		return &CredentialError{RetryAfter: wait, Err: e}
	}
	return nil
}

// SecretChanged says that there is a new secret. If Atlas has refused the last one, or is asked
// with it at present, the new one is tried at once; otherwise with the next login.
func (i *Identity) SecretChanged() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.blocked) > 0 { // some operations fail with the JWT
		i.session = nil
	}
	refused := i.isRefused() || len(i.blocked) > 0
	i.nextTry, i.failures, i.shortLived = time.Time{}, 0, 0
	clear(i.blocked)
	if i.renewal != nil {
		i.renewal.secretChanged = true
	} else if refused {
		i.renew()
	}
}

// IdentityStatus is the state of an Identity.
type IdentityStatus struct {
	Starting bool      // the first login is in progress
	Valid    bool      // there is a JWT that has not expired
	Refused  bool      // Atlas refuses the identity or its creates, so none can succeed
	Err      error     // why the last login or refresh failed, or why operations fail with the JWT; nil if all is well
	Issued   time.Time // when the JWT came; zero without one
	Expires  time.Time // when it is no longer used; zero without one
	NextDue  time.Time // when the next login or refresh is scheduled; zero if none is
	FailedAt time.Time // when a login or refresh last failed; zero if none ever did
}

// Status returns the state of the identity. It does not log in.
func (i *Identity) Status() IdentityStatus {
	i.mu.Lock()
	defer i.mu.Unlock()
	status, now := IdentityStatus{FailedAt: i.failedAt, Refused: i.isRefused(), Err: i.err}, i.clock.Now()
	status.Starting = i.renewal != nil && i.session == nil && i.failedAt.IsZero() && i.nextDue.IsZero()
	if now.Before(i.nextDue) {
		status.NextDue = i.nextDue
	}
	if i.session != nil && now.Before(i.session.expires) {
		status.Valid, status.Refused = true, now.Before(i.blocked[OpCreate].until)
		status.Issued, status.Expires = i.session.since, i.session.expires
	}
	for _, op := range slices.Sorted(maps.Keys(i.blocked)) {
		if wait := i.blocked[op].until.Sub(now); wait > 0 && status.Err == nil {
			status.Err = &CredentialError{RetryAfter: wait, Err: fmt.Errorf("%s: %w", op, errBlocked)}
		}
	}
	return status
}

var errBlocked = errors.New("Atlas answers 401 although it has just issued the JWT") //nolint:staticcheck // a name

// isRefused reports whether the last login was refused. A login is then tried again from time to
// time without a call. The caller holds mu.
func (i *Identity) isRefused() bool {
	_, refused := errors.AsType[*CredentialError](i.err)
	return refused
}

// Retire stops scheduling refreshes, because no new calls will come. Calls that have the identity
// already still get a JWT, by a login if necessary.
func (i *Identity) Retire() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.retired = true
	if i.stop != nil {
		i.stop()
	}
}

// Close ends what is in progress and waits for it. Credential fails from then on.
func (i *Identity) Close() {
	i.Retire()
	i.mu.Lock()
	i.cancel()
	i.mu.Unlock()
	i.work.Wait()
}

// Clock is an Identity's clock. The zero Clock is the system's; tests have one that they can
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
