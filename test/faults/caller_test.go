package faults

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// Rows 36 to 39: no credential that is not exactly one well-formed JWT gets as far as Atlas.

func TestFault36NoCredential(t *testing.T)   { testCredentialRow(t, "36") }
func TestFault37Malformed(t *testing.T)      { testCredentialRow(t, "37") }
func TestFault38Whitespace(t *testing.T)     { testCredentialRow(t, "38") }
func TestFault39TwoCredentials(t *testing.T) { testCredentialRow(t, "39") }

func testCredentialRow(t *testing.T, row string) {
	t.Helper()
	t.Parallel()
	const jwt = "eyJhbGciOiJIUzI1NiJ9.eyJvcmdfaWQiOiJ4In0.c2lnbmF0dXJl"
	cases := []struct {
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
	}
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for _, tc := range cases {
			if !strings.HasPrefix(tc.name, row+" ") {
				continue
			}
			t.Run(tc.name, func(t *testing.T) {
				testutil.NotCalled(t, s.Atlas)
				tc.want.Check(t, c.Call(testutil.Context(t), testutil.Create, tc.headers...))
				tc.want.Check(t, c.Call(testutil.Context(t), testutil.Delete, tc.headers...))
			})
		}
		if strings.Contains(s.Log.String(), jwt) {
			t.Error("the log has a credential in it")
		}
	})
}

func TestBearerMeansJWT(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		for _, scheme := range []string{"JWT", "Bearer", "jwt", "bearer"} {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, "authorization", scheme+" "+s.Atlas.Org(0).JWT()))
			if got := s.Atlas.LastRequest().Header.Get("Authorization"); !strings.HasPrefix(got, "JWT ") {
				t.Errorf("%s: Atlas got another scheme", scheme)
			}
		}
	})
}

// TestFault38Bytes sends what no decent client would: the bytes that could split a header or name
// another one.
func TestFault38Bytes(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		if _, rest := c.(testutil.RESTCaller); !rest {
			t.Skip("a gRPC peer refuses such a value in its HTTP/2 framer; internal/auth tests the parser itself")
		}
		for name, value := range map[string]string{"non-ASCII": "JWT a.b.\xc3\xa9", "NUL": "JWT a.b.c\x00", "bare CR": "JWT a.b.c\rX-Y: z", "LF": "JWT a.b.c\n d"} {
			t.Run(name, func(t *testing.T) {
				testutil.NotCalled(t, s.Atlas)
				resp := testutil.RawHTTP(t, s, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: "+value+"\r\n\r\n")
				if resp.StatusCode != 400 && resp.StatusCode != 401 {
					t.Errorf("status %d, want 400 or 401", resp.StatusCode)
				}
			})
		}
	})
}

func TestFault39GatewayHeader(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		good := testutil.Credential(s.Atlas)
		testutil.WantAmbiguous.Check(t, c.Call(testutil.Context(t), testutil.Create, append(good, "Grpc-Metadata-Authorization", "JWT a.b.c")...))
		// Alone it is not read.
		testutil.WantMissing.Check(t, c.Call(testutil.Context(t), testutil.Create, "Grpc-Metadata-Authorization", good[1]))
	})
}

// TestFault54ForwardedFor: what anybody can write is not where a call came from.
func TestFault54ForwardedFor(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		const forged = "203.0.113.7"
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "X-Forwarded-For", forged, "X-Forwarded-Host", "forged.example", "Forwarded", "for="+forged, "X-Real-Ip", forged)...))
		if log := s.Log.String(); strings.Contains(log, forged) || !strings.Contains(log, `"peer":"127.0.0.1:`) {
			t.Errorf("the log does not name the caller's own address: %s", log)
		}
		for name, values := range s.Atlas.LastRequest().Header {
			if strings.Contains(strings.Join(values, " "), "orged") || strings.Contains(strings.Join(values, " "), forged) {
				t.Errorf("Atlas got %s: %v", name, values)
			}
		}
	})
}
