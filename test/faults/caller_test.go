package faults

import (
	"context"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// Rows 36 to 39: only a single well-formed JWT is sent to Atlas.

func TestFault36NoCredential(t *testing.T)   { testCredentialRow(t, "36") }
func TestFault37Malformed(t *testing.T)      { testCredentialRow(t, "37") }
func TestFault38Whitespace(t *testing.T)     { testCredentialRow(t, "38") }
func TestFault39TwoCredentials(t *testing.T) { testCredentialRow(t, "39") }

func testCredentialRow(t *testing.T, row string) {
	t.Helper()
	t.Parallel()
	const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJvcmdfaWQiOiJ4In0.c2lnbmF0dXJl"
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		for _, tc := range []struct {
			name    string
			headers []string
			want    testutil.Want
		}{
			{"36 none", nil, testutil.WantMissing},
			{"36 empty", []string{"authorization", ""}, testutil.WantMissing},
			{"37 Basic", []string{"authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p"))}, testutil.WantMalformed},
			{"37 no scheme", []string{"authorization", jwt}, testutil.WantMalformed},
			{"37 scheme only", []string{"authorization", "JWT"}, testutil.WantMalformed},
			{"37 two parts", []string{"authorization", "JWT eyJh.eyJv"}, testutil.WantMalformed},
			{"37 four parts", []string{"authorization", "JWT " + jwt + ".x"}, testutil.WantMalformed},
			{"37 empty part", []string{"authorization", "JWT eyJh..c2ln"}, testutil.WantMalformed},
			{"37 two in one value", []string{"authorization", "JWT " + jwt + ", JWT " + jwt}, testutil.WantMalformed},
			{"37 over 8 KiB", []string{"authorization", "JWT a.b." + strings.Repeat("c", 8<<10)}, testutil.WantMalformed},
			{"38 space inside", []string{"authorization", "JWT " + jwt + " x"}, testutil.WantMalformed},
			{"39 two values", []string{"authorization", "JWT " + jwt, "authorization", "JWT " + jwt}, testutil.WantAmbiguous},
			{"39 gateway header", []string{"authorization", "JWT " + jwt, "grpc-metadata-authorization", "JWT a.b.c"}, testutil.WantAmbiguous},
			{"39 gateway header alone, which is not read", []string{"grpc-metadata-authorization", "JWT " + jwt}, testutil.WantMissing},
		} {
			if strings.HasPrefix(tc.name, row+" ") {
				t.Log(tc.name)
				tc.want.Check(t, c.Call(testutil.Context(t), testutil.Create, tc.headers...))
				tc.want.Check(t, c.Call(testutil.Context(t), testutil.Delete, tc.headers...))
			}
		}
		if strings.Contains(s.Log.String(), jwt) {
			t.Error("the log contains a credential")
		}
	})
}

// TestFault38Bytes sends bytes that could split a header or start another one. A gRPC peer's HTTP/2
// framer rejects them; internal/auth tests the parser.
func TestFault38Bytes(t *testing.T) {
	t.Parallel()
	testutil.RESTMatrix(t, func(t *testing.T, s *testutil.Service, _ testutil.RESTCaller) {
		testutil.NotCalled(t, s.Atlas)
		for name, value := range map[string]string{"non-ASCII": "JWT a.b.\xc3\xa9", "NUL": "JWT a.b.c\x00", "bare CR": "JWT a.b.c\rX-Y: z", "LF": "JWT a.b.c\n d"} {
			resp := testutil.RawHTTP(t, s, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: "+value+"\r\n\r\n")
			if resp.StatusCode != 400 && resp.StatusCode != 401 {
				t.Errorf("%s: status %d, want 400 or 401", name, resp.StatusCode)
			}
		}
	})
}

// TestFault54ForwardedFor checks that forwarding headers are ignored.
func TestFault54ForwardedFor(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		const forged = "203.0.113.7"
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "X-Forwarded-For", forged, "X-Forwarded-Host", "forged.example", "Forwarded", "for="+forged, "X-Real-Ip", forged)...))
		if log := s.Log.String(); strings.Contains(log, forged) || !strings.Contains(log, `"peer":"127.0.0.1:`) {
			t.Errorf("the log does not have the peer's address: %s", log)
		}
		for name, values := range s.Atlas.LastRequest().Header {
			if text := strings.Join(values, " "); strings.Contains(text, "forged.example") || strings.Contains(text, forged) {
				t.Errorf("Atlas got %s: %v", name, values)
			}
		}
	})
}

// TestFault29CallerExpired checks that Atlas, not the exp claim, decides whether a JWT has expired.
func TestFault29CallerExpired(t *testing.T) {
	t.Parallel()
	rejected := testutil.Want{Code: codes.Unauthenticated, HTTP: 401, Reason: "CREDENTIAL_REJECTED"}
	for name, tc := range map[string]struct {
		skew             time.Duration // of Atlas's clock
		lifetime         time.Duration // by Atlas's clock
		created, deleted testutil.Want
	}{
		"expired":                    {0, -time.Minute, rejected, rejected},
		"expired by Atlas's clock":   {time.Hour, -time.Minute, rejected, rejected}, // but not by ours
		"expired by our clock alone": {-time.Hour, time.Minute, testutil.WantCreated, testutil.WantDeleted},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				em := v.StartAtlas(t, emulator.Config{Now: func() time.Time { return time.Now().Add(tc.skew) }})
				for _, c := range v.StartWith(t, testutil.Plaintext, em).Callers(t) {
					jwt := em.Org(0).MintJWT(emulator.JWT{Lifetime: tc.lifetime})
					before := em.Calls(emulator.Any)
					tc.created.Check(t, c.Call(testutil.Context(t), testutil.Create, "authorization", "JWT "+jwt))
					tc.deleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, "authorization", "JWT "+jwt))
					if n := em.Calls(emulator.Any) - before; n != 2 {
						t.Errorf("%d calls to Atlas, want 2", n)
					}
				}
			})
		})
	}
}

// TestFault52NoTimeLeft checks that Atlas is not called when too little time is left.
func TestFault52NoTimeLeft(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		for _, timeout := range []string{"0n", "0m", "1m"} {
			if _, ok := c.(testutil.GRPCCaller); ok { // on the wire, since a client gives up at its own deadline
				if s.Mode != testutil.Plaintext {
					continue // RawGRPC has no TLS
				}
				got := testutil.RawGRPC(t, s, testutil.CreateMethod, "grpc-timeout", timeout, "authorization", testutil.Credential(s.Atlas)[1])
				// At the deadline grpc-go may cancel the stream before the response is out.
				if got != "4" && !(got == "RST_STREAM CANCEL" && timeout == "1m") {
					t.Errorf("grpc-timeout %s: %q, want grpc-status 4", timeout, got)
				}
				continue
			}
			for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
				got := c.Call(t.Context(), op, append(testutil.Credential(s.Atlas), "Grpc-Timeout", timeout)...)
				testutil.Want{Code: codes.DeadlineExceeded, HTTP: 504, Reason: "DEADLINE_EXCEEDED"}.Check(t, got)
			}
		}
	})
}

// TestFault53Cancel checks that a call to Atlas ends when its only caller cancels.
func TestFault53Cancel(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for op, on := range map[testutil.Operation]emulator.Operation{testutil.Create: emulator.Create, testutil.Delete: emulator.Delete} {
			gate := s.Atlas.Hold(on)
			ctx, cancel := context.WithCancel(t.Context())
			id := "cancelled-" + string(op)
			done := testutil.Async(ctx, c, op, append(testutil.Credential(s.Atlas), "x-request-id", id)...)
			if err := gate.Wait(testutil.Context(t), 1); err != nil {
				t.Fatal(err)
			}
			cancel()
			if got := <-done; got.HTTP == 0 && got.Code != codes.Canceled && !strings.Contains(got.Message, "canceled") {
				t.Errorf("%s: got %v %s", op, got.Code, got.Message)
			}
			testutil.Eventually(t, func() bool { return gate.Held() == 0 }, "the call to Atlas continues without a caller")
			testutil.Eventually(t, func() bool {
				for line := range strings.Lines(s.Log.String()) {
					if strings.Contains(line, `"`+id+`"`) && strings.Contains(line, "CANCELLED") {
						return true
					}
				}
				return false
			}, "the log does not record the cancelled call")
			gate.Release()
		}
	})
}
