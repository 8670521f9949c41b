package history

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// Reason returns a word for an outcome.
func Reason(out testutil.Outcome) string {
	switch {
	case out.Code == codes.OK:
		return "OK"
	case out.Reason != "":
		return out.Reason
	case strings.HasPrefix(out.Message, "test: "):
		return "no answer over REST"
	}
	return "no answer over gRPC (" + out.Code.String() + ")"
}

// CallLog collects what the servers log about calls.
type CallLog struct {
	mu     sync.Mutex
	Seen   map[string]HandledCall // guarded by mu; by request id
	Panics []string               // guarded by mu
}

// HandledCall is the log's record of a call.
type HandledCall struct {
	Took   time.Duration
	Reason string
	Cause  string
}

// Logger returns a logger that writes to the CallLog.
func (l *CallLog) Logger() *slog.Logger { return slog.New(l) }

// Reasons counts the calls by how they ended.
func (l *CallLog) Reasons() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	for _, h := range l.Seen {
		counts[cmp.Or(h.Reason, "OK")]++
	}
	return counts
}

// Enabled implements slog.Handler.
func (l *CallLog) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (l *CallLog) Handle(_ context.Context, record slog.Record) error {
	var (
		id string
		h  HandledCall
	)
	l.mu.Lock()
	defer l.mu.Unlock()
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "request_id":
			id = a.Value.String()
		case "duration_ms":
			h.Took = time.Duration(a.Value.Float64() * float64(time.Millisecond))
		case "reason":
			h.Reason = a.Value.String()
		case "cause":
			h.Cause = a.Value.String()
		case "stack":
			l.Panics = append(l.Panics, a.Value.String())
		}
		return true
	})
	if id != "" {
		l.Seen[id] = h
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (l *CallLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *CallLog) WithGroup(string) slog.Handler { return l }

// OneOf returns one of the values at random.
func OneOf[T any](random *rand.Rand, values ...T) T { return values[random.IntN(len(values))] }

// Tally formats counts, the highest first.
func Tally(counts map[string]int) string {
	var words []string
	for _, name := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return counts[b] - counts[a] }) {
		words = append(words, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(words, ", ")
}

// Fork returns a source of random numbers that is seeded by another.
func Fork(random *rand.Rand) *rand.Rand {
	return rand.New(rand.NewPCG(random.Uint64(), random.Uint64()))
}
