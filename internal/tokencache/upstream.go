package tokencache

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// upstream is the last layer, which calls Atlas, and remembers what it has said about a credential.
// It does not call Atlas with a throttled credential until the time that Atlas named has passed. A
// profile stays the same credential when its JWT is renewed.
type upstream struct {
	atlas    Atlas
	accepted *recent[struct{}]  // credentials that Atlas has accepted once: their claims are true
	until    *recent[time.Time] // when Atlas may be called again, by throttled credential
}

// maxAccepted bounds the credentials that are remembered as accepted. Those that are not accepted
// cannot displace any.
const maxAccepted = 16_384

func newUpstream(a Atlas) *upstream {
	return &upstream{a, newRecent[struct{}](maxAccepted), newRecent[time.Time](maxTokens)}
}

// verified reports whether the claims of a request are true. A JWT that Atlas has not accepted may
// be forged.
func (u *upstream) verified(r request) bool {
	_, accepted := u.accepted.get(r.key)
	return accepted || r.cred.Profile != ""
}

// withTenant returns a context that has the tenant of the request, if that is known.
func (u *upstream) withTenant(ctx context.Context, r request) context.Context {
	if r.cred.Profile != "" || !u.verified(r) {
		return ctx // WithReLogin names the profile
	}
	org := r.claims.OrgID
	if org == "" {
		org = string(r.key[:]) // a tenant of its own
	}
	return atlas.WithTenant(ctx, atlas.Tenant{Org: org})
}

func (u *upstream) create(ctx context.Context, r request) (Result, error) {
	if err := u.throttled(r.key, atlas.OpCreate); err != nil {
		return Result{}, err
	}
	token, err := atlas.WithReLogin(u.withTenant(ctx, r), r.cred, u.atlas.CreateEphemeralToken)
	u.note(r.key, err)
	if err != nil {
		return Result{}, err
	}
	return Result{Token: token, Org: r.claims.OrgID}, nil // Atlas has just accepted the JWT
}

func (u *upstream) delete(ctx context.Context, r request) (string, error) {
	if err := u.throttled(r.key, atlas.OpDelete); err != nil {
		return "", err
	}
	_, err := atlas.WithReLogin(u.withTenant(ctx, r), r.cred, func(ctx context.Context, jwt atlas.JWT) (struct{}, error) {
		if r.caller == nil {
			return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
		}
		if err := r.caller.Err(); err != nil {
			return struct{}{}, &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindCanceled, Err: err}
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Until there is a connection to write the request to, the caller can cancel it.
		stop := context.AfterFunc(r.caller, cancel)
		defer stop()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { stop() }})
		return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
	})
	u.note(r.key, err)
	if err != nil {
		return "", err
	}
	return r.claims.OrgID, nil
}

// defaultHoldOff is used, and told to callers, when Atlas throttles and does not say for how long.
const defaultHoldOff = time.Second

var errHeldOff = errors.New("Atlas has throttled this credential, and the time that it named has not passed")

// throttled returns what Atlas would answer, or nil if it may be called.
func (u *upstream) throttled(k key, op atlas.Operation) error {
	until, _ := u.until.get(k)
	left := time.Until(until)
	if left <= 0 {
		return nil
	}
	return &atlas.Error{Op: op, Kind: atlas.KindStatus, StatusCode: http.StatusTooManyRequests, RetryAfter: left, Err: errHeldOff}
}

// note records what Atlas has said about a credential. Of two waits, the longer counts. Those of
// logins are for atlas.Identity.
func (u *upstream) note(k key, err error) {
	switch atlas.Classify(err) {
	case atlas.ClassOK:
		u.accepted.add(k, struct{}{})
	case atlas.ClassThrottled:
		e, ok := errors.AsType[*atlas.Error](err)
		if !ok || e.Op != atlas.OpCreate && e.Op != atlas.OpDelete {
			return
		}
		until := time.Now().Add(cmp.Or(e.RetryAfter, defaultHoldOff))
		if known, _ := u.until.get(k); until.After(known) {
			u.until.add(k, until)
		}
	}
}

// isRefusal reports whether Atlas refused the credential.
func isRefusal(err error) bool {
	e, ok := errors.AsType[*atlas.Error](err)
	return atlas.Classify(err) == atlas.ClassUnauthorized || ok && e.Kind == atlas.KindStatus && e.StatusCode == http.StatusForbidden
}

// isFailure reports whether Atlas failed, rather than the caller. Throttling counts: a stale token
// helps then.
func isFailure(err error) bool {
	switch atlas.Classify(err) {
	case atlas.ClassOutage, atlas.ClassHeldBack, atlas.ClassThrottled:
		return true
	case atlas.ClassCanceled: // by the deadline of the shared call
		return errors.Is(err, context.DeadlineExceeded)
	}
	e, ok := errors.AsType[*atlas.Error](err)
	return ok && (e.Kind == atlas.KindTLS || e.Kind == atlas.KindRedirect || e.Kind == atlas.KindInvalidResponse)
}

// outcomeOf returns the outcome of a delete that ended with err. It is unknown unless the error
// says that Atlas was not asked, or has refused.
func outcomeOf(err error) outcome {
	e, ok := errors.AsType[*atlas.Error](err)
	switch {
	case err == nil:
		return outcomeDone
	case errors.Is(err, atlas.ErrOrgChanged), atlas.Classify(err) == atlas.ClassUnauthorized:
		return outcomeNotDone
	case ok && (e.Op != atlas.OpDelete || !e.OutcomeUnknown() && e.Kind != atlas.KindRedirect):
		return outcomeNotDone
	}
	return outcomeUnknown
}
