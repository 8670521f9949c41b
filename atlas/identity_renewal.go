package atlas

import (
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// assumedLife is the assumed life of a JWT without an exp. minLife is the least life of a JWT
	// that Atlas has just issued: if our clock says less, our clock is wrong.
	assumedLife = time.Hour
	minLife     = time.Minute
	// maxLife is the longest life by which a refresh is scheduled, whatever the exp says.
	maxLife = 48 * time.Hour

	// A refused login is not repeated sooner than minRefusedWait, since a series of them could lock
	// the account.
	minRefusedWait = 30 * time.Second
	maxRefusedWait = 5 * time.Minute

	// A login or refresh that failed for another reason than a refusal is repeated after these;
	// after an outage of Atlas always after the first, since that does no account any harm, and its
	// end should be noticed soon.
	minFailedWait = time.Second
	maxFailedWait = 30 * time.Second

	// freeLogins is how many JWTs in a row Atlas may refuse within minLife after it has issued
	// them. Each costs a login, and from then on logins are paced.
	freeLogins = 10
)

var errShortLived = errors.New("Atlas keeps refusing JWTs that it has just issued") //nolint:staticcheck // a name

// session is a JWT with the secret that it was issued for, so that the two always belong together.
type session struct {
	cred    Credential
	ahead   time.Duration // how far Atlas's clock is ahead of ours, if a JWT has shown it
	since   time.Time     // when the JWT came
	expires time.Time     // when the JWT is no longer used, on the monotonic clock
	refresh bool          // it came from a refresh
}

// renewal is one shared login or refresh.
type renewal struct {
	done chan struct{} // closed at the end
	cred Credential    // valid after done
	err  error         // valid after done

	// What happened since it began; guarded by Identity.mu.
	secretChanged bool // so a refusal may be of the old secret
	revoked       bool // Atlas refused the JWT that is being refreshed
}

// renew starts a renewal unless there is one or the identity is closed: a refresh of the current
// session, or a login if there is none. The caller holds mu.
func (i *Identity) renew() {
	if i.renewal != nil || i.ctx.Err() != nil {
		return
	}
	r := &renewal{done: make(chan struct{})}
	i.renewal = r
	current := i.session
	i.work.Go(func() {
		next, err := i.obtain(current)
		i.mu.Lock()
		defer i.mu.Unlock()
		for i.isOutdated(r, next, err) {
			r.secretChanged, r.revoked = false, false
			i.mu.Unlock()
			next, err = i.obtain(nil)
			i.mu.Lock()
		}
		i.renewal = nil
		if err != nil {
			i.failed(err)
			r.err = i.err
		} else {
			i.succeeded(next)
			r.cred = next.cred
		}
		close(r.done)
	})
}

// isOutdated reports whether a renewal has to log in again, because of what happened since it
// began. The caller holds mu.
func (i *Identity) isOutdated(r *renewal, next *session, err error) bool {
	if err == nil {
		return r.revoked && next.refresh // it was refreshed from a JWT that Atlas refuses, and may be refused like that
	}
	return r.secretChanged && i.ctx.Err() == nil && i.secret() != i.refused
}

// succeeded takes a new session. The caller holds mu.
func (i *Identity) succeeded(next *session) {
	i.session, i.eager = next, false
	i.err, i.failures, i.nextTry = nil, 0, time.Time{}
	now := i.clock.Now()
	life := assumedLife
	if expiry := next.cred.claims.Expiry; !expiry.IsZero() {
		life = max(expiry.Sub(now.Add(next.ahead)), minLife)
	}
	next.since, next.expires = now, now.Add(life)
	// Half of the life is a margin for a wrong clock, and the jitter keeps replicas that started
	// together apart.
	i.schedule(min(life, maxLife) * time.Duration(45+rand.IntN(10)) / 100) //nolint:gosec // not a secret
}

// failed notes a failure and when to try again. A JWT that is there stays: it may still work. A
// refused identity is tried again without a call, since none may come while the service is not
// ready. The caller holds mu.
func (i *Identity) failed(err error) {
	var wait time.Duration
	refused, isRefused := errors.AsType[*CredentialError](err)
	e, fromAtlas := errors.AsType[*Error](err)
	switch {
	case isRefused:
		i.failures++
		wait = backOff(minRefusedWait, maxRefusedWait, i.failures)
		err = &CredentialError{RetryAfter: wait, Err: refused.Err}
	case fromAtlas && e.Kind == KindUnavailable: // it was not even tried
		wait = e.RetryAfter
	case Classify(err) == ClassOutage:
		wait = backOff(minFailedWait, minFailedWait, 1)
	default:
		i.failures++
		wait = backOff(minFailedWait, maxFailedWait, i.failures)
	}
	if fromAtlas {
		wait = max(wait, e.RetryAfter)
	}
	now := i.clock.Now()
	i.err, i.failedAt, i.nextTry = err, now, now.Add(wait)
	if i.session != nil || isRefused || i.eager {
		i.schedule(wait)
	}
}

// schedule starts a renewal after wait, in place of the one scheduled before. The caller holds mu.
func (i *Identity) schedule(wait time.Duration) {
	if i.stop != nil {
		i.stop()
	}
	if i.retired {
		return
	}
	due := i.clock.Now().Add(wait)
	i.nextDue = due
	i.stop = i.clock.AfterFunc(wait, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.nextDue != due {
			return // it had fired when another was scheduled in its place
		}
		// Without a JWT there is nothing to refresh, and the next caller logs in, except before the
		// first login has been accepted: a wrong secret has to be noticed without a caller.
		if i.session != nil || i.isRefused() || i.eager {
			i.renew()
		}
	})
}

// backOff doubles least with each failure in a row, up to most, and adds up to a fifth.
func backOff(least, most time.Duration, failures int) time.Duration {
	wait := min(least<<min(failures-1, 10), most)
	return wait + rand.N(wait/5) //nolint:gosec // not a secret
}

// obtain refreshes the current session, and logs in if there is none or Atlas will not refresh it.
func (i *Identity) obtain(current *session) (*session, error) {
	if current != nil {
		jwt, err := i.atlas.RefreshJWT(i.ctx, current.cred.JWT)
		i.onEvent(IdentityEvent{OpRefresh, err})
		if err == nil {
			return i.newSession(jwt, current.cred.Secret, current), nil
		}
		if Classify(err) != ClassUnauthorized {
			return nil, err
		}
	}
	// A new secret may be truncated or wrong, so the last accepted one is tried too.
	first, second := i.secret(), i.accepted
	if second != "" && first == i.refused {
		first, second = second, first
	}
	next, err := i.logIn(first)
	if Classify(err) == ClassUnauthorized && second != "" && second != first {
		next, err = i.logIn(second)
	}
	if Classify(err) == ClassUnauthorized {
		err = &CredentialError{Err: err}
	}
	return next, err
}

// logIn tries one secret. One that was refused is not tried beside another again, so no two refused
// logins follow each other more than once.
func (i *Identity) logIn(secret UserAuthToken) (*session, error) {
	jwt, err := i.atlas.LogIn(i.ctx, secret)
	i.onEvent(IdentityEvent{OpLogIn, err})
	if err != nil {
		if Classify(err) == ClassUnauthorized {
			i.refused = secret
			if i.accepted == secret {
				i.accepted = ""
			}
		}
		return nil, err
	}
	i.accepted = secret
	return i.newSession(jwt, secret, nil), nil
}

// newSession is a JWT that Atlas has just issued for secret, at a login or to refresh the session
// before.
func (i *Identity) newSession(jwt JWT, secret UserAuthToken, before *session) *session {
	claims := jwt.UnverifiedClaims()
	next := &session{cred: Credential{JWT: jwt, Profile: i.profile, Secret: secret, claims: &claims, identity: i}, refresh: before != nil}
	// When it was issued is now, so where Atlas says when that was, the difference is our clock's.
	issued := claims.issuedAt
	switch {
	case issued.IsZero() && before == nil:
		issued = claims.loggedInAt
	case issued.IsZero():
		next.ahead = before.ahead
	}
	if !issued.IsZero() {
		next.ahead = issued.Sub(i.clock.Now())
	}
	return next
}
