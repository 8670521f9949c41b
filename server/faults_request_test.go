package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// TestFault40OversizedHeaders: they are refused before the handler.
func TestFault40OversizedHeaders(t *testing.T) {
	t.Parallel()
	matrix(t, func(t *testing.T, s *service, c caller) {
		notCalled(t, s.atlas)
		for _, size := range []int{17 << 10, 18 << 10, 64 << 10} {
			got := c.call(testContext(t), create, append(credential(s.atlas), "x-large", strings.Repeat("x", size))...)
			if got.HTTP != 0 && got.HTTP != 431 {
				t.Errorf("%d bytes: status %d, want 431", size, got.HTTP)
			}
			if got.Code == codes.OK {
				t.Errorf("%d bytes were let in", size)
			}
		}
	})
	t.Run("gRPC on the wire", func(t *testing.T) {
		s := startService(t, plaintext) // a client library refuses by itself, by the server's settings
		notCalled(t, s.atlas)
		got := rawGRPC(t, s, createMethod, "authorization", credential(s.atlas)[1], "x-large", strings.Repeat("x", 16<<10))
		if !strings.HasPrefix(got, "RST_STREAM ") && got != "GOAWAY" && got != "closed" && got != "8" {
			t.Errorf("the server answered %q", got)
		}
	})
	t.Run("contract", func(t *testing.T) {
		s := startService(t, plaintext)
		// A little over the limit is answered in the contract's form; far over it, net/http closes the connection.
		w := want{code: codes.ResourceExhausted, http: 431, reason: "HEADERS_TOO_LARGE"}
		w.check(t, s.restCaller(t).call(testContext(t), create, "x-large", strings.Repeat("x", 16<<10)))
	})
}

// rawCodec sends bytes as they are, so that a test can send what is no message.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(mem.BufferSlice, any) error { return nil }

var _ encoding.CodecV2 = rawCodec{}

func (c grpcCaller) raw(ctx context.Context, conn *grpc.ClientConn, method string, message []byte, headers ...string) outcome {
	ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	var header, trailer metadata.MD
	var resp []byte
	err := conn.Invoke(ctx, method, message, &resp, grpc.ForceCodecV2(rawCodec{}), grpc.Header(&header), grpc.Trailer(&trailer))
	out := outcome{Header: metadata.Join(header, trailer), Early: header}
	out.setStatus(status.Convert(err))
	return out
}

const createMethod = ephemeraltokenv1.EphemeralTokenService_CreateToken_FullMethodName

func TestFault41OversizedMessage(t *testing.T) {
	matrix(t, func(t *testing.T, s *service, c caller) {
		notCalled(t, s.atlas)
		large := bytes.Repeat([]byte(" "), 64<<10+1)
		switch c := c.(type) {
		case restCaller:
			w := want{code: codes.ResourceExhausted, http: 413, reason: "REQUEST_TOO_LARGE"}
			w.check(t, c.do(testContext(t), "POST", "/v1/ephemeral-token", bytes.NewReader(large), credential(s.atlas)...))
			w.check(t, c.do(testContext(t), "DELETE", "/v1/ephemeral-token", io.MultiReader(bytes.NewReader(large)), credential(s.atlas)...)) // chunked
		case grpcCaller:
			// grpc-go stops at the length prefix, before there is anybody to add an ErrorInfo.
			for _, message := range [][]byte{large, bytes.Repeat(large, 5)} {
				if got := c.raw(testContext(t), s.grpcConn(t), createMethod, message, credential(s.atlas)...); got.Code != codes.ResourceExhausted {
					t.Errorf("got %v %s, want ResourceExhausted", got.Code, got.Message)
				}
			}
			// As large as is let in: one unknown field.
			largest := append([]byte{0x52, 0xfc, 0xff, 0x03}, large[:64<<10-4]...)
			wantMissing.check(t, c.raw(testContext(t), s.grpcConn(t), createMethod, largest))
		}
	})
}

func TestFault42MalformedProtobuf(t *testing.T) {
	s := startService(t, plaintext)
	c, conn := s.grpcCaller(t), s.grpcConn(t)
	t.Run("malformed", func(t *testing.T) {
		notCalled(t, s.atlas)
		if got := c.raw(testContext(t), conn, createMethod, []byte{0x0a, 0xff}, credential(s.atlas)...); got.Code != codes.Internal {
			t.Errorf("got %v %s, want INTERNAL, as grpc-go answers", got.Code, got.Message)
		}
	})
	t.Run("unknown fields", func(t *testing.T) {
		wantCreated.check(t, c.raw(testContext(t), conn, createMethod, []byte{0x52, 0x01, 'x'}, credential(s.atlas)...)) // field 10
		rest := s.restCaller(t)
		body := strings.NewReader(`{"unknown": {"deep": [1]}}`)
		wantCreated.check(t, rest.do(testContext(t), "POST", "/v1/ephemeral-token", body, append(credential(s.atlas), "Content-Type", "application/json")...))
	})
	t.Run("unknown method", func(t *testing.T) {
		notCalled(t, s.atlas)
		got := c.raw(testContext(t), conn, "/forsta.ephemeraltoken.v1.EphemeralTokenService/ListTokens", nil, credential(s.atlas)...)
		if got.Code != codes.Unimplemented || got.Reason != "ROUTE_NOT_FOUND" {
			t.Errorf("got %v %s, want Unimplemented ROUTE_NOT_FOUND", got.Code, got.Reason)
		}
		if id := got.header("x-request-id"); id == "" || !strings.Contains(s.log.String(), `"request_id":"`+id+`"`) {
			t.Errorf("the log does not have its request id %q", id)
		}
	})
}

func TestFault43ContentType(t *testing.T) {
	restMatrix(t, func(t *testing.T, s *service, c restCaller) {
		w := want{code: codes.InvalidArgument, http: 415, reason: "UNSUPPORTED_MEDIA_TYPE"}
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
				notCalled(t, s.atlas)
				w.check(t, c.do(testContext(t), "POST", "/v1/ephemeral-token", strings.NewReader("{}"), append(headers, credential(s.atlas)...)...))
			})
		}
		for _, accepted := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON"} {
			t.Run(accepted, func(t *testing.T) {
				wantCreated.check(t, c.do(testContext(t), "POST", "/v1/ephemeral-token", strings.NewReader("{}"), append(credential(s.atlas), "Content-Type", accepted)...))
				wantCreated.check(t, c.do(testContext(t), "POST", "/v1/ephemeral-token", nil, append(credential(s.atlas), "Content-Type", accepted)...))
			})
		}
	})
}

func TestFault44JSON(t *testing.T) {
	restMatrix(t, func(t *testing.T, s *service, c restCaller) {
		deep := strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9)
		for name, tc := range map[string]struct {
			body string
			want want
		}{
			"huge":           {`{"a": "` + strings.Repeat("x", 64<<10) + `"}`, want{code: codes.ResourceExhausted, http: 413, reason: "REQUEST_TOO_LARGE"}},
			"nested":         {deep, want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}},
			"nested to 64 K": {strings.Repeat("[", 64<<10), want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}},
			"not JSON":       {"planted", want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}},
			"not an object":  {"[]", want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}},
			"two values":     {"{}{}", want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}},
			"cut short":      {`{"a": 1`, want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}},
		} {
			t.Run(name, func(t *testing.T) {
				notCalled(t, s.atlas)
				got := c.do(testContext(t), "POST", "/v1/ephemeral-token", strings.NewReader(tc.body), append(credential(s.atlas), "Content-Type", "application/json")...)
				tc.want.check(t, got)
				if strings.Contains(got.Body, "planted") {
					t.Error("the answer repeats the body")
				}
			})
		}
		t.Run("a bad Grpc-Timeout", func(t *testing.T) {
			notCalled(t, s.atlas)
			w := want{code: codes.InvalidArgument, http: 400, reason: "REQUEST_MALFORMED"}
			for _, bad := range []string{"soon", "5", "S", "-5S", "+5S", "1.5S", "999999999S", "5s"} {
				w.check(t, c.call(testContext(t), create, append(credential(s.atlas), "Grpc-Timeout", bad)...))
			}
			w.check(t, c.call(testContext(t), create, append(credential(s.atlas), "Grpc-Timeout", "5S", "Grpc-Timeout", "5S")...))
		})
		t.Run("the longest Grpc-Timeout", func(t *testing.T) {
			wantCreated.check(t, c.call(testContext(t), create, append(credential(s.atlas), "Grpc-Timeout", "99999999H")...))
		})
	})
}

func TestFault45Paths(t *testing.T) {
	s := startService(t, plaintext)
	notCalled(t, s.atlas)
	for _, path := range []string{
		"/v1/ephemeral-token/", "//v1/ephemeral-token", "/v1//ephemeral-token", "/v1/./ephemeral-token", "/v1/x/../ephemeral-token",
		"/v1/%2e/ephemeral-token", "/v1/x/%2e%2e/ephemeral-token", "/v1/ephemeral%2Dtoken", "/v1%2Fephemeral-token", "/V1/ephemeral-token",
		"/v1/ephemeral-token:delete", "/v1/ephemeral-token;a=b", "/", "/v1", "/forsta.ephemeraltoken.v1.EphemeralTokenService/CreateToken",
	} {
		t.Run(path, func(t *testing.T) {
			resp := rawHTTP(t, s, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\nAuthorization: %s\r\n\r\n", path, credential(s.atlas)[1]))
			if resp.StatusCode != 404 || resp.Header.Get("Location") != "" {
				t.Errorf("status %d, Location %q, want 404 and none", resp.StatusCode, resp.Header.Get("Location"))
			}
		})
	}
	t.Run("OPTIONS *", func(t *testing.T) {
		resp := rawHTTP(t, s, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if resp.StatusCode != 404 || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("status %d, X-Request-Id %q, want 404 and one", resp.StatusCode, resp.Header.Get("X-Request-Id"))
		}
	})
	t.Run("contract", func(t *testing.T) {
		wantNoRoute.check(t, s.restCaller(t).do(testContext(t), "POST", "/v1/ephemeral-tokens", nil, credential(s.atlas)...))
	})
	t.Run("gRPC path without slash", func(t *testing.T) {
		// A client library would add the slash, so the frame is written by hand.
		if got := rawGRPC(t, s, createMethod[1:], "authorization", credential(s.atlas)[1]); got != "12" {
			t.Errorf("a :path without slash: grpc-status %q, want 12", got)
		}
	})
}

func TestFault46MethodOverride(t *testing.T) {
	restMatrix(t, func(t *testing.T, s *service, c restCaller) {
		for _, contentType := range []string{"application/x-www-form-urlencoded", "application/json", ""} {
			for _, header := range []string{"X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"} {
				headers := append(credential(s.atlas), header, "DELETE")
				if contentType != "" {
					headers = append(headers, "Content-Type", contentType)
				}
				if got := c.do(testContext(t), "POST", "/v1/ephemeral-token", strings.NewReader(""), headers...); got.HTTP != 201 && got.HTTP != 415 {
					t.Errorf("%s with %q: status %d, want 201 or 415", header, contentType, got.HTTP)
				}
			}
		}
		if n := s.atlas.Calls(emulator.Delete); n != 0 {
			t.Errorf("Atlas saw %d DELETEs, want 0", n)
		}
	})
}

func TestFault47OtherVerb(t *testing.T) {
	restMatrix(t, func(t *testing.T, s *service, c restCaller) {
		notCalled(t, s.atlas)
		for _, verb := range []string{"GET", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW"} {
			t.Run(verb, func(t *testing.T) {
				got := c.do(testContext(t), verb, "/v1/ephemeral-token", nil, credential(s.atlas)...)
				if verb == "HEAD" { // an answer to HEAD has no body to look at
					if got.HTTP != 405 {
						t.Errorf("status %d, want 405", got.HTTP)
					}
				} else {
					want{code: codes.Unimplemented, http: 405, reason: "METHOD_NOT_ALLOWED"}.check(t, got)
				}
				if allow := got.header("allow"); allow != "DELETE, POST" {
					t.Errorf("Allow is %q, want \"DELETE, POST\"", allow)
				}
			})
		}
	})
}
