// Package lograte bounds how fast the log can grow by what strangers do: lines of a kind that anybody can cause are let through
// at a rate, and the rest is counted. All other lines pass. It knows no kinds: whoever logs names one, out of a fixed number.
package lograte

import (
	"context"
	"log/slog"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// The rate of each kind: incidents are told in full, floods are not.
const (
	perSecond = 10
	burst     = 100
)

// Limit returns a logger that lets through lines with a kind at a rate, and the metric of those that it does not. Of a logger
// that does so already it returns both as they are.
func Limit(log *slog.Logger) (*slog.Logger, prometheus.Collector) {
	if h, ok := log.Handler().(*handler); ok {
		return log, h.budgets.suppressed
	}
	b := &budgets{
		kinds: make(map[string]*budget),
		suppressed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokend_log_lines_suppressed_total",
			Help: "Lines of the log left out since there were too many of their kind: the reason of failed calls, or who would have written them.",
		}, []string{"kind"}),
	}
	return slog.New(&handler{Handler: log.Handler(), budgets: b}), b.suppressed
}

// Kind returns a logger all of whose lines are of this kind. A logger that Limit did not make is returned as it is.
func Kind(log *slog.Logger, kind string) *slog.Logger {
	h, ok := log.Handler().(*handler)
	if !ok {
		return log
	}
	h.budgets.suppressed.WithLabelValues(kind) // at 0, so that the first one is an increase
	return slog.New(&handler{Handler: h.Handler, budgets: h.budgets, kind: kind})
}

type kindKey struct{}

// WithKind makes the lines that are logged with this context ones of a kind.
func WithKind(ctx context.Context, kind string) context.Context {
	return context.WithValue(ctx, kindKey{}, kind)
}

// budgets has one for each kind. No kind can use up another's.
type budgets struct {
	suppressed *prometheus.CounterVec
	mu         sync.Mutex
	kinds      map[string]*budget // guarded by mu
}

type budget struct {
	lines   *rate.Limiter
	leftOut int // since the last line that was let through
}

// of is the budget of a kind. Whoever calls it holds mu.
func (b *budgets) of(kind string) *budget {
	k := b.kinds[kind]
	if k == nil {
		k = &budget{lines: rate.NewLimiter(perSecond, burst)}
		b.kinds[kind] = k
	}
	return k
}

func (b *budgets) leaveOut(kind string, k *budget) {
	k.leftOut++
	b.suppressed.WithLabelValues(kind).Inc()
}

// spent reports whether there is no room for a line, which counts as left out then.
func (b *budgets) spent(kind string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.of(kind)
	if k.lines.Tokens() >= 1 {
		return false
	}
	b.leaveOut(kind, k)
	return true
}

// spend reports whether a line may be written, and how many were not since the last one that was.
func (b *budgets) spend(kind string) (leftOut int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.of(kind)
	if !k.lines.Allow() {
		b.leaveOut(kind, k)
		return 0, false
	}
	leftOut, k.leftOut = k.leftOut, 0
	return leftOut, true
}

// handler passes on what is within its budget.
type handler struct {
	slog.Handler
	budgets *budgets
	kind    string // of all lines, if it is not empty
}

func (h *handler) kindOf(ctx context.Context) string {
	if h.kind != "" {
		return h.kind
	}
	kind, _ := ctx.Value(kindKey{}).(string)
	return kind
}

// Enabled implements slog.Handler. Whoever asks it before a line is put together saves that work in a flood.
func (h *handler) Enabled(ctx context.Context, level slog.Level) bool {
	if !h.Handler.Enabled(ctx, level) {
		return false
	}
	kind := h.kindOf(ctx)
	return kind == "" || !h.budgets.spent(kind)
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	kind := h.kindOf(ctx)
	if kind == "" {
		return h.Handler.Handle(ctx, record)
	}
	leftOut, ok := h.budgets.spend(kind)
	if !ok {
		return nil
	}
	if leftOut > 0 {
		record.AddAttrs(slog.Int("suppressed", leftOut))
	}
	return h.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.budgets, h.kind}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.budgets, h.kind}
}
