// Package lograte limits the rate of log lines that clients can cause. Each kind of line has a
// rate; lines beyond it are left out and counted. All other lines pass.
package lograte

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// The rate of each kind: incidents are logged in full, floods are not.
const (
	perSecond = 10
	burst     = 100
)

// The kinds of lines, in addition to the reasons of failed calls, such as "OVERLOADED".
const (
	Handshake  = "handshake"
	Connection = "connection"
	NetHTTP    = "net/http"
	GRPC       = "grpc"
	Traces     = "traces"
)

// kind limits the lines of one kind.
type kind struct {
	*rate.Limiter
	suppressed prometheus.Counter
	leftOut    atomic.Int64 // since the last line that passed
}

func (k *kind) leaveOut() {
	k.leftOut.Add(1)
	k.suppressed.Inc()
}

// limits are the kinds of a logger, and their metric.
type limits struct {
	kinds      map[string]*kind
	suppressed *prometheus.CounterVec
}

// handler passes on the lines that are within the rate of their kind.
type handler struct {
	slog.Handler
	*limits
	kind *kind // of all lines; nil: they all pass
}

// Limit returns a logger whose lines Kind can limit, and the metric of those left out. A logger
// that has limits already is returned unchanged.
func Limit(log *slog.Logger) (*slog.Logger, prometheus.Collector) {
	if h, ok := log.Handler().(*handler); ok {
		return log, h.suppressed
	}
	l := &limits{map[string]*kind{}, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_log_lines_suppressed_total",
		Help: "Lines of the log left out since there were too many of their kind: the reason of failed calls, or what caused them.",
	}, []string{"kind"})}
	names := []string{Handshake, Connection, NetHTTP, GRPC, Traces}
	for _, reason := range ephemeraltokenv1.ErrorReason_name {
		names = append(names, strings.TrimPrefix(reason, "ERROR_REASON_"))
	}
	for _, name := range names {
		l.kinds[name] = &kind{Limiter: rate.NewLimiter(perSecond, burst), suppressed: l.suppressed.WithLabelValues(name)}
	}
	return slog.New(&handler{log.Handler(), l, nil}), l.suppressed
}

// Kind returns a logger all of whose lines are of this kind. Without Limit there is no limit.
func Kind(log *slog.Logger, name string) *slog.Logger {
	h, ok := log.Handler().(*handler)
	if !ok {
		return log
	}
	return slog.New(&handler{h.Handler, h.limits, h.kinds[name]})
}

// Enabled implements slog.Handler. In a flood it saves the work of building lines that are left
// out.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	if !h.Handler.Enabled(ctx, level) {
		return false
	}
	if h.kind == nil || h.kind.Tokens() >= 1 {
		return true
	}
	h.kind.leaveOut()
	return false
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	if h.kind != nil {
		if !h.kind.Allow() {
			h.kind.leaveOut()
			return nil
		}
		if n := h.kind.leftOut.Swap(0); n > 0 {
			record.AddAttrs(slog.Int64("suppressed", n))
		}
	}
	return h.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.limits, h.kind}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.limits, h.kind}
}
