package faults

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// The part of the fault table that one answer of Atlas brings about: a test for each row, over
// every transport.

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
	t.Parallel()
	ran := 0
	for _, tc := range testutil.AtlasFaults() {
		if !strings.HasPrefix(tc.Name, row+" ") {
			continue
		}
		ran++
		// A service for each, so that what one does to the budget and to the breaker is nothing to
		// the next.
		t.Run(tc.Name, func(t *testing.T) {
			testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) { testAtlasFault(t, tc, s, c) })
		})
	}
	if ran == 0 {
		t.Errorf("no case of row %s", row)
	}
}

func testAtlasFault(t *testing.T, tc testutil.FaultCase, s *testutil.Service, c testutil.Caller) {
	defer s.Atlas.Inject(tc.Fault)()
	for op, want := range map[testutil.Operation]testutil.Want{testutil.Create: tc.Create, testutil.Delete: tc.Delete} {
		before := s.Atlas.Calls(emulator.Any)
		got := c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...)
		want.Check(t, got)
		if strings.Contains(got.Message+got.Body, "planted") {
			t.Errorf("%s: the answer repeats Atlas's body: %+v", op, got)
		}
		attempts := 1
		if op == testutil.Create && tc.Repeated {
			attempts = 3
		}
		if calls := s.Atlas.Calls(emulator.Any) - before; calls != attempts {
			t.Errorf("%s: Atlas was called %d times, want %d", op, calls, attempts)
		}
	}
	if strings.Contains(s.Log.String(), "planted") {
		t.Error("the log repeats Atlas's body")
	}
}

// TestFault04OwnCap and the following: nobody waits for a slow Atlas longer than it may take.
func TestFault04OwnCap(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for name, fault := range map[string]emulator.Fault{
			"slow headers":         {Delay: time.Hour},
			"slow body":            {Shape: emulator.Drip, Body: strings.Repeat("x", 10_000)},
			"05 stall after a 201": {Shape: emulator.Stall},
		} {
			t.Run(name, func(t *testing.T) {
				defer s.Atlas.Inject(fault)()
				w := testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_TIMEOUT", Retry: time.Second}
				w.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
			})
		}
		t.Run("delete", func(t *testing.T) {
			defer s.Atlas.Inject(emulator.Fault{Delay: time.Hour, AfterEffect: true})()
			w := testutil.Want{Code: codes.Unknown, HTTP: 500, Reason: "DELETE_OUTCOME_UNKNOWN", Metadata: map[string]string{"outcome": "unknown"}}
			w.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
		})
	}, func(_ *server.Config, a *atlas.Config) { a.Timeout = 300 * time.Millisecond }) // enough to have sent the delete
}

func TestFault04CallersDeadline(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for name, fault := range map[string]emulator.Fault{
			"slow headers":         {Delay: time.Hour},
			"slow body":            {Shape: emulator.Drip, Body: strings.Repeat("x", 10_000)},
			"05 stall after a 201": {Shape: emulator.Stall},
		} {
			t.Run(name, func(t *testing.T) {
				defer s.Atlas.Inject(fault)()
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				got := c.Call(ctx, testutil.Create, testutil.Credential(s.Atlas)...)
				if got.Code != codes.DeadlineExceeded {
					t.Fatalf("got %v %s, want DeadlineExceeded", got.Code, got.Message)
				}
				// A gRPC client gives up by itself at the deadline; over REST the answer is the
				// server's.
				if got.HTTP != 0 {
					testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED"}.Check(t, got)
				}
			})
		}
	})
}

// TestFault05OtherFlights: one stalled answer holds up nobody else.
func TestFault05OtherFlights(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		s.Atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Shape: emulator.Stall})
		gate := s.Atlas.HoldAnswer(emulator.Create)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stalled := make(chan testutil.Outcome, 1)
		go func() { stalled <- c.Call(ctx, testutil.Create, testutil.Credential(s.Atlas)...) }()
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		gate.Release()
		for range 10 {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+s.Atlas.Org(1).JWT()))
		}
		cancel()
		if got := <-stalled; got.Code == codes.OK {
			t.Errorf("the stalled call got %+v", got)
		}
	})
}

func TestFault06Redirect(t *testing.T) {
	t.Parallel()
	var followed atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	t.Cleanup(elsewhere.Close)
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for _, code := range []int{300, 301, 302, 303, 304, 307, 308} {
			for name, location := range map[string]string{"another host": elsewhere.URL + "/v1/ephemeral-token", "the same host": s.Atlas.URL() + "/ephemeral-token"} {
				t.Run(fmt.Sprintf("%d to %s", code, name), func(t *testing.T) {
					defer s.Atlas.Inject(emulator.Fault{Status: code, Header: http.Header{"Location": {location}}})()
					for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
						before := s.Atlas.Calls(emulator.Any)
						testutil.Want{Code: codes.Unknown, HTTP: 500, Reason: "ATLAS_REDIRECT"}.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...))
						if calls := s.Atlas.Calls(emulator.Any) - before; calls != 1 {
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
