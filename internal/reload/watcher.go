package reload

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Watcher has the values that last as long as a program, and looks at their files. Everything is to be opened before Run. It
// is a prometheus.Collector of how its values are.
type Watcher struct {
	// Logger gets a line for each change of a certificate, and for each that is about to expire.
	Logger *slog.Logger
	// Metrics gets the gauges of when certificates expire.
	Metrics prometheus.Registerer
	// Interval is between two looks. Default: Interval.
	Interval time.Duration

	values   []watched
	changing sync.Mutex // one OnChange at a time, of all values
	shown    shown
}

// watched is a [Value] of any type.
type watched interface {
	Run(ctx context.Context, interval time.Duration)
	Look() Looked
}

// Watch reads the files, and returns what has the last good value; see [New].
func Watch[T any](w *Watcher, files Files[T]) (get func() T, err error) {
	if onChange := files.OnChange; onChange != nil {
		files.OnChange = func(value T) {
			w.changing.Lock()
			defer w.changing.Unlock()
			onChange(value)
		}
	}
	value, err := New(files)
	if err != nil {
		return nil, err
	}
	w.values = append(w.values, value)
	w.Show(value)
	return value.Get, nil
}

// Run looks at the files until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	interval := w.Interval
	if interval == 0 {
		interval = Interval
	}
	var group sync.WaitGroup
	for _, value := range w.values {
		group.Go(func() { value.Run(ctx, interval) })
	}
	group.Wait()
}

// Look looks at all files now; see [Value.Look]. It may be called while Run runs.
func (w *Watcher) Look() Looked {
	var all Looked
	for _, value := range w.values {
		all = all.And(value.Look())
	}
	return all
}
