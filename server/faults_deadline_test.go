package server_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestFault52NoTimeLeft(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		notCalled(t, s.atlas)
		for _, timeout := range []string{"0n", "0m", "1m"} {
			for _, op := range []operation{create, remove} {
				switch c := c.(type) {
				case restCaller:
					got := c.call(t.Context(), op, append(credential(s.atlas), "Grpc-Timeout", timeout)...)
					want{code: codes.DeadlineExceeded, http: 504, reason: "DEADLINE_EXCEEDED"}.check(t, got)
				case grpcCaller:
					// grpc-timeout is written by the client from its deadline, which also makes it give up by itself.
					ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
					got := c.call(ctx, op, credential(s.atlas)...)
					cancel()
					if got.Code != codes.DeadlineExceeded {
						t.Errorf("%s: got %v %s, want DeadlineExceeded", op, got.Code, got.Message)
					}
				}
			}
		}
	})
	t.Run("gRPC on the wire", func(t *testing.T) {
		s := startService(t, plaintext)
		notCalled(t, s.atlas)
		call := func(timeout string) string {
			return rawGRPC(t, s, createMethod, "grpc-timeout", timeout, "authorization", credential(s.atlas)[1])
		}
		if got := call("0n"); got != "4" {
			t.Errorf("grpc-timeout 0n: %q, want grpc-status 4", got)
		}
		// Once the deadline passes, grpc-go cancels the stream, which a client whose own deadline has passed by then takes for
		// DEADLINE_EXCEEDED. Whether our answer is out before that is a matter of luck.
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
	matrix(t, func(t *testing.T, s *service, c caller) {
		for _, op := range []operation{create, remove} {
			t.Run(string(op), func(t *testing.T) {
				on := map[operation]emulator.Operation{create: emulator.Create, remove: emulator.Delete}[op]
				gate := s.atlas.Hold(on)
				defer gate.Release()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan outcome, 1)
				id := strings.ReplaceAll(t.Name(), "/", ".")[len("TestFault53"):]
				id = strings.ReplaceAll(id, ".", "-")
				go func() { done <- c.call(ctx, op, append(credential(s.atlas), "x-request-id", id)...) }()
				if err := gate.Wait(testContext(t), 1); err != nil {
					t.Fatal(err)
				}
				cancel()
				if got := <-done; got.HTTP == 0 && got.Code != codes.Canceled && !strings.Contains(got.Message, "canceled") {
					t.Errorf("the caller got %v %s", got.Code, got.Message)
				}
				eventually(t, func() bool { return gate.Held() == 0 }, "the call to Atlas goes on after its caller has left")
				eventually(t, func() bool {
					for line := range strings.Lines(s.log.String()) {
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

// eventually waits for something that another process or goroutine is about to do.
func eventually(t *testing.T, done func() bool, otherwise string) {
	t.Helper()
	deadline, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal(otherwise)
		}
	}
}
