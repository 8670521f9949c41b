package chain

import (
	"context"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ForstaLabs/ephemeral-token-service/server/auth"

	"github.com/ForstaLabs/ephemeral-token-service/server/apierror"
)

// Record is what is found out about a call on its way in, for the audit.
type Record struct {
	grant auth.Grant
	Org   string // UUID; known only for a JWT that Atlas has accepted
	Cache string // of a create: where its answer comes from, as in Cache-Status
}

type recordKey struct{}

func withRecord(ctx context.Context) (context.Context, *Record) {
	rec := &Record{}
	return context.WithValue(ctx, recordKey{}, rec), rec
}

// RecordFrom returns the call's record; outside the chain, one that nobody reads.
func RecordFrom(ctx context.Context) *Record {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok {
		return rec
	}
	return &Record{}
}

// auditCall leaves the one audit record of a call, whether it went well or not: who did what, as whom, with what outcome.
// There is no token and no JWT in it. A REST request that is refused before the chain, such as one for another route or with
// too large a body, is not a call: nobody has asked who sent it, so it is in the log only.
func auditCall(ctx context.Context, audit *slog.Logger, c Call, rec *Record) {
	if !audit.Enabled(ctx, slog.LevelInfo) {
		return
	}
	outcome := codes.OK.String()
	if c.Err != nil {
		outcome = apierror.From(c.Err).ReasonName()
	}
	address := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		address = p.Addr.String()
	}
	audit.LogAttrs(ctx, slog.LevelInfo, "call",
		slog.Group("caller", slog.String("kind", rec.grant.Caller.Kind), slog.String("name", rec.grant.Caller.Name)),
		slog.String("method", c.Method[strings.LastIndexByte(c.Method, '/')+1:]),
		slog.String("profile", rec.grant.Profile),
		slog.String("org", rec.Org),
		slog.String("outcome", outcome),
		slog.String("cache", rec.Cache),
		slog.String("request_id", c.RequestID),
		slog.String("trace_id", traceID(metadata.ValueFromIncomingContext(ctx, "traceparent"))),
		slog.String("peer", address),
	)
}

// traceID takes the trace id out of a W3C traceparent: 00-<32 hex digits>-<16>-<2>. What is not one is left out.
func traceID(values []string) string {
	if len(values) != 1 {
		return ""
	}
	parts := strings.Split(values[0], "-")
	if len(parts) < 4 || len(parts[0]) != 2 || len(parts[1]) != 32 || strings.Trim(parts[1], "0123456789abcdef") != "" {
		return ""
	}
	return parts[1]
}
