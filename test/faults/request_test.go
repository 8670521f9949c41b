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

// post makes a create with a body; headers is in pairs.
func post(t *testing.T, s *testutil.Service, c testutil.RESTCaller, body string, headers ...string) testutil.Outcome {
	t.Helper()
	return c.Do(testutil.Context(t), "POST", testutil.ServicePath, strings.NewReader(body), append(headers, testutil.Credential(s.Atlas)...)...)
}

// TestFault40OversizedHeaders checks that oversized headers are refused before the handler.
func TestFault40OversizedHeaders(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		for _, size := range []int{17 << 10, 18 << 10, 64 << 10} {
			got := c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "x-large", strings.Repeat("x", size))...)
			if got.HTTP != 0 && got.HTTP != 431 || got.Code == codes.OK {
				t.Errorf("%d bytes: status %d, code %v, want 431", size, got.HTTP, got.Code)
			}
		}
		if rest, ok := c.(testutil.RESTCaller); ok { // far over the limit, net/http answers itself
			w := testutil.Want{Code: codes.ResourceExhausted, HTTP: 431, Reason: "HEADERS_TOO_LARGE"}
			w.Check(t, rest.Call(testutil.Context(t), testutil.Create, "x-large", strings.Repeat("x", 16<<10)))
			return
		}
		if s.Mode != testutil.Plaintext {
			return
		}
		// A client library refuses such headers itself, by the server's settings.
		got := testutil.RawGRPC(t, s, testutil.CreateMethod, "authorization", testutil.Credential(s.Atlas)[1], "x-large", strings.Repeat("x", 16<<10))
		if !strings.HasPrefix(got, "RST_STREAM ") && got != "GOAWAY" && got != "closed" && got != "8" {
			t.Errorf("on the wire: %q", got)
		}
	})
}

// TestFault41OversizedMessage checks that messages and bodies over 64 KiB are refused.
func TestFault41OversizedMessage(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		large := bytes.Repeat([]byte(" "), 64<<10+1)
		switch c := c.(type) {
		case testutil.RESTCaller:
			w := testutil.Want{Code: codes.ResourceExhausted, HTTP: 413, Reason: "REQUEST_TOO_LARGE"}
			w.Check(t, post(t, s, c, string(large)))
			chunked := io.MultiReader(bytes.NewReader(large))
			w.Check(t, c.Do(testutil.Context(t), "DELETE", testutil.ServicePath, chunked, testutil.Credential(s.Atlas)...))
		case testutil.GRPCCaller:
			// grpc-go stops at the length prefix, so there is no ErrorInfo.
			for _, message := range [][]byte{large, bytes.Repeat(large, 5)} {
				if got := c.Raw(testutil.Context(t), s.GRPCConn(t), testutil.CreateMethod, message, testutil.Credential(s.Atlas)...); got.Code != codes.ResourceExhausted {
					t.Errorf("got %v %s, want ResourceExhausted", got.Code, got.Message)
				}
			}
			largest := append([]byte{0x52, 0xfc, 0xff, 0x03}, large[:64<<10-4]...) // one unknown field
			testutil.WantMissing.Check(t, c.Raw(testutil.Context(t), s.GRPCConn(t), testutil.CreateMethod, largest))
		}
	})
}

// TestFault42MalformedProtobuf checks malformed messages, unknown fields and unknown methods.
func TestFault42MalformedProtobuf(t *testing.T) {
	t.Parallel()
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.Plaintext)
		c, conn := s.GRPCCaller(t), s.GRPCConn(t)
		if got := c.Raw(testutil.Context(t), conn, testutil.CreateMethod, []byte{0x0a, 0xff}, testutil.Credential(s.Atlas)...); got.Code != codes.Internal {
			t.Errorf("got %v %s, want grpc-go's own INTERNAL", got.Code, got.Message)
		}
		got := c.Raw(testutil.Context(t), conn, "/forsta.ephemeraltoken.v1.EphemeralTokenService/ListTokens", nil, testutil.Credential(s.Atlas)...)
		if got.Code != codes.Unimplemented || got.Reason != "ROUTE_NOT_FOUND" {
			t.Errorf("got %v %s, want Unimplemented ROUTE_NOT_FOUND", got.Code, got.Reason)
		}
		if id := got.Get("x-request-id"); id == "" || !strings.Contains(s.Log.String(), `"request_id":"`+id+`"`) {
			t.Errorf("the log does not have the request id %q", id)
		}
		if n := s.Atlas.Calls(emulator.Any); n != 0 {
			t.Errorf("%d calls to Atlas, want 0", n)
		}
		testutil.WantCreated.Check(t, c.Raw(testutil.Context(t), conn, testutil.CreateMethod, []byte{0x52, 0x01, 'x'}, testutil.Credential(s.Atlas)...)) // field 10
		testutil.WantCreated.Check(t, post(t, s, s.RESTCaller(t), `{"unknown": {"deep": [1]}}`, "Content-Type", "application/json"))
	})
}

// TestFault43ContentType checks which media types REST accepts.
func TestFault43ContentType(t *testing.T) {
	t.Parallel()
	testutil.RESTMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		for _, headers := range [][]string{
			{"Content-Type", "text/plain"},
			{"Content-Type", "application/x-www-form-urlencoded"},
			{"Content-Type", "application/grpc"},
			{"Content-Type", "application/json-patch+json"},
			{"Content-Type", ";;"},
			{"Content-Type", "application/json", "Content-Type", "text/plain"},
			{"Content-Type", "application/json", "Content-Encoding", "gzip"},
		} {
			t.Log(headers)
			testutil.Want{Code: codes.InvalidArgument, HTTP: 415, Reason: "UNSUPPORTED_MEDIA_TYPE"}.Check(t, post(t, s, c, "{}", headers...))
		}
		if n := s.Atlas.Calls(emulator.Any); n != 0 {
			t.Errorf("%d calls to Atlas, want 0", n)
		}
		for _, accepted := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON"} {
			testutil.WantCreated.Check(t, post(t, s, c, "{}", "Content-Type", accepted))
			testutil.WantCreated.Check(t, post(t, s, c, "", "Content-Type", accepted))
		}
	})
}

// TestFault44JSON checks that malformed, nested and huge JSON is refused, and so is a malformed
// Grpc-Timeout.
func TestFault44JSON(t *testing.T) {
	t.Parallel()
	testutil.RESTMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		malformed := testutil.Want{Code: codes.InvalidArgument, HTTP: 400, Reason: "REQUEST_MALFORMED"}
		large := testutil.Want{Code: codes.ResourceExhausted, HTTP: 413, Reason: "REQUEST_TOO_LARGE"}
		large.Check(t, post(t, s, c, `{"a": "`+strings.Repeat("x", 64<<10)+`"}`, "Content-Type", "application/json"))
		for name, body := range map[string]string{
			"nested":         strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9),
			"nested to 64 K": strings.Repeat("[", 64<<10),
			"not JSON":       "planted",
			"not an object":  "[]",
			"two values":     "{}{}",
			"cut short":      `{"a": 1`,
		} {
			t.Log(name)
			got := post(t, s, c, body, "Content-Type", "application/json")
			malformed.Check(t, got)
			if strings.Contains(got.Body, "planted") {
				t.Error("the response contains the body")
			}
		}
		for _, bad := range []string{"soon", "5", "S", "-5S", "+5S", "1.5S", "999999999S", "5s"} {
			t.Log("Grpc-Timeout: ", bad)
			malformed.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Grpc-Timeout", bad)...))
		}
		malformed.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Grpc-Timeout", "5S", "Grpc-Timeout", "5S")...))
		if n := s.Atlas.Calls(emulator.Any); n != 0 {
			t.Errorf("%d calls to Atlas, want 0", n)
		}
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, append(testutil.Credential(s.Atlas), "Grpc-Timeout", "99999999H")...))
	})
}

// TestFault45Paths checks that paths are neither cleaned nor decoded.
func TestFault45Paths(t *testing.T) {
	t.Parallel()
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.Plaintext)
		testutil.NotCalled(t, s.Atlas)
		for _, path := range []string{
			"/v1/ephemeral-token/", "//v1/ephemeral-token", "/v1//ephemeral-token", "/v1/./ephemeral-token", "/v1/x/../ephemeral-token",
			"/v1/%2e/ephemeral-token", "/v1/x/%2e%2e/ephemeral-token", "/v1/ephemeral%2Dtoken", "/v1%2Fephemeral-token", "/V1/ephemeral-token",
			"/v1/ephemeral-token:delete", "/v1/ephemeral-token;a=b", "/", "/v1", "/forsta.ephemeraltoken.v1.EphemeralTokenService/CreateToken",
		} {
			resp := testutil.RawHTTP(t, s, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: %s\r\n\r\n", path, testutil.Credential(s.Atlas)[1]))
			if resp.StatusCode != 404 || resp.Header.Get("Location") != "" {
				t.Errorf("%s: status %d, Location %q, want 404 and none", path, resp.StatusCode, resp.Header.Get("Location"))
			}
		}
		resp := testutil.RawHTTP(t, s, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != 404 || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("OPTIONS *: status %d, X-Request-Id %q, want 404 and one", resp.StatusCode, resp.Header.Get("X-Request-Id"))
		}
		testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), "POST", "/v1/ephemeral-tokens", nil, testutil.Credential(s.Atlas)...))
		// A client library would add the slash.
		if got := testutil.RawGRPC(t, s, testutil.CreateMethod[1:], "authorization", testutil.Credential(s.Atlas)[1]); got != "12" {
			t.Errorf("a :path without a slash: grpc-status %q, want 12", got)
		}
	})
}

// TestFault46MethodOverride checks that headers that override the method are ignored.
func TestFault46MethodOverride(t *testing.T) {
	t.Parallel()
	testutil.RESTMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		for _, contentType := range []string{"application/x-www-form-urlencoded", "application/json", ""} {
			for _, header := range []string{"X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"} {
				headers := []string{header, "DELETE"}
				if contentType != "" {
					headers = append(headers, "Content-Type", contentType)
				}
				if got := post(t, s, c, "", headers...); got.HTTP != 201 && got.HTTP != 415 {
					t.Errorf("%s with %q: status %d, want 201 or 415", header, contentType, got.HTTP)
				}
			}
		}
		if n := s.Atlas.Calls(emulator.Delete); n != 0 {
			t.Errorf("%d deletes at Atlas, want 0", n)
		}
	})
}

// TestFault47OtherVerb checks the response to other verbs.
func TestFault47OtherVerb(t *testing.T) {
	t.Parallel()
	testutil.RESTMatrix(t, func(t *testing.T, s *testutil.Service, c testutil.RESTCaller) {
		testutil.NotCalled(t, s.Atlas)
		for _, verb := range []string{"GET", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW"} {
			got := c.Do(testutil.Context(t), verb, testutil.ServicePath, nil, testutil.Credential(s.Atlas)...)
			if verb != "HEAD" { // it has no body
				testutil.Want{Code: codes.Unimplemented, HTTP: 405, Reason: "METHOD_NOT_ALLOWED"}.Check(t, got)
			}
			if allow := got.Get("allow"); got.HTTP != 405 || allow != "DELETE, POST" {
				t.Errorf("%s: status %d, Allow %q, want 405 and \"DELETE, POST\"", verb, got.HTTP, allow)
			}
		}
	})
}
