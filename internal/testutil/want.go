package testutil

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// Responses to callers that are not authenticated or not permitted.
var (
	WantUnknownCaller  = Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CALLER_UNKNOWN"}
	WantCallerRejected = Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CALLER_REJECTED"}
	WantNotPermitted   = Want{Code: codes.PermissionDenied, HTTP: 403, Reason: "CALLER_NOT_PERMITTED"}
	NoHandshake        = Want{Reason: "no handshake"} // the connection is refused
)

// Want is the expected response.
type Want struct {
	Code     codes.Code
	HTTP     int
	Reason   string
	Retry    time.Duration // of RetryInfo; 0: there is none
	Metadata map[string]string
}

// Responses that many faults share.
var (
	WantCreated     = Want{Code: codes.OK, HTTP: http.StatusCreated}
	WantDeleted     = Want{Code: codes.OK, HTTP: http.StatusNoContent}
	WantInvalid     = Want{Code: codes.Internal, HTTP: 500, Reason: "ATLAS_INVALID_RESPONSE"}
	WantUnreachable = Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_UNREACHABLE", Retry: time.Second}
	WantUnknown     = Want{Code: codes.Unknown, HTTP: 500, Reason: "DELETE_OUTCOME_UNKNOWN", Metadata: map[string]string{"outcome": "unknown"}}
)

// Check compares an outcome with the contract, headers and details included.
func (w Want) Check(t *testing.T, got Outcome) {
	t.Helper()
	if got.Code != w.Code || got.Reason != w.Reason {
		t.Fatalf("got %v %s (%q), want %v %s", got.Code, got.Reason, got.Message, w.Code, w.Reason)
	}
	if got.Retry != w.Retry {
		t.Errorf("RetryInfo says %v, want %v", got.Retry, w.Retry)
	}
	if len(got.Metadata) != len(w.Metadata) || got.Metadata["outcome"] != w.Metadata["outcome"] {
		t.Errorf("ErrorInfo metadata is %v, want %v", got.Metadata, w.Metadata)
	}
	if got.Get("x-request-id") == "" {
		t.Error("the response has no x-request-id")
	}
	challenge := ""
	if w.Code == codes.Unauthenticated {
		challenge = "JWT"
	}
	if got.Get("www-authenticate") != challenge {
		t.Errorf("WWW-Authenticate is %q, want %q", got.Get("www-authenticate"), challenge)
	}
	if w.Code != codes.OK && got.Message == "" {
		t.Error("the error has no message")
	}
	if got.HTTP == 0 {
		w.checkGRPC(t, got)
		return
	}
	if pushback := got.Get("grpc-retry-pushback-ms"); pushback != "" {
		t.Errorf("the REST response has a pushback of %s", pushback)
	}
	if got.HTTP != w.HTTP {
		t.Errorf("HTTP status %d, want %d", got.HTTP, w.HTTP)
	}
	got.Answer().CheckDocumented(t)
	after := ""
	if w.Retry > 0 {
		after = strconv.Itoa(int(math.Ceil(w.Retry.Seconds())))
	}
	if got.Get("retry-after") != after {
		t.Errorf("Retry-After is %q, want %q", got.Get("retry-after"), after)
	}
}

// checkGRPC checks what only gRPC has. A client's retry policy never retries a call that has
// received headers (gRFC A6), so an error has none, and a pushback instead.
func (w Want) checkGRPC(t *testing.T, got Outcome) {
	t.Helper()
	if w.Code == codes.OK {
		if got.Early["x-request-id"] == nil {
			t.Errorf("x-request-id is not in the headers %v", got.Early)
		}
		if pushback := got.Get("grpc-retry-pushback-ms"); pushback != "" {
			t.Errorf("the response is OK and has a pushback of %s", pushback)
		}
		return
	}
	if len(got.Early) > 0 {
		t.Errorf("the error has headers: %v", got.Early)
	}
	pushback := "-1"
	if w.Retry > 0 {
		pushback = strconv.FormatInt(int64(math.Ceil(w.Retry.Seconds()*1000)), 10)
	}
	if got.Get("grpc-retry-pushback-ms") != pushback {
		t.Errorf("the pushback is %q, want %q", got.Get("grpc-retry-pushback-ms"), pushback)
	}
}

// FaultCase is a fault of Atlas and the responses to it.
type FaultCase struct {
	Name           string
	Fault          emulator.Fault
	Create, Delete Want
	Repeated       bool // the create is retried twice
}

// AtlasFaults returns the rows of the fault table that one response of Atlas causes.
func AtlasFaults() []FaultCase {
	body := func(row, what, body string) FaultCase {
		return FaultCase{
			Name: row + " " + what, Fault: emulator.Fault{Status: 201, Body: body},
			Create: WantInvalid, Delete: WantDeleted,
		}
	}
	status := func(row string, code int, create, remove Want) FaultCase {
		return FaultCase{
			Name: fmt.Sprintf("%s status %d", row, code), Fault: emulator.Fault{Status: code},
			Create: create, Delete: remove, Repeated: code >= 500,
		}
	}
	both := func(row string, code int, w Want) FaultCase { return status(row, code, w, w) }
	unavailable := Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_UNAVAILABLE", Retry: time.Second}
	throttled := func(after time.Duration) Want {
		return Want{Code: codes.ResourceExhausted, HTTP: 429, Reason: "ATLAS_RATE_LIMITED", Retry: after}
	}
	return []FaultCase{
		{Name: "02 reset before response headers", Fault: emulator.Fault{Drop: emulator.ResetConnection}, Create: WantUnreachable, Delete: WantUnknown, Repeated: true},
		{Name: "03 truncation in mid-body", Fault: emulator.Fault{Shape: emulator.Truncated}, Create: WantUnreachable, Delete: WantDeleted, Repeated: true},
		{Name: "03 reset in mid-body", Fault: emulator.Fault{Shape: emulator.Reset}, Create: WantUnreachable, Delete: WantDeleted, Repeated: true},
		both("07", 401, Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CREDENTIAL_REJECTED"}),
		both("09", 403, Want{Code: codes.PermissionDenied, HTTP: 403, Reason: "ATLAS_FORBIDDEN"}),
		both("10", 404, Want{Code: codes.Unimplemented, HTTP: 501, Reason: "ATLAS_ROUTE"}),
		both("10", 405, Want{Code: codes.Unimplemented, HTTP: 501, Reason: "ATLAS_ROUTE"}),
		both("11", 409, Want{Code: codes.Aborted, HTTP: 409, Reason: "ATLAS_CONFLICT"}),
		both("12", 429, throttled(time.Second)),
		{
			Name: "12 throttled for 7 seconds", Fault: emulator.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}},
			Create: throttled(7 * time.Second), Delete: throttled(7 * time.Second),
		},
		status("13", 500, unavailable, WantUnknown),
		status("14", 502, unavailable, WantUnknown),
		status("14", 503, unavailable, WantUnknown),
		status("14", 504, unavailable, WantUnknown),
		status("15", 200, WantCreated, WantDeleted),
		status("15", 202, WantInvalid, WantDeleted),
		status("15", 204, WantInvalid, WantDeleted),
		body("16", "invalid JSON", `{"token": planted`),
		body("16", "trailing data", `{"token": "planted"} x`),
		body("16", "HTML", `<html>planted</html>`),
		{
			Name: "16 wrong content type", Fault: emulator.Fault{Status: 201, Header: http.Header{"Content-Type": {"text/html"}}, Body: `{"token": "planted"}`},
			Create: WantInvalid, Delete: WantDeleted,
		},
		body("17", "token is a number", `{"token": 7}`),
		body("17", "token is an array", `{"token": ["planted"]}`),
		body("17", "token is an object", `{"token": {"a": "planted"}}`),
		body("17", "duplicate key", `{"token": "planted", "token": "planted2"}`),
		body("18", "token is null", `{"token": null}`),
		body("18", "token is empty", `{"token": ""}`),
		body("18", "token is absent", `{}`),
		{Name: "18 no body", Fault: emulator.Fault{Shape: emulator.Empty}, Create: WantInvalid, Delete: WantDeleted},
		body("19", "token over 8 KiB", `{"token": "`+strings.Repeat("p", 8<<10+1)+`"}`),
		body("19", "token with CR", `{"token": "planted\r"}`),
		body("19", "token with LF", `{"token": "planted\n"}`),
		body("19", "token with NUL", `{"token": "planted\u0000"}`),
		body("20", "not UTF-8", "{\"token\": \"planted\xff\"}"),
		{Name: "21 gzip bomb", Fault: emulator.Fault{Shape: emulator.GzipBomb}, Create: WantInvalid, Delete: WantDeleted},
		{Name: "21 endless body", Fault: emulator.Fault{Shape: emulator.Endless}, Create: WantInvalid, Delete: WantDeleted},
		// A delete whose response cannot be read has an unknown outcome, as in row 2.
		{Name: "22 huge headers", Fault: emulator.Fault{Header: http.Header{"X-Padding": {strings.Repeat("x", 1<<20)}}}, Create: WantUnreachable, Delete: WantUnknown},
		{Name: "22 flood of 1xx", Fault: emulator.Fault{Drop: emulator.Flood1xx}, Create: WantUnreachable, Delete: WantUnknown},
	}
}

// Responses to credentials that are not sent to Atlas.
var (
	WantMissing   = Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CREDENTIAL_MISSING"}
	WantMalformed = Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CREDENTIAL_MALFORMED"}
	WantAmbiguous = Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "CREDENTIAL_AMBIGUOUS"}
	WantNoRoute   = Want{Code: codes.Unimplemented, HTTP: 404, Reason: "ROUTE_NOT_FOUND"}
)

// WantServiceRejected is the response while Atlas refuses the service's identity.
var WantServiceRejected = Want{Code: codes.Unavailable, HTTP: 503, Reason: "SERVICE_CREDENTIAL_REJECTED"}

// CheckRetry is Check for a response whose delay depends on the clock.
func (w Want) CheckRetry(t *testing.T, got Outcome, least, most time.Duration) {
	t.Helper()
	if got.Retry < least || got.Retry > most {
		t.Errorf("RetryInfo says %v, want %v to %v", got.Retry, least, most)
	}
	w.Retry = got.Retry
	w.Check(t, got)
}
