package reload

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is how a value is.
type Status struct {
	What, Name string    // as in Files
	OK         bool      // its files say what Get returns; else they cannot be used
	Since      time.Time // when the files were read that Get returns
}

var (
	reloadOK = prometheus.NewDesc("tokend_file_last_reload_successful",
		"1 if the files on disk, or what the SPIFFE agent has, are in use; 0 while they cannot be used, and the last good ones stay.", []string{"kind", "name"}, nil)
	reloadTime = prometheus.NewDesc("tokend_file_last_reload_success_timestamp_seconds",
		"When the files in use were read, in Unix seconds.", []string{"kind", "name"}, nil)
)

// shown are the values that a Watcher shows.
type shown struct {
	mu     sync.Mutex
	values map[shownKey]interface{ Status() Status } // guarded by mu
}

type shownKey struct{ what, name string }

// Show has the metrics of a value shown, in place of another of the same kind and name, until hide. The names are an
// operator's, not a caller's.
func (w *Watcher) Show(value interface{ Status() Status }) (hide func()) {
	status := value.Status()
	key := shownKey{status.What, status.Name}
	w.shown.mu.Lock()
	defer w.shown.mu.Unlock()
	if w.shown.values == nil {
		w.shown.values = map[shownKey]interface{ Status() Status }{}
	}
	w.shown.values[key] = value
	return func() {
		w.shown.mu.Lock()
		defer w.shown.mu.Unlock()
		if w.shown.values[key] == value {
			delete(w.shown.values, key)
		}
	}
}

// Describe implements prometheus.Collector.
func (w *Watcher) Describe(ch chan<- *prometheus.Desc) {
	ch <- reloadOK
	ch <- reloadTime
}

// Collect implements prometheus.Collector.
func (w *Watcher) Collect(ch chan<- prometheus.Metric) {
	w.shown.mu.Lock()
	defer w.shown.mu.Unlock()
	for key, value := range w.shown.values {
		status, successful := value.Status(), 0.
		if status.OK {
			successful = 1
		}
		ch <- prometheus.MustNewConstMetric(reloadOK, prometheus.GaugeValue, successful, key.what, key.name)
		ch <- prometheus.MustNewConstMetric(reloadTime, prometheus.GaugeValue, float64(status.Since.UnixMilli())/1000, key.what, key.name)
	}
}
