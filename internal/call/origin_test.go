package call

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// The line of a failed call says who called, over what, with which program and in which trace; nothing that looks like a secret.
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
			ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "JWT a.b.c"))
			ctx, _ = WithREST(ctx, http.Header{"User-Agent": {"curl/8.0"}, "Traceparent": {parent}}, func(metadata.MD) {})
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
			t.Errorf("of %q it says %q, want %q", value, got, want)
		}
	}
}
