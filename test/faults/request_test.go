package faults

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestFault40OversizedHeaders: they are refused before the handler.
func TestFault40OversizedHeaders(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		for _, size := range []int{17 << 10, 18 << 10, 64 << 10} {
			got := c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "x-large", strings.Repeat("x", size))...)
			if got.HTTP != 0 && got.HTTP != 431 {
				t.Errorf("%d bytes: status %d, want 431", size, got.HTTP)
			}
			if got.Code == codes.OK {
				t.Errorf("%d bytes were let in", size)
			}
		}
	})
	t.Run("gRPC on the wire", func(t *testing.T) {
		s := testutil.Start(t, testutil.Plaintext) // a client library refuses by itself, by the server's settings
		testutil.NotCalled(t, s.Atlas)
		got := testutil.RawGRPC(t, s, testutil.CreateMethod, "authorization", testutil.Credential(s.Atlas)[1], "x-large", strings.Repeat("x", 16<<10))
		if !strings.HasPrefix(got, "RST_STREAM ") && got != "GOAWAY" && got != "closed" && got != "8" {
			t.Errorf("the server answered %q", got)
		}
	})
	t.Run("contract", func(t *testing.T) {
		s := testutil.Start(t, testutil.Plaintext)
		// A little over the limit is answered in the contract's form; far over it, net/http closes
		// the connection.
		w := testutil.Want{Code: codes.ResourceExhausted, HTTP: 431, Reason: "HEADERS_TOO_LARGE"}
		w.Check(t, s.RESTCaller(t).Call(testutil.Context(t), testutil.Create, "x-large", strings.Repeat("x", 16<<10)))
	})
}

func TestFault41OversizedMessage(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		large := bytes.Repeat([]byte(" "), 64<<10+1)
		switch c := c.(type) {
		case testutil.RESTCaller:
			w := testutil.Want{Code: codes.ResourceExhausted, HTTP: 413, Reason: "REQUEST_TOO_LARGE"}
			w.Check(t, c.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", bytes.NewReader(large), testutil.Credential(s.Atlas)...))
			w.Check(t, c.Do(testutil.Context(t), "DELETE", "/v1/ephemeral-token", io.MultiReader(bytes.NewReader(large)), testutil.Credential(s.Atlas)...)) // chunked
		case testutil.GRPCCaller:
			// grpc-go stops at the length prefix, before there is anybody to add an ErrorInfo.
			for _, message := range [][]byte{large, bytes.Repeat(large, 5)} {
				if got := c.Raw(testutil.Context(t), s.GRPCConn(t), testutil.CreateMethod, message, testutil.Credential(s.Atlas)...); got.Code != codes.ResourceExhausted {
					t.Errorf("got %v %s, want ResourceExhausted", got.Code, got.Message)
				}
			}
			// As large as is let in: one unknown field.
			largest := append([]byte{0x52, 0xfc, 0xff, 0x03}, large[:64<<10-4]...)
			testutil.WantMissing.Check(t, c.Raw(testutil.Context(t), s.GRPCConn(t), testutil.CreateMethod, largest))
		}
	})
}

func TestFault42MalformedProtobuf(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	c, conn := s.GRPCCaller(t), s.GRPCConn(t)
	t.Run("malformed", func(t *testing.T) {
		testutil.NotCalled(t, s.Atlas)
		if got := c.Raw(testutil.Context(t), conn, testutil.CreateMethod, []byte{0x0a, 0xff}, testutil.Credential(s.Atlas)...); got.Code != codes.Internal {
			t.Errorf("got %v %s, want INTERNAL, as grpc-go answers", got.Code, got.Message)
		}
	})
	t.Run("unknown fields", func(t *testing.T) {
		testutil.WantCreated.Check(t, c.Raw(testutil.Context(t), conn, testutil.CreateMethod, []byte{0x52, 0x01, 'x'}, testutil.Credential(s.Atlas)...)) // field 10
		rest := s.RESTCaller(t)
		body := strings.NewReader(`{"unknown": {"deep": [1]}}`)
		testutil.WantCreated.Check(t, rest.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", body, append(testutil.Credential(s.Atlas), "Content-Type", "application/json")...))
	})
	t.Run("unknown method", func(t *testing.T) {
		testutil.NotCalled(t, s.Atlas)
		got := c.Raw(testutil.Context(t), conn, "/forsta.ephemeraltoken.v1.EphemeralTokenService/ListTokens", nil, testutil.Credential(s.Atlas)...)
		if got.Code != codes.Unimplemented || got.Reason != "ROUTE_NOT_FOUND" {
			t.Errorf("got %v %s, want Unimplemented ROUTE_NOT_FOUND", got.Code, got.Reason)
		}
		if id := got.Get("x-request-id"); id == "" || !strings.Contains(s.Log.String(), `"request_id":"`+id+`"`) {
			t.Errorf("the log does not have its request id %q", id)
		}
	})
}

func TestFault43ContentType(t *testing.T) {
	t.Parallel()
	testutil.RestMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		w := testutil.Want{Code: codes.InvalidArgument, HTTP: 415, Reason: "UNSUPPORTED_MEDIA_TYPE"}
		for _, headers := range [][]string{
			{"Content-Type", "text/plain"},
			{"Content-Type", "application/x-www-form-urlencoded"},
			{"Content-Type", "application/grpc"},
			{"Content-Type", "application/json-patch+json"},
			{"Content-Type", ";;"},
			{"Content-Type", "application/json", "Content-Type", "text/plain"},
			{"Content-Type", "application/json", "Content-Encoding", "gzip"},
		} {
			t.Run(strings.Join(headers, " "), func(t *testing.T) {
				testutil.NotCalled(t, s.Atlas)
				w.Check(t, c.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", strings.NewReader("{}"), append(headers, testutil.Credential(s.Atlas)...)...))
			})
		}
		for _, accepted := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON"} {
			t.Run(accepted, func(t *testing.T) {
				testutil.WantCreated.Check(t, c.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", strings.NewReader("{}"), append(testutil.Credential(s.Atlas), "Content-Type", accepted)...))
				testutil.WantCreated.Check(t, c.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", nil, append(testutil.Credential(s.Atlas), "Content-Type", accepted)...))
			})
		}
	})
}

func TestFault44JSON(t *testing.T) {
	t.Parallel()
	testutil.RestMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		deep := strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9)
		for name, tc := range map[string]struct {
			body string
			want testutil.Want
		}{
			"huge":           {`{"a": "` + strings.Repeat("x", 64<<10) + `"}`, testutil.Want{Code: codes.ResourceExhausted, HTTP: 413, Reason: "REQUEST_TOO_LARGE"}},
			"nested":         {deep, testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}},
			"nested to 64 K": {strings.Repeat("[", 64<<10), testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}},
			"not JSON":       {"planted", testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}},
			"not an object":  {"[]", testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}},
			"two values":     {"{}{}", testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}},
			"cut short":      {`{"a": 1`, testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}},
		} {
			t.Run(name, func(t *testing.T) {
				testutil.NotCalled(t, s.Atlas)
				got := c.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", strings.NewReader(tc.body), append(testutil.Credential(s.Atlas), "Content-Type", "application/json")...)
				tc.want.Check(t, got)
				if strings.Contains(got.Body, "planted") {
					t.Error("the answer repeats the body")
				}
			})
		}
		t.Run("a bad Grpc-Timeout", func(t *testing.T) {
			testutil.NotCalled(t, s.Atlas)
			w := testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}
			for _, bad := range []string{"soon", "5", "S", "-5S", "+5S", "1.5S", "999999999S", "5s"} {
				w.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Grpc-Timeout", bad)...))
			}
			w.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Grpc-Timeout", "5S", "Grpc-Timeout", "5S")...))
		})
		t.Run("the longest Grpc-Timeout", func(t *testing.T) {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Grpc-Timeout", "99999999H")...))
		})
	})
}

func TestFault45Paths(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	testutil.NotCalled(t, s.Atlas)
	for _, path := range []string{
		"/v1/ephemeral-token/", "//v1/ephemeral-token", "/v1//ephemeral-token", "/v1/./ephemeral-token", "/v1/x/../ephemeral-token",
		"/v1/%2e/ephemeral-token", "/v1/x/%2e%2e/ephemeral-token", "/v1/ephemeral%2Dtoken", "/v1%2Fephemeral-token", "/V1/ephemeral-token",
		"/v1/ephemeral-token:delete", "/v1/ephemeral-token;a=b", "/", "/v1", "/forsta.ephemeraltoken.v1.EphemeralTokenService/CreateToken",
	} {
		t.Run(path, func(t *testing.T) {
			resp := testutil.RawHTTP(t, s, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: %s\r\n\r\n", path, testutil.Credential(s.Atlas)[1]))
			if resp.StatusCode != 404 || resp.Header.Get("Location") != "" {
				t.Errorf("status %d, Location %q, want 404 and none", resp.StatusCode, resp.Header.Get("Location"))
			}
		})
	}
	t.Run("OPTIONS *", func(t *testing.T) {
		resp := testutil.RawHTTP(t, s, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != 404 || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("status %d, X-Request-Id %q, want 404 and one", resp.StatusCode, resp.Header.Get("X-Request-Id"))
		}
	})
	t.Run("contract", func(t *testing.T) {
		testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), "POST", "/v1/ephemeral-tokens", nil, testutil.Credential(s.Atlas)...))
	})
	t.Run("gRPC path without slash", func(t *testing.T) {
		// A client library would add the slash, so the frame is written by hand.
		if got := testutil.RawGRPC(t, s, testutil.CreateMethod[1:], "authorization", testutil.Credential(s.Atlas)[1]); got != "12" {
			t.Errorf("a :path without slash: grpc-status %q, want 12", got)
		}
	})
}

func TestFault46MethodOverride(t *testing.T) {
	t.Parallel()
	testutil.RestMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		for _, contentType := range []string{"application/x-www-form-urlencoded", "application/json", ""} {
			for _, header := range []string{"X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"} {
				headers := append(testutil.Credential(s.Atlas), header, "DELETE")
				if contentType != "" {
					headers = append(headers, "Content-Type", contentType)
				}
				if got := c.Do(testutil.Context(t), "POST", "/v1/ephemeral-token", strings.NewReader(""), headers...); got.HTTP != 201 && got.HTTP != 415 {
					t.Errorf("%s with %q: status %d, want 201 or 415", header, contentType, got.HTTP)
				}
			}
		}
		if n := s.Atlas.Calls(emulator.Delete); n != 0 {
			t.Errorf("Atlas saw %d DELETEs, want 0", n)
		}
	})
}

func TestFault47OtherVerb(t *testing.T) {
	t.Parallel()
	testutil.RestMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		testutil.NotCalled(t, s.Atlas)
		for _, verb := range []string{"GET", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW"} {
			t.Run(verb, func(t *testing.T) {
				got := c.Do(testutil.Context(t), verb, "/v1/ephemeral-token", nil, testutil.Credential(s.Atlas)...)
				if verb == "HEAD" { // an answer to HEAD has no body to look at
					if got.HTTP != 405 {
						t.Errorf("status %d, want 405", got.HTTP)
					}
				} else {
					testutil.Want{Code: codes.Unimplemented, HTTP: 405, Reason: "METHOD_NOT_ALLOWED"}.Check(t, got)
				}
				if allow := got.Get("allow"); allow != "DELETE, POST" {
					t.Errorf("Allow is %q, want \"DELETE, POST\"", allow)
				}
			})
		}
	})
}
