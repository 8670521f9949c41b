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

// TokenSource has the JWT of one Atlas identity: it logs in when first asked, refreshes at about half of the JWT's
// remaining life, and logs in anew when a refresh is refused. All callers share one login; each waits no longer than its
// own context allows, and none ends it for the others.
//
// Whether a JWT still works is Atlas's to say: a wrong clock here leads to an early refresh or to a 401 that [WithJWT]
// heals, never to a failed call.
type TokenSource struct {
	atlas   identityProvider
	secret  func() (UserAuthToken, error)
	onEvent func(TokenEvent)
	clock   Clock

	ctx    context.Context // of all logins and refreshes
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu       sync.Mutex
	jwt      JWT           // guarded by mu; "" if there is none
	had      UserAuthToken // guarded by mu; what jwt was had with
	expires  time.Time     // guarded by mu; when jwt is given up, on the monotonic clock
	renewal  *renewal      // guarded by mu; in progress, nil if none is
	stop     func() bool   // guarded by mu; keeps the next refresh from starting, nil if there never was one
	failures int           // guarded by mu; in a row
	nextTry  time.Time     // guarded by mu; no login before this
	err      error         // guarded by mu; why the last login or refresh failed, nil if it did not
	closed   bool          // guarded by mu
	retired  bool          // guarded by mu

	accepted UserAuthToken // of the renewal in progress; the last one that Atlas took, "" if it takes none any more
	refused  UserAuthToken // of the renewal in progress; the last one that Atlas did not take
}

// renewal is one shared login or refresh.
type renewal struct {
	done chan struct{} // closed at the end
	jwt  JWT           // valid after done
	had  UserAuthToken // valid after done; what jwt was had with
	err  error         // valid after done
}

// NewTokenSource returns a TokenSource. It does no I/O; the first login happens when the first token is asked for.
func NewTokenSource(config TokenSourceConfig) *TokenSource {
	return newTokenSource(config.Client, config)
}

func newTokenSource(atlas identityProvider, config TokenSourceConfig) *TokenSource {
	s := &TokenSource{atlas: atlas, secret: config.Secret, onEvent: config.OnEvent, clock: config.Clock.withDefaults()}
	if s.onEvent == nil {
		s.onEvent = func(TokenEvent) {}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Token returns the present JWT at once, or waits for a login. It fails with a [*CredentialError] while Atlas refuses the
// identity, with the [*Error] of the last login while that is not to be repeated yet, and with ctx's error.
func (s *TokenSource) Token(ctx context.Context) (JWT, error) {
	jwt, _, err := s.Credential(ctx)
	return jwt, err
}

// Credential is Token with the userauthtoken that the JWT was had with: the same for every process that has this
// identity, whereas each logs in to a JWT of its own.
func (s *TokenSource) Credential(ctx context.Context) (JWT, UserAuthToken, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return "", "", ErrClosed
	}
	if s.jwt != "" && s.clock.Now().Before(s.expires) {
		defer s.mu.Unlock()
		return s.jwt, s.had, nil
	}
	s.jwt = ""
	if s.renewal == nil {
		if wait := s.clock.until(s.nextTry); wait > 0 {
			defer s.mu.Unlock()
			return "", "", s.waitError(wait)
		}
		s.renew()
	}
	current := s.renewal
	s.mu.Unlock()

	select {
	case <-current.done:
		return current.jwt, current.had, current.err
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
}

// waitError is the last error, with the time that is left. The caller holds mu.
func (s *TokenSource) waitError(wait time.Duration) error {
	var refused *CredentialError
	if errors.As(s.err, &refused) {
		return &CredentialError{RetryAfter: wait, Err: refused.Err}
	}
	return s.err
}

// Invalidate drops jwt, which Atlas has refused, if it is still the present one. So a thousand callers that were refused
// with the same JWT cause one login.
func (s *TokenSource) Invalidate(jwt JWT) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jwt == jwt {
		s.jwt = ""
	}
}

// reject drops jwt, which Atlas has refused although it had just issued it. Another login would not help, and one for
// every call could lock the account, so this counts as a refused one.
func (s *TokenSource) reject(jwt JWT, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.jwt == jwt {
		s.jwt = ""
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

// renew starts the one renewal: a refresh of the present JWT, or a login if there is none. The caller holds mu.
func (s *TokenSource) renew() {
	r := &renewal{done: make(chan struct{})}
	s.renewal = r
	present := s.jwt
	s.work.Go(func() {
		jwt, err := s.obtain(present)
		had := s.accepted
		s.mu.Lock()
		defer s.mu.Unlock()
		s.renewal = nil
		if err != nil {
			s.failed(err)
			err = s.err
		} else {
			s.succeeded(jwt, had)
		}
		r.jwt, r.had, r.err = jwt, had, err
		close(r.done)
	})
}

// succeeded takes a new JWT. The caller holds mu.
func (s *TokenSource) succeeded(jwt JWT, had UserAuthToken) {
	s.jwt, s.had = jwt, had
	s.err, s.failures, s.nextTry = nil, 0, time.Time{}
	life := assumedLife
	if expiry := jwt.UnverifiedClaims().Expiry; !expiry.IsZero() {
		life = max(s.clock.until(expiry), minLife)
	}
	s.expires = s.clock.Now().Add(life)
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
	if s.jwt != "" {
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
		if !s.closed && s.renewal == nil && s.jwt != "" {
			s.renew()
		}
	})
}

// backOff doubles least with each failure in a row, up to most, and adds up to a fifth.
func backOff(least, most time.Duration, failures int) time.Duration {
	wait := min(least<<min(failures-1, 10), most)
	return wait + rand.N(wait/5) //nolint:gosec // not a secret
}

// WithJWT runs call with source's JWT. If Atlas refuses that with a 401, it is dropped, and call runs exactly once more
// with a new one. That is safe for a delete too: a 401 means that Atlas did not do it.
func WithJWT[T any](ctx context.Context, source *TokenSource, call func(context.Context, JWT) (T, error)) (T, error) {
	var none T
	jwt, err := source.Token(ctx)
	if err != nil {
		return none, err
	}
	answer, err := call(ctx, jwt)
	if !isUnauthorized(err) {
		return answer, err
	}
	source.Invalidate(jwt)
	if jwt, err = source.Token(ctx); err != nil {
		return none, err
	}
	answer, err = call(ctx, jwt)
	if isUnauthorized(err) {
		return none, source.reject(jwt, err)
	}
	return answer, err
}

func isUnauthorized(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == KindStatus && e.StatusCode == http.StatusUnauthorized
}
