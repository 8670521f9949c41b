package faults

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Rows of the fault table that a single response of Atlas causes: a test per row, over both
// transports.

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
			t.Errorf("%s: the response contains Atlas's body: %+v", op, got)
		}
		attempts := 1
		if op == testutil.Create && tc.Repeated {
			attempts = 3
		}
		if calls := s.Atlas.Calls(emulator.Any) - before; calls != attempts {
			t.Errorf("%s: %d calls to Atlas, want %d", op, calls, attempts)
		}
	}
	if strings.Contains(s.Log.String(), "planted") {
		t.Error("the log contains Atlas's body")
	}
}

// slowAnswers are the ways in which Atlas answers a create too late, or never.
var slowAnswers = map[string]emulator.Fault{
	"slow headers":      {Delay: time.Hour},
	"slow body":         {Shape: emulator.Drip, Body: strings.Repeat("x", 10_000)},
	"stall after a 201": {Shape: emulator.Stall}, // row 5
}

// TestFault04OwnCap checks that calls end at the timeout for Atlas.
func TestFault04OwnCap(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for name, fault := range slowAnswers {
			t.Log(name)
			end := s.Atlas.Inject(fault)
			w := testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_TIMEOUT", Retry: time.Second}
			w.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
			end()
		}
		s.Atlas.Inject(emulator.Fault{Delay: time.Hour, AfterEffect: true})
		testutil.WantUnknown.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(s.Atlas)...))
	}, func(_ *server.Config, a *atlas.Config) { a.Timeout = 300 * time.Millisecond })
}

// TestFault04CallersDeadline checks that calls end at the caller's deadline.
func TestFault04CallersDeadline(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for name, fault := range slowAnswers {
			t.Log(name)
			end := s.Atlas.Inject(fault)
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			got := c.Call(ctx, testutil.Create, testutil.Credential(s.Atlas)...)
			cancel()
			end()
			if got.Code != codes.DeadlineExceeded {
				t.Fatalf("got %v %s, want DeadlineExceeded", got.Code, got.Message)
			}
			if got.HTTP != 0 { // a gRPC client does not wait for the server's response
				testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED"}.Check(t, got)
			}
		}
	})
}

// TestFault05OtherFlights checks that a stalled response delays no other call.
func TestFault05OtherFlights(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		s.Atlas.Inject(emulator.Fault{On: emulator.Create, Times: 1, Shape: emulator.Stall})
		gate := s.Atlas.HoldAnswer(emulator.Create)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stalled := testutil.Async(ctx, c, testutil.Create, testutil.Credential(s.Atlas)...)
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

// TestFault06Redirect checks that redirects are not followed.
func TestFault06Redirect(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for _, code := range []int{300, 301, 302, 303, 304, 307, 308} {
			for _, location := range []string{"https://127.0.0.1:1/v1/ephemeral-token", s.Atlas.URL() + "/ephemeral-token"} {
				end := s.Atlas.Inject(emulator.Fault{Status: code, Header: http.Header{"Location": {location}}})
				for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
					t.Log(fmt.Sprint(op, " ", code, " to ", location))
					before := s.Atlas.Calls(emulator.Any)
					testutil.Want{Code: codes.Unknown, HTTP: 500, Reason: "ATLAS_REDIRECT"}.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...))
					if calls := s.Atlas.Calls(emulator.Any) - before; calls != 1 {
						t.Errorf("%d calls to Atlas, want 1", calls)
					}
				}
				end()
			}
		}
	})
}
