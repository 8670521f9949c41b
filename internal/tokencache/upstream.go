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

// upstream is the last layer, which calls Atlas. It does not call Atlas with a throttled credential
// until the time that Atlas named has passed. A profile stays the same credential when its JWT is
// renewed.
type upstream struct {
	atlas Atlas
	until *recent[time.Time] // when Atlas may be called again, by throttled credential
}

func newUpstream(a Atlas) *upstream { return &upstream{a, newRecent[time.Time](maxTokens)} }

func (u *upstream) create(ctx context.Context, r request) (Result, error) {
	if err := u.throttled(r.key, atlas.OpCreate); err != nil {
		return Result{}, err
	}
	token, err := atlas.WithReLogin(ctx, r.cred, u.atlas.CreateEphemeralToken)
	if err != nil {
		u.note(r.key, err)
		return Result{}, err
	}
	return Result{Token: token, Org: r.claims.OrgID}, nil // Atlas has just accepted the JWT
}

func (u *upstream) delete(ctx context.Context, r request) (string, error) {
	if err := u.throttled(r.key, atlas.OpDelete); err != nil {
		return "", err
	}
	_, err := atlas.WithReLogin(ctx, r.cred, func(ctx context.Context, jwt atlas.JWT) (struct{}, error) {
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
	if err != nil {
		u.note(r.key, err)
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

// note records an answer by which Atlas throttles a credential. Of two waits, the longer counts.
// Those of logins are for atlas.Identity.
func (u *upstream) note(k key, err error) {
	e, ok := errors.AsType[*atlas.Error](err)
	if !ok || atlas.Classify(err) != atlas.ClassThrottled || e.Op != atlas.OpCreate && e.Op != atlas.OpDelete {
		return
	}
	until := time.Now().Add(cmp.Or(e.RetryAfter, defaultHoldOff))
	if known, _ := u.until.get(k); until.After(known) {
		u.until.add(k, until)
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
