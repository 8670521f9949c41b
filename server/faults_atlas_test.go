package server_test

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// want is the contract's answer for one fault.
type want struct {
	code   codes.Code
	http   int
	reason string
	retry  time.Duration // of RetryInfo; 0: there is none
	meta   map[string]string
}

// The answers that many faults share.
var (
	wantCreated     = want{code: codes.OK, http: http.StatusCreated}
	wantDeleted     = want{code: codes.OK, http: http.StatusNoContent}
	wantInvalid     = want{code: codes.Internal, http: 500, reason: "ATLAS_INVALID_RESPONSE"}
	wantUnreachable = want{code: codes.Unavailable, http: 503, reason: "ATLAS_UNREACHABLE", retry: time.Second}
	wantUnknown     = want{code: codes.Unknown, http: 500, reason: "DELETE_OUTCOME_UNKNOWN", meta: map[string]string{"outcome": "unknown"}}
)

// check compares what a caller saw with what the contract says, in every place where it says it.
func (w want) check(t *testing.T, got outcome) {
	t.Helper()
	if got.Code != w.code || got.Reason != w.reason {
		t.Fatalf("got %v %s (%q), want %v %s", got.Code, got.Reason, got.Message, w.code, w.reason)
	}
	if got.Retry != w.retry {
		t.Errorf("RetryInfo says %v, want %v", got.Retry, w.retry)
	}
	if len(got.Metadata) != len(w.meta) || got.Metadata["outcome"] != w.meta["outcome"] {
		t.Errorf("ErrorInfo metadata is %v, want %v", got.Metadata, w.meta)
	}
	if got.header("x-request-id") == "" {
		t.Error("the answer has no x-request-id")
	}
	challenge := ""
	if w.code == codes.Unauthenticated {
		challenge = "JWT"
	}
	if got.header("www-authenticate") != challenge {
		t.Errorf("WWW-Authenticate is %q, want %q", got.header("www-authenticate"), challenge)
	}
	if w.code != codes.OK && got.Message == "" {
		t.Error("the error has no message")
	}
	if got.HTTP == 0 {
		w.checkGRPC(t, got)
		return
	}
	if pushback := got.header("grpc-retry-pushback-ms"); pushback != "" {
		t.Errorf("the answer has a pushback of %s over REST, where Retry-After is for that", pushback)
	}
	if got.HTTP != w.http {
		t.Errorf("HTTP status %d, want %d", got.HTTP, w.http)
	}
	got.answer().checkDocumented(t)
	after := ""
	if w.retry > 0 {
		after = strconv.Itoa(int(math.Ceil(w.retry.Seconds())))
	}
	if got.header("retry-after") != after {
		t.Errorf("Retry-After is %q, want %q", got.header("retry-after"), after)
	}
}

// checkGRPC is for what only gRPC tells. A call whose answer begins with headers is never retried by its caller's policy
// (gRFC A6), so an error has none; and whether and when to try again is said in that policy's own terms.
func (w want) checkGRPC(t *testing.T, got outcome) {
	t.Helper()
	if w.code == codes.OK {
		if got.Early["x-request-id"] == nil {
			t.Errorf("x-request-id comes in the trailers, behind the message; headers are %v", got.Early)
		}
		if pushback := got.header("grpc-retry-pushback-ms"); pushback != "" {
			t.Errorf("the answer is OK and has a pushback of %s", pushback)
		}
		return
	}
	if len(got.Early) > 0 {
		t.Errorf("the error has headers: %v", got.Early)
	}
	pushback := "-1"
	if w.retry > 0 {
		pushback = strconv.FormatInt(int64(math.Ceil(w.retry.Seconds()*1000)), 10)
	}
	if got.header("grpc-retry-pushback-ms") != pushback {
		t.Errorf("the pushback is %q, want %q", got.header("grpc-retry-pushback-ms"), pushback)
	}
}

// faultCase is one thing that Atlas does and what both callers get for it.
type faultCase struct {
	name           string
	fault          emulator.Fault
	create, delete want
	repeated       bool // the create is, twice
}

func atlasFaults() []faultCase {
	body := func(row, what, body string) faultCase {
		return faultCase{
			name: row + " " + what, fault: emulator.Fault{Status: 201, Body: body},
			create: wantInvalid, delete: wantDeleted,
		}
	}
	status := func(row string, code int, create, remove want) faultCase {
		return faultCase{
			name: fmt.Sprintf("%s status %d", row, code), fault: emulator.Fault{Status: code},
			create: create, delete: remove, repeated: code >= 500,
		}
	}
	both := func(row string, code int, w want) faultCase { return status(row, code, w, w) }
	unavailable := want{code: codes.Unavailable, http: 503, reason: "ATLAS_UNAVAILABLE", retry: time.Second}
	throttled := func(after time.Duration) want {
		return want{code: codes.ResourceExhausted, http: 429, reason: "ATLAS_RATE_LIMITED", retry: after}
	}
	return []faultCase{
		{name: "02 reset before response headers", fault: emulator.Fault{Drop: emulator.ResetConnection}, create: wantUnreachable, delete: wantUnknown, repeated: true},
		{name: "03 truncation in mid-body", fault: emulator.Fault{Shape: emulator.Truncated}, create: wantUnreachable, delete: wantDeleted, repeated: true},
		{name: "03 reset in mid-body", fault: emulator.Fault{Shape: emulator.Reset}, create: wantUnreachable, delete: wantDeleted, repeated: true},
		both("07", 401, want{code: codes.Unauthenticated, http: 401, reason: "CREDENTIAL_REJECTED"}),
		both("09", 403, want{code: codes.PermissionDenied, http: 403, reason: "ATLAS_FORBIDDEN"}),
		both("10", 404, want{code: codes.Unimplemented, http: 501, reason: "ATLAS_ROUTE"}),
		both("10", 405, want{code: codes.Unimplemented, http: 501, reason: "ATLAS_ROUTE"}),
		both("11", 409, want{code: codes.Aborted, http: 409, reason: "ATLAS_CONFLICT"}),
		both("12", 429, throttled(time.Second)),
		{
			name: "12 throttled for 7 seconds", fault: emulator.Fault{Status: 429, Header: http.Header{"Retry-After": {"7"}}},
			create: throttled(7 * time.Second), delete: throttled(7 * time.Second),
		},
		status("13", 500, unavailable, wantUnknown),
		status("14", 502, unavailable, wantUnknown),
		status("14", 503, unavailable, wantUnknown),
		status("14", 504, unavailable, wantUnknown),
		status("15", 200, wantCreated, wantDeleted),
		status("15", 202, wantInvalid, wantDeleted),
		status("15", 204, wantInvalid, wantDeleted),
		body("16", "invalid JSON", `{"token": planted`),
		body("16", "trailing data", `{"token": "planted"} x`),
		body("16", "HTML", `<html>planted</html>`),
		{
			name: "16 wrong content type", fault: emulator.Fault{Status: 201, ContentType: "text/html", Body: `{"token": "planted"}`},
			create: wantInvalid, delete: wantDeleted,
		},
		body("17", "token is a number", `{"token": 7}`),
		body("17", "token is an array", `{"token": ["planted"]}`),
		body("17", "token is an object", `{"token": {"a": "planted"}}`),
		body("17", "duplicate key", `{"token": "planted", "token": "planted2"}`),
		body("18", "token is null", `{"token": null}`),
		body("18", "token is empty", `{"token": ""}`),
		body("18", "token is absent", `{}`),
		{name: "18 no body", fault: emulator.Fault{Shape: emulator.Empty}, create: wantInvalid, delete: wantDeleted},
		body("19", "token over 8 KiB", `{"token": "`+strings.Repeat("p", 8<<10+1)+`"}`),
		body("19", "token with CR", `{"token": "planted\r"}`),
		body("19", "token with LF", `{"token": "planted\n"}`),
		body("19", "token with NUL", `{"token": "planted\u0000"}`),
		body("20", "not UTF-8", "{\"token\": \"planted\xff\"}"),
		{name: "21 gzip bomb", fault: emulator.Fault{Shape: emulator.GzipBomb}, create: wantInvalid, delete: wantDeleted},
		{name: "21 endless body", fault: emulator.Fault{Shape: emulator.Endless}, create: wantInvalid, delete: wantDeleted},
		// A delete whose answer cannot be read has an unknown outcome, as in row 2.
		{name: "22 huge headers", fault: emulator.Fault{HeaderBytes: 1 << 20}, create: wantUnreachable, delete: wantUnknown},
		{name: "22 flood of 1xx", fault: emulator.Fault{Informational: -1}, create: wantUnreachable, delete: wantUnknown},
	}
}

// matrix runs test once for each transport and security.
func matrix(t *testing.T, test func(t *testing.T, s *service, c caller), changes ...func(*server.Config, *atlas.Config)) {
	for _, mode := range []security{plaintext, serverTLS, mutualTLS} {
		t.Run(string(mode), func(t *testing.T) {
			s := startService(t, mode, changes...)
			for name, c := range s.callers(t) {
				t.Run(name, func(t *testing.T) { test(t, s, c) })
			}
		})
	}
}

// restMatrix is matrix for what only REST has.
func restMatrix(t *testing.T, test func(t *testing.T, s *service, c restCaller)) {
	t.Helper()
	matrix(t, func(t *testing.T, s *service, c caller) {
		if rest, ok := c.(restCaller); ok {
			test(t, s, rest)
		}
	})
}

// testContext bounds one call far above what it should take.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func credential(em *emulator.Emulator) []string {
	return []string{"authorization", "JWT " + em.Org(0).JWT()}
}

// The part of the fault table that one answer of Atlas brings about: a test for each row, over every transport.

func TestFault02Reset(t *testing.T)            { testAtlasRow(t, "02") }
func TestFault03BrokenBody(t *testing.T)       { testAtlasRow(t, "03") }
func TestFault07Unauthorized(t *testing.T)     { testAtlasRow(t, "07") }
func TestFault09Forbidden(t *testing.T)        { testAtlasRow(t, "09") }
func TestFault10Route(t *testing.T)            { testAtlasRow(t, "10") }
func TestFault11Conflict(t *testing.T)         { testAtlasRow(t, "11") }
func TestFault12Throttled(t *testing.T)        { testAtlasRow(t, "12") }
func TestFault13ServerError(t *testing.T)      { testAtlasRow(t, "13") }
func TestFault14Unavailable(t *testing.T)      { testAtlasRow(t, "14") }
func TestFault15OtherSuccess(t *testing.T)     { testAtlasRow(t, "15") }
func TestFault16NotJSON(t *testing.T)          { testAtlasRow(t, "16") }
func TestFault17TokenType(t *testing.T)        { testAtlasRow(t, "17") }
func TestFault18NoToken(t *testing.T)          { testAtlasRow(t, "18") }
func TestFault19UnfitToken(t *testing.T)       { testAtlasRow(t, "19") }
func TestFault20NotUTF8(t *testing.T)          { testAtlasRow(t, "20") }
func TestFault21OversizedBody(t *testing.T)    { testAtlasRow(t, "21") }
func TestFault22OversizedHeaders(t *testing.T) { testAtlasRow(t, "22") }

func testAtlasRow(t *testing.T, row string) {
	t.Helper()
	ran := 0
	for _, tc := range atlasFaults() {
		if !strings.HasPrefix(tc.name, row+" ") {
			continue
		}
		ran++
		// A service for each, so that what one does to the budget and to the breaker is nothing to the next.
		t.Run(tc.name, func(t *testing.T) { matrix(t, tc.test) })
	}
	if ran == 0 {
		t.Errorf("no case of row %s", row)
	}
}

func (tc faultCase) test(t *testing.T, s *service, c caller) {
	defer s.atlas.Inject(tc.fault)()
	for op, want := range map[operation]want{create: tc.create, remove: tc.delete} {
		before := s.atlas.Calls(emulator.Any)
		got := c.call(testContext(t), op, credential(s.atlas)...)
		want.check(t, got)
		if strings.Contains(got.Message+got.Body, "planted") {
			t.Errorf("%s: the answer repeats Atlas's body: %+v", op, got)
		}
		attempts := 1
		if op == create && tc.repeated {
			attempts = 3
		}
		if calls := s.atlas.Calls(emulator.Any) - before; calls != attempts {
			t.Errorf("%s: Atlas was called %d times, want %d", op, calls, attempts)
		}
	}
	if strings.Contains(s.log.String(), "planted") {
		t.Error("the log repeats Atlas's body")
	}
}

// TestFault04OwnCap and the following: nobody waits for a slow Atlas longer than it may take.
func TestFault04OwnCap(t *testing.T) {
	t.Parallel()
	matrix(t, func(t *testing.T, s *service, c caller) {
		for name, fault := range map[string]emulator.Fault{
			"slow headers":         {Delay: time.Hour},
			"slow body":            {Shape: emulator.Drip, Interval: time.Hour},
			"05 stall after a 201": {Shape: emulator.Stall},
		} {
			t.Run(name, func(t *testing.T) {
				defer s.atlas.Inject(fault)()
				w := want{code: codes.Unavailable, http: 503, reason: "ATLAS_TIMEOUT", retry: time.Second}
				w.check(t, c.call(testContext(t), create, credential(s.atlas)...))
			})
		}
		t.Run("delete", func(t *testing.T) {
			defer s.atlas.Inject(emulator.Fault{Delay: time.Hour, AfterEffect: true})()
			// Unavailable, but without RetryInfo: it may have happened, so it is not to be repeated.
			w := want{code: codes.Unavailable, http: 503, reason: "ATLAS_TIMEOUT", meta: map[string]string{"outcome": "unknown"}}
			w.check(t, c.call(testContext(t), remove, credential(s.atlas)...))
		})
	}, func(_ *server.Config, a *atlas.Config) { a.Timeout = 100 * time.Millisecond })
}

func TestFault04CallersDeadline(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		for name, fault := range map[string]emulator.Fault{
			"slow headers":         {Delay: time.Hour},
			"slow body":            {Shape: emulator.Drip, Interval: time.Hour},
			"05 stall after a 201": {Shape: emulator.Stall},
		} {
			t.Run(name, func(t *testing.T) {
				defer s.atlas.Inject(fault)()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				got := c.call(ctx, create, credential(s.atlas)...)
				if got.Code != codes.DeadlineExceeded {
					t.Fatalf("got %v %s, want DeadlineExceeded", got.Code, got.Message)
				}
				// A gRPC client gives up by itself at the deadline; over REST the answer is the server's.
				if got.HTTP != 0 {
					want{code: codes.DeadlineExceeded, http: 504, reason: "DEADLINE_EXCEEDED"}.check(t, got)
				}
			})
		}
	})
}

// TestFault05OtherFlights: one stalled answer holds up nobody else.
func TestFault05OtherFlights(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		s.atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Shape: emulator.Stall})
		gate := s.atlas.HoldAnswer(emulator.Create)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stalled := make(chan outcome, 1)
		go func() { stalled <- c.call(ctx, create, credential(s.atlas)...) }()
		if err := gate.Wait(testContext(t), 1); err != nil {
			t.Fatal(err)
		}
		gate.Release()
		for range 10 {
			wantCreated.check(t, c.call(testContext(t), create, "authorization", "JWT "+s.atlas.Org(1).JWT()))
		}
		cancel()
		if got := <-stalled; got.Code == codes.OK {
			t.Errorf("the stalled call got %+v", got)
		}
	})
}

func TestFault06Redirect(t *testing.T) {
	var followed atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	t.Cleanup(elsewhere.Close)
	matrix(t, func(t *testing.T, s *service, c caller) {
		for _, code := range []int{300, 301, 302, 303, 304, 307, 308} {
			for name, location := range map[string]string{"another host": elsewhere.URL + "/v1/ephemeral-token", "the same host": s.atlas.URL() + "/ephemeral-token"} {
				t.Run(fmt.Sprintf("%d to %s", code, name), func(t *testing.T) {
					defer s.atlas.Inject(emulator.Fault{Status: code, Header: http.Header{"Location": {location}}})()
					for _, op := range []operation{create, remove} {
						before := s.atlas.Calls(emulator.Any)
						want{code: codes.Unknown, http: 500, reason: "ATLAS_REDIRECT"}.check(t, c.call(testContext(t), op, credential(s.atlas)...))
						if calls := s.atlas.Calls(emulator.Any) - before; calls != 1 {
							t.Errorf("%s: Atlas was called %d times, want 1", op, calls)
						}
					}
				})
			}
		}
	})
	if n := followed.Load(); n != 0 {
		t.Errorf("the other host was called %d times", n)
	}
}
