package atlas

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestClassOfErrors(t *testing.T) {
	cause := errors.New("cause")
	status := func(op Operation, code int) error {
		return fmt.Errorf("wrapped: %w", &Error{Op: op, Kind: KindStatus, StatusCode: code, Sent: true, Err: cause})
	}
	kind := func(k Kind) error { return &Error{Op: OpCreate, Kind: k, Err: cause} }
	for _, tc := range []struct {
		err  error
		want Class
	}{
		{nil, ClassOK},
		{cause, ClassUnknown},
		{context.Canceled, ClassUnknown},
		{kind(KindUnreachable), ClassOutage},
		{kind(KindTimeout), ClassOutage},
		{status(OpCreate, 500), ClassOutage},
		{status(OpLogIn, 599), ClassOutage},
		{kind(KindUnavailable), ClassHeldBack},
		{kind(KindOverloaded), ClassHeldBack},
		{status(OpDelete, 429), ClassThrottled},
		{status(OpLogIn, 429), ClassThrottled},
		{status(OpCreate, 401), ClassUnauthorized},
		{status(OpLogIn, 400), ClassUnauthorized},
		{status(OpRefresh, 400), ClassUnauthorized},
		{status(OpRefresh, 403), ClassUnauthorized},
		{&CredentialError{Err: cause}, ClassUnauthorized},
		{status(OpDelete, 403), ClassForbidden},
		{status(OpCreate, 400), ClassRejected},
		{status(OpLogIn, 404), ClassRejected},
		{status(OpDelete, 409), ClassRejected},
		{status(OpDelete, 499), ClassRejected},
		{kind(KindTLS), ClassBroken},
		{kind(KindRedirect), ClassBroken},
		{kind(KindInvalidResponse), ClassBroken},
		{kind(KindCanceled), ClassCanceled},
		{kind(KindInvalidCredential), ClassInvalid},
		{kind(0), ClassUnknown},
	} {
		if got := Classify(tc.err); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}

// TestFault04OutcomeUnknown: a delete that was sent may have taken effect, unless Atlas's answer
// says that it has not.
func TestFault04OutcomeUnknown(t *testing.T) {
	for _, tc := range []struct {
		err  Error
		want bool
	}{
		{Error{Op: OpDelete, Kind: KindTimeout, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindTimeout}, false},
		{Error{Op: OpDelete, Kind: KindUnreachable, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindCanceled, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindInvalidResponse, StatusCode: 199, Sent: true}, true},
		{Error{Op: OpDelete, Kind: KindRedirect, StatusCode: 302, Sent: true}, false},
		{Error{Op: OpDelete, Kind: KindUnavailable}, false},
		{Error{Op: OpCreate, Kind: KindTimeout, Sent: true}, false},
	} {
		if got := tc.err.OutcomeUnknown(); got != tc.want {
			t.Errorf("%+v: got %t, want %t", tc.err, got, tc.want)
		}
	}
	for code, want := range map[int]bool{400: false, 401: false, 404: false, 408: true, 409: false, 425: true, 429: false, 499: true, 500: true, 503: true} {
		e := Error{Op: OpDelete, Kind: KindStatus, StatusCode: code, Sent: true}
		if e.OutcomeUnknown() != want {
			t.Errorf("HTTP %d: want %t", code, want)
		}
	}
}
