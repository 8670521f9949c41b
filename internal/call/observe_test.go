package call

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// responseStream keeps the metadata of a response.
type responseStream struct {
	discardStream
	header, trailer metadata.MD
}

func (s *responseStream) SetHeader(md metadata.MD) error {
	s.header = metadata.Join(s.header, md)
	return nil
}
func (s *responseStream) SetTrailer(md metadata.MD) error {
	s.trailer = metadata.Join(s.trailer, md)
	return nil
}

// TestResponseMetadata checks that metadata goes out in headers, or in trailers alone with an
// error; and that REST gets it from the chain.
func TestResponseMetadata(t *testing.T) {
	fails := func(reason apierror.Reason) grpc.UnaryHandler {
		return func(context.Context, any) (any, error) { return nil, &apierror.Error{Reason: reason} }
	}
	for name, tc := range map[string]struct {
		handler         grpc.UnaryHandler
		header, trailer string // names, sorted
	}{
		"success":         {ok, "x-request-id", ""},
		"retryable":       {fails(apierror.Overloaded), "", "grpc-retry-pushback-ms x-request-id"},
		"unauthenticated": {fails(apierror.CredentialMissing), "", "grpc-retry-pushback-ms www-authenticate x-request-id"},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c", RequestIDHeader, "id-1"))
		stream := &responseStream{}
		_, _ = New(testConfig())(grpc.NewContextWithServerTransportStream(ctx, stream), nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, tc.handler)
		if header, trailer := names(stream.header), names(stream.trailer); header != tc.header || trailer != tc.trailer {
			t.Errorf("%s: headers %q and trailers %q, want %q and %q", name, header, trailer, tc.header, tc.trailer)
		}
		if id := metadata.Join(stream.header, stream.trailer).Get(RequestIDHeader); len(id) != 1 || id[0] != "id-1" {
			t.Errorf("%s: the request id is %q", name, id)
		}

		var got []metadata.MD
		stream = &responseStream{}
		rest, _ := WithREST(grpc.NewContextWithServerTransportStream(ctx, stream), http.Header{"X-Request-Id": {"id-2"}}, func(md metadata.MD) { got = append(got, md) })
		_, _ = New(testConfig())(rest, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, tc.handler)
		if diff := cmp.Diff([]metadata.MD{metadata.Pairs(RequestIDHeader, "id-2")}, got); diff != "" || stream.header != nil || stream.trailer != nil {
			t.Errorf("%s over REST (-want +got), and over gRPC %v %v:\n%s", name, stream.header, stream.trailer, diff)
		}
	}
}

// names returns the names in metadata, sorted.
func names(md metadata.MD) string {
	return strings.Join(slices.Sorted(maps.Keys(md)), " ")
}

// TestLogAndAudit checks the one log line and the one audit record of a call.
func TestLogAndAudit(t *testing.T) {
	for name, tc := range map[string]struct {
		handler grpc.UnaryHandler
		line    map[string]any
		outcome string
	}{
		"success": {ok, map[string]any{"level": "DEBUG", "msg": "call", "code": "OK"}, "OK"},
		"failed": {
			func(context.Context, any) (any, error) {
				return nil, &apierror.Error{Reason: apierror.AtlasForbidden, Cause: errors.New("planted cause")}
			},
			map[string]any{"level": "INFO", "msg": "call failed", "code": "PermissionDenied", "reason": "ATLAS_FORBIDDEN", "cause": "planted cause"}, "ATLAS_FORBIDDEN",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log, audit bytes.Buffer
			cfg := testConfig()
			cfg.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			cfg.Audit = slog.New(slog.NewJSONHandler(&audit, nil))
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c", RequestIDHeader, "id-1"))
			ctx = peer.NewContext(ctx, &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}})
			_, _ = New(cfg)(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, tc.handler)

			got := line(t, &log)
			for key, want := range tc.line {
				if got[key] != want {
					t.Errorf("the line has %s %v, want %v", key, got[key], want)
				}
			}
			if got["method"] != "/s/M" || got["request_id"] != "id-1" {
				t.Errorf("the line is %v", got)
			}
			if _, failed := got["reason"]; failed != (tc.outcome != "OK") {
				t.Errorf("the line is %v", got)
			}
			got = line(t, &audit)
			for key, want := range map[string]any{
				"msg": "call", "method": "M", "outcome": tc.outcome, "profile": "passthrough", "request_id": "id-1", "peer": "127.0.0.1:1",
			} {
				if got[key] != want {
					t.Errorf("the record has %s %v, want %v", key, got[key], want)
				}
			}
		})
	}
}

// line parses the only line of a log.
func line(t *testing.T, log *bytes.Buffer) map[string]any {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal(log.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	return got
}

// TestUnauthenticated checks that the handler of a call without a credential does not run.
func TestUnauthenticated(t *testing.T) {
	_, err := New(testConfig())(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, func(context.Context, any) (any, error) {
		t.Error("the handler ran")
		return nil, nil
	})
	if e := apierror.From(err); e.Reason != apierror.CredentialMissing {
		t.Errorf("got %v", err)
	}
}

// TestOrigin checks that the log line of a failed call has the caller, transport, user agent and
// trace id, and nothing that looks like a secret.
func TestOrigin(t *testing.T) {
	const trace, token = "0af7651916cd43dd8448eb211c80319c", "0fd801d60dfe6c7bcc1b305de304d07a8fb26ea7"
	parent := "00-" + trace + "-b7ad6b7169203331-01"
	for name, test := range map[string]struct {
		ctx       func(context.Context) context.Context
		transport string
		agent     string
	}{
		"grpc": {func(ctx context.Context) context.Context {
			return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "JWT a.b.c", "user-agent", "grpc-go/1.85.0", "traceparent", parent))
		}, "grpc", "grpc-go/1.85.0"},
		"rest": {func(ctx context.Context) context.Context {
			ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "JWT a.b.c", "traceparent", parent))
			ctx, _ = WithREST(ctx, http.Header{"User-Agent": {"curl/8.0"}}, func(metadata.MD) {})
			return ctx
		}, "rest", "curl/8.0"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			cfg := testConfig()
			cfg.Logger = slog.New(slog.NewJSONHandler(&log, nil))
			ctx := peer.NewContext(test.ctx(t.Context()), &peer.Peer{Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}})
			_, _ = New(cfg)(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, func(context.Context, any) (any, error) {
				return nil, &apierror.Error{Reason: apierror.Overloaded}
			})
			var line struct {
				Transport string
				Peer      string
				Caller    struct{ Kind, Name string }
				UserAgent string `json:"user_agent"`
				TraceID   string `json:"trace_id"`
			}
			if err := json.Unmarshal(log.Bytes(), &line); err != nil {
				t.Fatal(err)
			}
			if line.Transport != test.transport || line.UserAgent != test.agent || line.TraceID != trace || line.Caller.Kind != "atlas" || line.Peer != "127.0.0.1:1" {
				t.Errorf("the line is %s", &log)
			}
		})
	}
	for value, want := range map[string]string{
		"":                                       "",
		"Mozilla/5.0 (X11) Gecko/20100101":       "Mozilla/5.0 (X11) Gecko/20100101",
		"tab\tline\nbell\aü":                     "tab?line?bell??",
		strings.Repeat("x y ", 50):               strings.Repeat("x y ", 32),
		"JWT eyJhbGciOiJub25lIn0.e30.c2ln":       "(withheld: it looks like a secret)",
		"agent/1 " + token:                       "(withheld: it looks like a secret)",
		strings.Repeat("x y ", 50) + " " + token: "(withheld: it looks like a secret)",
		"ephemeral-token-service/v0.0.0-20261125110000-abcdef123456": "ephemeral-token-service/v0.0.0-20261125110000-abcdef123456",
	} {
		if got := userAgent([]string{value}); got != want {
			t.Errorf("user agent %q is logged as %q, want %q", value, got, want)
		}
	}
}

// TestRequestID checks that a caller's id is kept if it is fit for a log line and is no credential.
func TestRequestID(t *testing.T) {
	for name, id := range map[string]string{
		"UUID": "0d5bf3a4-5f0c-4e0c-9a55-0d7a9f6d1a9b", "ULID": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "the whole alphabet": "azAZ09-_.:/+=",
		"one character": "a", "the longest": strings.Repeat("x", maxRequestID),
	} {
		if got := chooseRequestID([]string{id}); got != id {
			t.Errorf("%s: %q became %q", name, id, got)
		}
	}
	seen := map[string]bool{}
	for name, values := range map[string][]string{
		"none": nil, "empty": {""}, "two": {"a", "b"}, "too long": {strings.Repeat("x", maxRequestID+1)}, "a JWT": {"eyJh.eyJi.c2ln"},
		"a line feed": {"a\nb"}, "NUL": {"\x00"}, "a space": {"a b"}, "a quote": {`a"`}, "beyond the letters": {"a{"}, "before them": {"`"},
		"beyond the capitals": {"a["}, "before them, too": {"@"}, "beyond the digits": {"1;"}, "not ASCII": {"é"}, "not UTF-8": {"a\xff"},
	} {
		got := chooseRequestID(values)
		if len(got) != 26 || !isRequestID(got) || seen[got] {
			t.Errorf("%s: the id is %q", name, got)
		}
		seen[got] = true
	}
}
