package reload_test

import (
	"bytes"
	"crypto/x509"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// TestReceived: a certificate that is handed over is shown and logged as one of a file is.
func TestReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := &reload.Watcher{Metrics: prometheus.NewRegistry()}
		start := time.Now()
		until := func(left time.Duration) *x509.Certificate {
			return &x509.Certificate{NotBefore: start.Add(-time.Hour), NotAfter: start.Add(left)}
		}
		r, err := w.Receive("server", until(time.Hour), slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		want := func(expires time.Time, ok bool, since time.Time, logged string) {
			t.Helper()
			if got := expiry(t, w); got != float64(expires.Unix()) {
				t.Errorf("it expires at %v, want %v", got, expires.Unix())
			}
			if got := (reload.Status{What: "certificate", Name: "server", OK: ok, Since: since}); r.Status() != got {
				t.Errorf("the status is %v, want %v", r.Status(), got)
			}
			if !strings.Contains(log.String(), logged) || (logged == "") != (log.Len() == 0) {
				t.Errorf("the log is %q, want %q", &log, logged)
			}
			log.Reset()
		}
		want(start.Add(time.Hour), true, start, "")
		if got := gauge(t, w, "tokend_certificate_not_before_timestamp_seconds"); got != float64(start.Add(-time.Hour).Unix()) {
			t.Errorf("it is valid since %v", got)
		}
		<-time.After(time.Minute)
		r.SetOK(false)
		want(start.Add(time.Hour), false, start, "")
		r.Replace(until(2 * time.Hour))
		want(start.Add(2*time.Hour), true, start.Add(time.Minute), `msg="certificate replaced" certificate=server expires=`)
		r.Replace(until(2 * time.Minute))
		want(start.Add(2*time.Minute), true, start.Add(time.Minute), "expires soon")
		if _, err := w.Receive("server", until(time.Hour), slog.New(slog.DiscardHandler)); err == nil {
			t.Error("two have the same name")
		}
	})
}
