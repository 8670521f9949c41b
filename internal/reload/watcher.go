package reload

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Watcher keeps the values of a program up to date. All that last as long as the program are opened
// before Run. It is the prometheus.Collector for the state of its values, and Check describes the
// same in words.
type Watcher struct {
	// Logger gets a line for each change of a certificate, and for each that expires soon.
	Logger *slog.Logger
	// Interval is the time between two reads of a file. Default: the constant [Interval].
	Interval time.Duration

	values   []watched
	changing sync.Mutex // held during an OnChange, so that only one runs at a time

	mu    sync.Mutex
	shown map[shownKey]Shown // guarded by mu
}

// watched is a [Value] of any type.
type watched interface {
	Run(ctx context.Context, interval time.Duration)
	Look() Looked
}

// Shown is something with a state that metrics and /readyz show, such as a [Value].
type Shown interface{ Status() Status }

// Status is the state of a value.
type Status struct {
	What, Name  string            // as in Files
	Err         error             // why the replacement cannot be used; nil if there is none
	Since       time.Time         // when the value in use was read
	Certificate *x509.Certificate // the one in use that expires first; nil if the value is no certificate
}

type shownKey struct{ what, name string }

// Watch reads the files and returns a function for the last good value; see [New].
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

// Run reads the files again and again until ctx is done.
func (w *Watcher) Run(ctx context.Context) {
	interval := cmp.Or(w.Interval, Interval)
	var group sync.WaitGroup
	for _, value := range w.values {
		group.Go(func() { value.Run(ctx, interval) })
	}
	group.Wait()
}

// Look reads all files now; see [Value.Look]. It may be called while Run runs.
func (w *Watcher) Look() Looked {
	var all Looked
	for _, value := range w.values {
		all = all.And(value.Look())
	}
	return all
}

// Show adds a value to the metrics and to Check until hide is called. It replaces another of the
// same kind and name. Both come from the configuration, never from a caller.
func (w *Watcher) Show(value Shown) (hide func()) {
	status := value.Status()
	key := shownKey{status.What, status.Name}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shown == nil {
		w.shown = map[shownKey]Shown{}
	}
	w.shown[key] = value
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.shown[key] == value {
			delete(w.shown, key)
		}
	}
}

// statuses returns the states of all values that are shown, sorted by kind and name.
func (w *Watcher) statuses() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]Status, 0, len(w.shown))
	for _, value := range w.shown {
		all = append(all, value.Status())
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Or(cmp.Compare(a.What, b.What), cmp.Compare(a.Name, b.Name)) })
	return all
}

// Check returns an error for each value whose replacement cannot be used, and for each certificate
// in use that has expired, joined.
func (w *Watcher) Check() error {
	var errs []error
	for _, status := range w.statuses() {
		errs = append(errs, status.check(time.Now()))
	}
	return errors.Join(errs...)
}

func (s Status) check(now time.Time) error {
	name := strings.TrimSpace(s.What + " " + s.Name)
	if s.Certificate == nil {
		if s.Err == nil {
			return nil
		}
		return fmt.Errorf("%s: the replacement cannot be used, the last good one stays: %w", name, s.Err)
	}
	until := s.Certificate.NotAfter.UTC().Format(time.RFC3339)
	switch expired := now.After(s.Certificate.NotAfter); {
	case expired && s.Err != nil:
		return fmt.Errorf("%s: the one in use expired at %s, and its replacement cannot be used: %w", name, until, s.Err)
	case expired:
		return fmt.Errorf("%s: the one in use expired at %s: replace it", name, until)
	case s.Err != nil:
		return fmt.Errorf("%s: the replacement cannot be used, the last good one stays and is valid until %s: %w", name, until, s.Err)
	}
	return nil
}

var (
	reloadOK = prometheus.NewDesc("tokend_file_last_reload_successful",
		"1 if the files on disk, or what the SPIFFE agent has, are in use; 0 while they cannot be used, and the last good ones stay.", []string{"kind", "name"}, nil)
	reloadTime = prometheus.NewDesc("tokend_file_last_reload_success_timestamp_seconds",
		"When the files in use were read, in Unix seconds.", []string{"kind", "name"}, nil)
	expiry = prometheus.NewDesc("tokend_certificate_expiry_timestamp_seconds",
		"Expiry of the certificate in use, in Unix seconds: of a chain, the first to expire; of a bundle of authorities, the first that has not expired; of a SPIFFE bundle, the last.", []string{"certificate"}, nil)
	// Some certificates are valid for years and some for an hour: "soon" is a part of that.
	notBefore = prometheus.NewDesc("tokend_certificate_not_before_timestamp_seconds",
		"Start of validity of that certificate, in Unix seconds.", []string{"certificate"}, nil)
)

// Describe implements prometheus.Collector.
func (w *Watcher) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{reloadOK, reloadTime, expiry, notBefore} {
		ch <- desc
	}
}

// Collect implements prometheus.Collector.
func (w *Watcher) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, s := range w.statuses() {
		successful := 1.0
		if s.Err != nil {
			successful = 0
		}
		gauge(reloadOK, successful, s.What, s.Name)
		gauge(reloadTime, float64(s.Since.UnixMilli())/1000, s.What, s.Name)
		if s.Certificate != nil {
			gauge(expiry, float64(s.Certificate.NotAfter.Unix()), s.Name)
			gauge(notBefore, float64(s.Certificate.NotBefore.Unix()), s.Name)
		}
	}
}
