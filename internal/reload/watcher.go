package reload

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Watcher keeps the values of a program up to date. It is the prometheus.Collector for the state of
// its values, and Check describes the same in words.
type Watcher struct {
	// Logger gets a line for each change of a certificate, and for each that expires soon.
	Logger *slog.Logger
	// Interval is the time between two reads of a file. Default: the constant [Interval].
	Interval time.Duration

	changing sync.Mutex // held during an OnChange, so that only one runs at a time

	mu    sync.Mutex
	shown map[shownKey]Shown // guarded by mu
}

// Shown is something with a state that metrics and /readyz show, such as a [Value].
type Shown interface{ Status() Status }

// watched is a [Value] of any type.
type watched interface {
	Shown
	read(w *Watcher, atOnce bool) Looked
}

// Status is the state of a value.
type Status struct {
	What, Name  string            // as in Files
	Err         error             // why the replacement cannot be used; nil if there is none
	Since       time.Time         // when the value in use was read
	Certificate *x509.Certificate // the one in use that expires first; nil if the value is no certificate
}

// shownKey is the What and the Name of a Status.
type shownKey [2]string

// Watch reads the files, keeps their value up to date, and returns a function for the last good
// one; see [New].
func Watch[T any](w *Watcher, files Files[T]) (get func() T, err error) {
	value, err := New(files)
	if err != nil {
		return nil, err
	}
	w.Add(value)
	return value.Get, nil
}

// Add shows a value in the metrics and in Check until remove is called. If it is a [Value], Run and
// Look read its files. A value replaces another of the same kind and name, which come from the
// configuration, never from a caller.
func (w *Watcher) Add(value Shown) (remove func()) {
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

// all returns what is shown, sorted by kind and name.
func (w *Watcher) all() []Shown {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]Shown, 0, len(w.shown))
	for _, key := range slices.SortedFunc(maps.Keys(w.shown), func(a, b shownKey) int { return slices.Compare(a[:], b[:]) }) {
		all = append(all, w.shown[key])
	}
	return all
}

// Run reads the files every interval until ctx is done. It uses a change that it has read twice, so
// a file that is being written is left alone. A writer that takes longer than an interval should
// write another file and rename it.
func (w *Watcher) Run(ctx context.Context) {
	ticker := time.NewTicker(cmp.Or(w.Interval, Interval))
	defer ticker.Stop()
	var reads sync.WaitGroup
	defer reads.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, shown := range w.all() {
			if value, ok := shown.(watched); ok {
				reads.Go(func() { value.read(w, false) }) // a file system that hangs delays no other
			}
		}
	}
}

// Look reads all files now and uses new contents at once, without waiting whether they change
// again. It may be called while Run runs.
func (w *Watcher) Look() Looked {
	var looked Looked
	done := map[Shown]bool{}
	for before := -1; before < len(done); { // a new policy may add secrets
		before = len(done)
		for _, shown := range w.all() {
			if value, ok := shown.(watched); ok && !done[shown] {
				done[shown] = true
				looked = looked.And(value.read(w, true))
			}
		}
	}
	return looked
}

// Check returns an error for each value whose replacement cannot be used, and for each certificate
// in use that has expired, joined.
func (w *Watcher) Check() error {
	var errs []error
	for _, shown := range w.all() {
		errs = append(errs, shown.Status().check(time.Now()))
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
	for _, shown := range w.all() {
		s := shown.Status()
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
