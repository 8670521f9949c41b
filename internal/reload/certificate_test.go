package reload_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// makePEM makes a certificate that lives for an hour, up to notAfter.
func makePEM(t *testing.T, notAfter time.Time) []byte {
	t.Helper()
	made, _ := makePair(t, notAfter)
	return made
}

// makePair is like makePEM and returns the key too.
func makePair(t *testing.T, notAfter time.Time) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: notAfter.Add(-time.Hour), NotAfter: notAfter, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key
}

func TestParseCertificates(t *testing.T) {
	a, b := makePEM(t, time.Now()), makePEM(t, time.Now())
	other := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: []byte("hunter2")})
	broken := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("hunter2")})
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for _, tc := range []struct {
		name string
		data []byte
		n    int    // certificates
		want string // in the error
	}{
		{"one", a, 1, ""},
		{"two with comments", join([]byte("# a\n"), a, []byte("\n# b\n"), b, []byte("# end\n")), 2, ""},
		{"a key beside it", join(other, a), 1, ""},
		{"none", []byte("hunter2"), 0, "no certificate in it"},
		{"a key only", other, 0, "no certificate in it"},
		{"not a certificate", join(a, broken), 0, "certificate 2: "},
		{"a half", a[:len(a)/2], 0, reload.ErrCutShort.Error()},
		{"one and a half", join(a, b[:len(b)/2]), 0, reload.ErrCutShort.Error()},
		{"a half and one", join(a[:len(a)/2], b), 0, reload.ErrCutShort.Error()},
		{"no line between", join(bytes.TrimSpace(a), b), 0, reload.ErrCutShort.Error()},
		{"one and a start", join(a, []byte("-----BEGIN ")), 0, reload.ErrCutShort.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			certs, err := reload.ParseCertificates(tc.data)
			if len(certs) != tc.n || (err == nil) != (tc.want == "") {
				t.Fatalf("got %d certificates, %v", len(certs), err)
			}
			if err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("got %q, want %q and nothing of the file", err, tc.want)
			}
		})
	}
}

// TestCertificateFile replaces a file with usable and unusable ones.
func TestCertificateFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, start := filepath.Join(t.TempDir(), "ca.pem"), time.Now()
		write := func(parts ...[]byte) {
			t.Helper()
			if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var log bytes.Buffer
		changes := 0
		w := &reload.Watcher{Logger: slog.New(slog.NewTextHandler(&log, nil))}
		open := func() (func() *x509.CertPool, error) {
			return w.Authorities("ca", path, nil, func() { changes++ })
		}
		if _, err := open(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("without a file: %v", err)
		}
		write(makePEM(t, start.Add(20*time.Minute)))
		pool, err := open()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		step := func(what string, wantExpiry time.Time, wantChanges int, wantLog string) {
			t.Helper()
			<-time.After(3 * time.Second)
			synctest.Wait()
			if got := expiry(t, w); got != float64(wantExpiry.Unix()) {
				t.Errorf("%s: the gauge is %v, want %v", what, got, wantExpiry.Unix())
			}
			if changes != wantChanges {
				t.Errorf("%s: got %d changes, want %d", what, changes, wantChanges)
			}
			if n := strings.Count(log.String(), "level="); (wantLog == "") != (n == 0) || !strings.Contains(log.String(), wantLog) {
				t.Errorf("%s: the log is %q, want %q", what, &log, wantLog)
			}
			log.Reset()
		}
		step("as it was", start.Add(20*time.Minute), 0, "")
		write(makePEM(t, start.Add(30*time.Minute)), makePEM(t, start.Add(25*time.Minute)))
		step("two", start.Add(25*time.Minute), 1, "certificate replaced")
		write(makePEM(t, start.Add(50*time.Minute))[:200])
		step("a half", start.Add(25*time.Minute), 1, `the last good one stays" certificate=ca file=`+path+" what=certificate cause=")
		write(makePEM(t, start.Add(time.Minute)))
		step("nearly expired", start.Add(time.Minute), 2, "expires soon")
		write(makePEM(t, start))
		step("expired", start.Add(time.Minute), 2, "and the one in use is valid")
		if _, err := open(); err != nil || !strings.Contains(log.String(), "has expired") {
			t.Errorf("expired at the start: %v, %q", err, &log)
		}
		if pool().Equal(x509.NewCertPool()) {
			t.Error("the pool is empty")
		}
	})
}

// expiry returns the expiry of the only certificate according to the metrics.
func expiry(t *testing.T, w *reload.Watcher) float64 {
	t.Helper()
	return gauge(t, w, "tokend_certificate_expiry_timestamp_seconds")
}

// gauge returns the only value of a metric.
func gauge(t *testing.T, w *reload.Watcher, name string) float64 {
	t.Helper()
	all := gauges(t, w, name)
	if len(all) != 1 {
		t.Fatalf("there are %d %s", len(all), name)
	}
	return all[0]
}

// gauges returns the values of a metric.
func gauges(t *testing.T, w *reload.Watcher, name string) (values []float64) {
	t.Helper()
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(w)
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, metric := range family.GetMetric() {
				values = append(values, metric.GetGauge().GetValue())
			}
		}
	}
	return values
}
