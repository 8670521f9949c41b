// Package lograte bounds how fast strangers can make the log grow. Lines of a kind that anyone can cause pass at a rate, and the
// rest is counted. All other lines pass.
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

// The kinds of lines, beside one for each reason of a failed call. Each has a rate of its own.
const (
	Handshake  = "handshake"
	Connection = "connection"
	NetHTTP    = "net/http"
	GRPC       = "grpc"
	Traces     = "traces"
)

type kind struct {
	lines      *rate.Limiter
	suppressed prometheus.Counter
	leftOut    atomic.Int64 // since the last line that passed
}

// handler passes on the lines that are within the rate of their kind.
type handler struct {
	slog.Handler
	suppressed *prometheus.CounterVec
	kinds      map[string]*kind
	kind       *kind // of all lines; nil: the context names it
}

// Limit returns a logger that limits the lines of each kind, and the metric of those left out. A logger that does so already is
// returned as it is.
func Limit(log *slog.Logger) (*slog.Logger, prometheus.Collector) {
	if h, ok := log.Handler().(*handler); ok {
		return log, h.suppressed
	}
	h := &handler{Handler: log.Handler(), kinds: map[string]*kind{}, suppressed: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "tokend_log_lines_suppressed_total",
		Help: "Lines of the log left out since there were too many of their kind: the reason of failed calls, or what caused them.",
	}, []string{"kind"})}
	names := []string{Handshake, Connection, NetHTTP, GRPC, Traces}
	for _, reason := range ephemeraltokenv1.ErrorReason_name {
		names = append(names, strings.TrimPrefix(reason, "ERROR_REASON_"))
	}
	for _, name := range names {
		h.kinds[name] = &kind{lines: rate.NewLimiter(perSecond, burst), suppressed: h.suppressed.WithLabelValues(name)}
	}
	return slog.New(h), h.suppressed
}

// Kind returns a logger all of whose lines are of this kind. A logger that Limit did not make is returned as it is.
func Kind(log *slog.Logger, name string) *slog.Logger {
	h, ok := log.Handler().(*handler)
	if !ok {
		return log
	}
	return slog.New(&handler{h.Handler, h.suppressed, h.kinds, h.kinds[name]})
}

type kindKey struct{}

// WithKind makes the lines that are logged with the context those of a kind.
func WithKind(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, kindKey{}, name)
}

func (h *handler) kindOf(ctx context.Context) *kind {
	if h.kind != nil {
		return h.kind
	}
	name, _ := ctx.Value(kindKey{}).(string)
	return h.kinds[name]
}

// Enabled implements slog.Handler. To ask it before a line is put together saves that work in a flood.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	if !h.Handler.Enabled(ctx, level) {
		return false
	}
	k := h.kindOf(ctx)
	if k == nil || k.lines.Tokens() >= 1 {
		return true
	}
	k.leaveOut()
	return false
}

func (k *kind) leaveOut() {
	k.leftOut.Add(1)
	k.suppressed.Inc()
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	if k := h.kindOf(ctx); k != nil {
		if !k.lines.Allow() {
			k.leaveOut()
			return nil
		}
		if n := k.leftOut.Swap(0); n > 0 {
			record.AddAttrs(slog.Int64("suppressed", n))
		}
	}
	return h.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.suppressed, h.kinds, h.kind}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.suppressed, h.kinds, h.kind}
}
