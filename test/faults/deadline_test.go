package faults

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

func TestFault52NoTimeLeft(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		for _, timeout := range []string{"0n", "0m", "1m"} {
			for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
				switch c := c.(type) {
				case testutil.RESTCaller:
					got := c.Call(t.Context(), op, append(testutil.Credential(s.Atlas), "Grpc-Timeout", timeout)...)
					testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED"}.Check(t, got)
				case testutil.GRPCCaller:
					// grpc-timeout is written by the client from its deadline, which also makes it
					// give up by itself.
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					got := c.Call(ctx, op, testutil.Credential(s.Atlas)...)
					cancel()
					if got.Code != codes.DeadlineExceeded {
						t.Errorf("%s: got %v %s, want DeadlineExceeded", op, got.Code, got.Message)
					}
				}
			}
		}
	})
	t.Run("gRPC on the wire", func(t *testing.T) {
		s := testutil.Start(t, testutil.Plaintext)
		testutil.NotCalled(t, s.Atlas)
		call := func(timeout string) string {
			return testutil.RawGRPC(t, s, testutil.CreateMethod, "grpc-timeout", timeout, "authorization", testutil.Credential(s.Atlas)[1])
		}
		if got := call("0n"); got != "4" {
			t.Errorf("grpc-timeout 0n: %q, want grpc-status 4", got)
		}
		// Once the deadline passes, grpc-go cancels the stream, which a client whose own deadline
		// has passed by then takes for DEADLINE_EXCEEDED. Whether our answer is out before that is
		// a matter of luck.
		for range 20 {
			start := time.Now()
			got := call("1m")
			passed := time.Since(start) >= time.Millisecond
			if got != "4" && !(got == "RST_STREAM CANCEL" && passed) {
				t.Errorf("grpc-timeout 1m: %q (the deadline has passed: %t), want grpc-status 4, or the stream cancelled at the deadline", got, passed)
			}
		}
	})
}

// TestFault53Cancel: a caller that leaves ends its call to Atlas, and no other.
func TestFault53Cancel(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
			t.Run(string(op), func(t *testing.T) {
				on := map[testutil.Operation]emulator.Operation{testutil.Create: emulator.Create, testutil.Delete: emulator.Delete}[op]
				gate := s.Atlas.Hold(on)
				defer gate.Release()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan testutil.Outcome, 1)
				id := strings.ReplaceAll(t.Name(), "/", ".")[len("TestFault53"):]
				id = strings.ReplaceAll(id, ".", "-")
				go func() { done <- c.Call(ctx, op, append(testutil.Credential(s.Atlas), "x-request-id", id)...) }()
				if err := gate.Wait(testutil.Context(t), 1); err != nil {
					t.Fatal(err)
				}
				cancel()
				if got := <-done; got.HTTP == 0 && got.Code != codes.Canceled && !strings.Contains(got.Message, "canceled") {
					t.Errorf("the caller got %v %s", got.Code, got.Message)
				}
				testutil.Eventually(t, func() bool { return gate.Held() == 0 }, "the call to Atlas goes on after its caller has left")
				testutil.Eventually(t, func() bool {
					for line := range strings.Lines(s.Log.String()) {
						if strings.Contains(line, `"`+id+`"`) && strings.Contains(line, "CANCELLED") {
							return true
						}
					}
					return false
				}, "the log does not say that the call was cancelled")
			})
		}
	})
}
