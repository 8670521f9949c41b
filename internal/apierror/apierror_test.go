package apierror

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// TestSentDelete checks that a delete that was sent has an unknown outcome and is not to be
// repeated, unless Atlas refused it.
func TestSentDelete(t *testing.T) {
	for _, kind := range []atlas.Kind{atlas.KindUnreachable, atlas.KindTLS, atlas.KindTimeout, atlas.KindCanceled, atlas.KindInvalidResponse} {
		err := &atlas.Error{Op: atlas.OpDelete, Kind: kind, Sent: true, RetryAfter: time.Second, Err: context.Canceled}
		if e := From(err); !e.OutcomeUnknown || e.RetryDelay() != 0 || e.Pushback() != "-1" {
			t.Errorf("%v: %v, outcome unknown %v, retry after %v, pushback %s", kind, e, e.OutcomeUnknown, e.RetryDelay(), e.Pushback())
		}
		err.Sent = false
		if e := From(err); e.OutcomeUnknown {
			t.Errorf("%v: a delete that was not sent has an unknown outcome", kind)
		}
		err.Op, err.Sent = atlas.OpCreate, true
		if e := From(err); e.OutcomeUnknown || e.Reason == DeleteOutcomeUnknown {
			t.Errorf("%v: a create is handled like a delete", kind)
		}
	}
	for status, unknown := range map[int]bool{401: false, 403: false, 404: false, 409: false, 429: false, 408: true, 425: true, 499: true, 500: true, 503: true} {
		e := From(&atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindStatus, StatusCode: status, Sent: true, Err: errors.New("x")})
		if e.OutcomeUnknown != unknown {
			t.Errorf("status %d: outcome unknown %v, want %v", status, e.OutcomeUnknown, unknown)
		}
		if unknown != (e.Reason == DeleteOutcomeUnknown) {
			t.Errorf("status %d: reason %s", status, e.ReasonName())
		}
	}
}

// TestFault04SentDeleteTimesOut checks that a delete that was sent and timed out has an unknown
// outcome.
func TestFault04SentDeleteTimesOut(t *testing.T) {
	for sent, want := range map[bool]Reason{true: DeleteOutcomeUnknown, false: AtlasTimeout} {
		e := From(&atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindTimeout, Sent: sent, Err: errors.New("x")})
		if e.Reason != want || e.OutcomeUnknown != sent {
			t.Errorf("sent: %t, got %s, outcome unknown: %t", sent, e.ReasonName(), e.OutcomeUnknown)
		}
	}
}

// TestPushback checks that the pushback is the delay of RetryInfo, rounded up, or -1.
func TestPushback(t *testing.T) {
	for delay, pushback := range map[time.Duration]string{
		0: "1000", time.Nanosecond: "1", 1500 * time.Microsecond: "2", 7 * time.Second: "7000", 5 * time.Minute: "300000",
	} {
		if got := (&Error{Reason: AtlasRateLimited, RetryAfter: delay}).Pushback(); got != pushback {
			t.Errorf("pushback of %v is %s, want %s", delay, got, pushback)
		}
	}
	for _, refused := range []Reason{
		CredentialMissing, CredentialMalformed, CredentialRejected, CallerRejected, CallerUnknown, CallerNotPermitted, AtlasForbidden,
		AtlasConflict, DeleteOutcomeUnknown, Internal,
	} {
		if got := (&Error{Reason: refused, RetryAfter: time.Second}).Pushback(); got != "-1" {
			t.Errorf("pushback of %v is %s, want -1", refused, got)
		}
	}
}

func TestUnknownErrorIsInternal(t *testing.T) {
	if e := From(errors.New("planted")); e.Reason != Internal || e.GRPCStatus().Code() != codes.Internal || e.Error() != "INTERNAL" {
		t.Errorf("got %v", e)
	}
}

// TestAnswers checks that each reason of the proto has a valid answer, and that what only an
// operator can correct is logged as an error.
func TestAnswers(t *testing.T) {
	for number, name := range ephemeraltokenv1.ErrorReason_name {
		if number == 0 {
			continue
		}
		a, ok := answers[Reason(number)]
		if !ok {
			t.Errorf("%s has no answer", name)
			continue
		}
		if a.code == codes.OK || a.http < 400 || a.message == "" {
			t.Errorf("%s: %+v", name, a)
		}
		st := (&Error{Reason: Reason(number)}).GRPCStatus()
		if len(st.Details()) == 0 {
			t.Errorf("%s: no details", name)
		}
	}
	for _, forOperators := range []Reason{
		AtlasRoute, AtlasInvalidResponse, AtlasRedirect, AtlasTLS, ServiceCredentialRejected, Internal,
	} {
		if level := answers[forOperators].level; level != slog.LevelError {
			t.Errorf("%v is logged at %v", forOperators, level)
		}
	}
	if len(answers) != len(ephemeraltokenv1.ErrorReason_name)-1 {
		t.Errorf("%d answers for %d reasons", len(answers), len(ephemeraltokenv1.ErrorReason_name)-1)
	}
}

// TestNotAsked checks the answers to calls that were not sent to Atlas.
func TestNotAsked(t *testing.T) {
	for kind, want := range map[atlas.Kind]struct {
		reason Reason
		code   codes.Code
		given  time.Duration
		want   time.Duration
	}{
		atlas.KindUnavailable: {AtlasUnavailable, codes.Unavailable, 300 * time.Millisecond, 300 * time.Millisecond},
		atlas.KindOverloaded:  {Overloaded, codes.ResourceExhausted, 0, time.Second},
	} {
		for _, op := range []atlas.Operation{atlas.OpCreate, atlas.OpDelete, atlas.OpLogIn} {
			e := From(&atlas.Error{Op: op, Kind: kind, RetryAfter: want.given, Err: errors.New("x")})
			if e.Reason != want.reason || e.GRPCStatus().Code() != want.code || e.RetryDelay() != want.want || e.OutcomeUnknown {
				t.Errorf("%s %v: %v %v, retry after %v, outcome unknown %v", op, kind, e, e.GRPCStatus().Code(), e.RetryDelay(), e.OutcomeUnknown)
			}
		}
	}
}
