package reload_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// TestReceived checks that a certificate from elsewhere is shown and logged like one from a file.
func TestReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		w := &reload.Watcher{}
		start := time.Now()
		until := func(left time.Duration) *x509.Certificate {
			return &x509.Certificate{NotBefore: start.Add(-time.Hour), NotAfter: start.Add(left)}
		}
		r := w.Receive("server", until(time.Hour), slog.New(slog.NewTextHandler(&log, nil)))
		failure := errors.New("the agent fails")
		want := func(expires time.Time, err error, since time.Time, logged string) {
			t.Helper()
			if got := expiry(t, w); got != float64(expires.Unix()) {
				t.Errorf("it expires at %v, want %v", got, expires.Unix())
			}
			if got := r.Status(); !errors.Is(got.Err, err) || (got.Err == nil) != (err == nil) || got.Since != since {
				t.Errorf("the status is %v since %v, want %v since %v", got.Err, got.Since, err, since)
			}
			if !strings.Contains(log.String(), logged) || (logged == "") != (log.Len() == 0) {
				t.Errorf("the log is %q, want %q", &log, logged)
			}
			log.Reset()
		}
		want(start.Add(time.Hour), nil, start, "")
		if got := gauge(t, w, "tokend_certificate_not_before_timestamp_seconds"); got != float64(start.Add(-time.Hour).Unix()) {
			t.Errorf("it is valid since %v", got)
		}
		<-time.After(time.Minute)
		r.SetErr(failure)
		want(start.Add(time.Hour), failure, start, "")
		r.Replace(until(2 * time.Hour))
		want(start.Add(2*time.Hour), nil, start.Add(time.Minute), `msg="certificate replaced" certificate=server expires=`)
		r.Replace(until(2 * time.Minute))
		want(start.Add(2*time.Minute), nil, start.Add(time.Minute), "expires soon")
	})
}
