package reload_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const interval = 5 * time.Second

var errNotGood = errors.New("it does not start with good")

// parseGood accepts contents that start with "good" and joins them.
func parseGood(contents [][]byte) (string, error) {
	for _, c := range contents {
		if !bytes.HasPrefix(c, []byte("good")) {
			return "", errNotGood
		}
	}
	return string(bytes.Join(contents, []byte("+"))), nil
}

// watched is a value and its watcher under a fake clock, with everything they report.
type watched struct {
	*reload.Value[string]
	watcher *reload.Watcher
	t       *testing.T
	mu      sync.Mutex
	changes []string
	errs    []error
}

func watch(t *testing.T, paths ...string) *watched {
	t.Helper()
	w := &watched{t: t}
	v, err := reload.New(reload.Files[string]{
		Paths: paths, Parse: parseGood, Logger: slog.New(w),
		OnChange: func(s string) { w.mu.Lock(); defer w.mu.Unlock(); w.changes = append(w.changes, s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.run(v)
	return w
}

// run watches a value until the test ends.
func (w *watched) run(v *reload.Value[string]) {
	w.t.Helper()
	w.Value, w.watcher = v, &reload.Watcher{Interval: interval}
	w.watcher.Add(v)
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.watcher.Run(ctx) })
	w.t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	synctest.Wait()
}

// Handle records the error of a log line, or nil for a line without one.
func (w *watched) Handle(_ context.Context, line slog.Record) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var cause error
	line.Attrs(func(a slog.Attr) bool {
		if a.Key == "cause" {
			cause, _ = a.Value.Any().(error)
		}
		return true
	})
	w.errs = append(w.errs, cause)
	return nil
}

func (*watched) Enabled(context.Context, slog.Level) bool { return true }
func (w *watched) WithAttrs([]slog.Attr) slog.Handler     { return w }
func (w *watched) WithGroup(string) slog.Handler          { return w }

// looks waits until the value has read its files n times.
func (w *watched) looks(n int) {
	for range n {
		<-time.After(interval)
		synctest.Wait()
	}
}

func (w *watched) want(value string, changes ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := w.Get(); got != value {
		w.t.Errorf("the value is %q, want %q", got, value)
	}
	if !slices.Equal(w.changes, changes) {
		w.t.Errorf("the reported changes are %q, want %q", w.changes, changes)
	}
}

// wantErrors compares by errors.Is; nil is the recovery.
func (w *watched) wantErrors(want ...error) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.EqualFunc(w.errs, want, func(got, want error) bool { return (got == nil) == (want == nil) && errors.Is(got, want) }) {
		w.t.Errorf("the reported errors are %v, want %v", w.errs, want)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
