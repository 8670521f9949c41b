package call

import (
	"context"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/headers"
)

// auditCall leaves the one audit record of a call, whether it went well or not: who did what, as whom, with what outcome.
// There is no token and no JWT in it. A REST request that is refused before the chain, such as one for another route or with
// too large a body, is not a call: nobody has asked who sent it, so it is in the log only.
func auditCall(ctx context.Context, audit *slog.Logger, o Outcome, rec *Record) {
	if !audit.Enabled(ctx, slog.LevelInfo) {
		return
	}
	outcome := codes.OK.String()
	if o.Err != nil {
		outcome = apierror.From(o.Err).ReasonName()
	}
	address := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		address = p.Addr.String()
	}
	audit.LogAttrs(ctx, slog.LevelInfo, "call",
		slog.Group("caller", slog.String("kind", rec.grant.Caller.Kind), slog.String("name", rec.grant.Caller.Name)),
		slog.String("method", o.Method[strings.LastIndexByte(o.Method, '/')+1:]),
		slog.String("profile", rec.grant.Profile),
		slog.String("org", rec.Org),
		slog.String("outcome", outcome),
		slog.String("cache", rec.Cache),
		slog.String("request_id", o.RequestID),
		slog.String("trace_id", traceID(ctx, headers.Values(ctx, "traceparent"))),
		slog.String("peer", address),
	)
}
