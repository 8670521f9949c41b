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

// answerStream keeps the metadata of an answer.
type answerStream struct {
	discardStream
	header, trailer metadata.MD
}

func (s *answerStream) SetHeader(md metadata.MD) error {
	s.header = metadata.Join(s.header, md)
	return nil
}
func (s *answerStream) SetTrailer(md metadata.MD) error {
	s.trailer = metadata.Join(s.trailer, md)
	return nil
}

// TestAnswerMetadata: what goes out beside an answer: over gRPC in headers or, of an error, in trailers alone; over REST where its front
// wants it.
func TestAnswerMetadata(t *testing.T) {
	fails := func(reason apierror.Reason) grpc.UnaryHandler {
		return func(context.Context, any) (any, error) { return nil, &apierror.Error{Reason: reason} }
	}
	for name, tc := range map[string]struct {
		handler         grpc.UnaryHandler
		header, trailer string // the names, sorted
	}{
		"answered":         {ok, "x-request-id", ""},
		"to be waited for": {fails(apierror.Overloaded), "", "grpc-retry-pushback-ms x-request-id"},
		"not let in":       {fails(apierror.CredentialMissing), "", "grpc-retry-pushback-ms www-authenticate x-request-id"},
	} {
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "JWT a.b.c", RequestIDHeader, "id-1"))
		stream := &answerStream{}
		_, _ = New(testConfig())(grpc.NewContextWithServerTransportStream(ctx, stream), nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, tc.handler)
		if header, trailer := names(stream.header), names(stream.trailer); header != tc.header || trailer != tc.trailer {
			t.Errorf("%s: headers %q and trailers %q, want %q and %q", name, header, trailer, tc.header, tc.trailer)
		}
		if id := metadata.Join(stream.header, stream.trailer).Get(RequestIDHeader); len(id) != 1 || id[0] != "id-1" {
			t.Errorf("%s: the call's id is %q", name, id)
		}

		var got []metadata.MD
		stream = &answerStream{}
		rest, _ := WithREST(grpc.NewContextWithServerTransportStream(ctx, stream), http.Header{"X-Request-Id": {"id-2"}}, func(md metadata.MD) { got = append(got, md) })
		_, _ = New(testConfig())(rest, nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, tc.handler)
		if diff := cmp.Diff([]metadata.MD{metadata.Pairs(RequestIDHeader, "id-2")}, got); diff != "" || stream.header != nil || stream.trailer != nil {
			t.Errorf("%s over REST (-want +got), and over gRPC %v %v:\n%s", name, stream.header, stream.trailer, diff)
		}
	}
}

// names are those of metadata, sorted.
func names(md metadata.MD) string {
	return strings.Join(slices.Sorted(maps.Keys(md)), " ")
}

// TestMetadataOfMany: each value is kept apart, however many there are, and the last one of a name counts.
func TestMetadataOfMany(t *testing.T) {
	rec := &Record{}
	want := metadata.MD{}
	for _, name := range strings.Fields("a b a c d e f a e") {
		value := name + "=" + string(rune('0'+len(want)))
		rec.SetMetadata(name, value)
		want.Set(name, value)
		if diff := cmp.Diff(want, rec.answer); diff != "" {
			t.Fatalf("after %s (-want +got):\n%s", name, diff)
		}
	}
	_ = append(rec.answer["a"], "grown") // which is nobody else's memory
	if diff := cmp.Diff(want, rec.answer); diff != "" {
		t.Errorf("after one has grown (-want +got):\n%s", diff)
	}
}

// TestLogAndAudit: a call leaves one line and one record, and which they are.
func TestLogAndAudit(t *testing.T) {
	for name, tc := range map[string]struct {
		handler grpc.UnaryHandler
		line    map[string]any
		outcome string
	}{
		"answered": {ok, map[string]any{"level": "DEBUG", "msg": "call", "code": "OK"}, "OK"},
		"failed": {
			func(context.Context, any) (any, error) {
				return nil, &apierror.Error{Reason: apierror.AtlasForbidden, Cause: errors.New("it says so")}
			},
			map[string]any{"level": "INFO", "msg": "call failed", "code": "PermissionDenied", "reason": "ATLAS_FORBIDDEN", "cause": "it says so"}, "ATLAS_FORBIDDEN",
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

// line is the only one in a log.
func line(t *testing.T, log *bytes.Buffer) map[string]any {
	t.Helper()
	var got map[string]any
	if err := json.Unmarshal(log.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, log)
	}
	return got
}

// TestNotLetIn: nothing runs inside of a call that brings no credential.
func TestNotLetIn(t *testing.T) {
	_, err := New(testConfig())(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/s/M"}, func(context.Context, any) (any, error) {
		t.Error("the handler ran")
		return nil, nil
	})
	if e := apierror.From(err); e.Reason != apierror.CredentialMissing {
		t.Errorf("got %v", err)
	}
}
