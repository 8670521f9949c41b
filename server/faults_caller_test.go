package server_test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// notCalled fails the test if Atlas is called while it runs.
func notCalled(t *testing.T, em *emulator.Emulator) {
	t.Helper()
	before := em.Calls(emulator.Any)
	t.Cleanup(func() {
		if n := em.Calls(emulator.Any) - before; n != 0 {
			t.Errorf("Atlas was called %d times, want 0", n)
		}
	})
}

var (
	wantMissing   = want{code: codes.Unauthenticated, http: 401, reason: "CREDENTIAL_MISSING"}
	wantMalformed = want{code: codes.Unauthenticated, http: 401, reason: "CREDENTIAL_MALFORMED"}
	wantAmbiguous = want{code: codes.InvalidArgument, http: 400, reason: "CREDENTIAL_AMBIGUOUS"}
	wantNoRoute   = want{code: codes.Unimplemented, http: 404, reason: "ROUTE_NOT_FOUND"}
)

// Rows 36 to 39: no credential that is not exactly one well-formed JWT gets as far as Atlas.

func TestFault36NoCredential(t *testing.T)   { testCredentialRow(t, "36") }
func TestFault37Malformed(t *testing.T)      { testCredentialRow(t, "37") }
func TestFault38Whitespace(t *testing.T)     { testCredentialRow(t, "38") }
func TestFault39TwoCredentials(t *testing.T) { testCredentialRow(t, "39") }

func testCredentialRow(t *testing.T, row string) {
	t.Helper()
	const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJvcmdfaWQiOiJ4In0.c2lnbmF0dXJl"
	cases := []struct {
		name    string
		headers []string
		want    want
	}{
		{"36 none", nil, wantMissing},
		{"36 empty", []string{"authorization", ""}, wantMissing},
		{"37 Basic", []string{"authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p"))}, wantMalformed},
		{"37 no scheme", []string{"authorization", jwt}, wantMalformed},
		{"37 scheme only", []string{"authorization", "JWT"}, wantMalformed},
		{"37 two parts", []string{"authorization", "JWT eyJh.eyJv"}, wantMalformed},
		{"37 four parts", []string{"authorization", "JWT " + jwt + ".x"}, wantMalformed},
		{"37 empty part", []string{"authorization", "JWT eyJh..c2ln"}, wantMalformed},
		{"37 two in one value", []string{"authorization", "JWT " + jwt + ", JWT " + jwt}, wantMalformed},
		{"37 over 8 KiB", []string{"authorization", "JWT a.b." + strings.Repeat("c", 8<<10)}, wantMalformed},
		{"38 space inside", []string{"authorization", "JWT " + jwt + " x"}, wantMalformed},
		{"39 two values", []string{"authorization", "JWT " + jwt, "authorization", "JWT " + jwt}, wantAmbiguous},
	}
	matrix(t, func(t *testing.T, s *service, c caller) {
		for _, tc := range cases {
			if !strings.HasPrefix(tc.name, row+" ") {
				continue
			}
			t.Run(tc.name, func(t *testing.T) {
				notCalled(t, s.atlas)
				tc.want.check(t, c.call(testContext(t), create, tc.headers...))
				tc.want.check(t, c.call(testContext(t), remove, tc.headers...))
			})
		}
		if strings.Contains(s.log.String(), jwt) {
			t.Error("the log has a credential in it")
		}
	})
}

func TestBearerMeansJWT(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		for _, scheme := range []string{"JWT", "Bearer", "jwt", "bearer"} {
			wantCreated.check(t, c.call(testContext(t), create, "authorization", scheme+" "+s.atlas.Org(0).JWT()))
			if got := s.atlas.LastRequest().Header.Get("Authorization"); !strings.HasPrefix(got, "JWT ") {
				t.Errorf("%s: Atlas got another scheme", scheme)
			}
		}
	})
}

// TestFault38Bytes sends what no decent client would: the bytes that could split a header or name another one.
func TestFault38Bytes(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		if _, rest := c.(restCaller); !rest {
			t.Skip("a gRPC peer refuses such a value in its HTTP/2 framer; internal/auth tests the parser itself")
		}
		for name, value := range map[string]string{"non-ASCII": "JWT a.b.\xc3\xa9", "NUL": "JWT a.b.c\x00", "bare CR": "JWT a.b.c\rX-Y: z", "LF": "JWT a.b.c\n d"} {
			t.Run(name, func(t *testing.T) {
				notCalled(t, s.atlas)
				resp := rawHTTP(t, s, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: "+value+"\r\n\r\n")
				if resp.StatusCode != 400 && resp.StatusCode != 401 {
					t.Errorf("status %d, want 400 or 401", resp.StatusCode)
				}
			})
		}
	})
}

// rawHTTP writes bytes to the REST listener and reads one answer.
func rawHTTP(t *testing.T, s *service, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", s.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if s.mode != plaintext {
		cfg := s.certs.clientConfig(s.mode)
		cfg.ServerName = "localhost"
		conn = tls.Client(conn, cfg)
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestFault39GatewayHeader(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		notCalled(t, s.atlas)
		good := credential(s.atlas)
		wantAmbiguous.check(t, c.call(testContext(t), create, append(good, "Grpc-Metadata-Authorization", "JWT a.b.c")...))
		// Alone it is not read.
		wantMissing.check(t, c.call(testContext(t), create, "Grpc-Metadata-Authorization", good[1]))
	})
}

// TestFault54ForwardedFor: what anybody can write is not where a call came from.
func TestFault54ForwardedFor(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		const forged = "203.0.113.7"
		wantCreated.check(t, c.call(testContext(t), create, append(credential(s.atlas), "X-Forwarded-For", forged, "X-Forwarded-Host", "forged.example", "Forwarded", "for="+forged, "X-Real-Ip", forged)...))
		if log := s.log.String(); strings.Contains(log, forged) || !strings.Contains(log, `"peer":"127.0.0.1:`) {
			t.Errorf("the log does not name the caller's own address: %s", log)
		}
		for name, values := range s.atlas.LastRequest().Header {
			if strings.Contains(strings.Join(values, " "), "orged") || strings.Contains(strings.Join(values, " "), forged) {
				t.Errorf("Atlas got %s: %v", name, values)
			}
		}
	})
}
