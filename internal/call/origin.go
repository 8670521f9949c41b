package call

import (
	"context"
	"log/slog"
	"regexp"
	"strings"

	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// origin is what the log says about where a call comes from. Nothing of it is verified but the caller.
func origin(ctx context.Context) []slog.Attr {
	header := func(name string) []string { return headers.Values(ctx, name) }
	over, received := transportOf(ctx)
	if over == overREST {
		header = received.Values
	}
	attrs := []slog.Attr{slog.String("transport", over.String())}
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		attrs = append(attrs, slog.String("peer", p.Addr.String()))
	}
	if caller := RecordFrom(ctx).grant.Caller; caller.Kind != "" {
		attrs = append(attrs, slog.Group("caller", slog.String("kind", caller.Kind), slog.String("name", caller.Name)))
	}
	if agent := userAgent(header("user-agent")); agent != "" {
		attrs = append(attrs, slog.String("user_agent", agent))
	}
	if id := traceID(ctx, header("traceparent")); id != "" {
		attrs = append(attrs, slog.String("trace_id", id))
	}
	return attrs
}

// maxUserAgent bounds what a caller may put into the log about its program, in bytes.
const maxUserAgent = 128

// secretLike is what a JWT begins with, or a word as long as only tokens are.
var secretLike = regexp.MustCompile(`eyJ|[A-Za-z0-9_-]{32}`)

// userAgent is what a caller says that its program is, fit for a log line: printable ASCII, and nothing that somebody may have
// put into the wrong header.
func userAgent(values []string) string {
	agent := strings.Join(values, ", ")
	if secretLike.MatchString(agent) {
		return "(withheld: it looks like a secret)"
	}
	agent = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, agent[:min(len(agent), maxUserAgent)])
	return agent
}
