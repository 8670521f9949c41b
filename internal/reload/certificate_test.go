package reload_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// makePEM makes a certificate that lives for an hour, up to notAfter.
func makePEM(t *testing.T, notAfter time.Time) []byte {
	t.Helper()
	return testcert.EncodePEM("CERTIFICATE", makePair(t, notAfter).Cert.Raw)
}

// makePair is like makePEM with the key.
func makePair(t *testing.T, notAfter time.Time) testcert.Authority {
	t.Helper()
	return testcert.NewAuthority(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = notAfter.Add(-time.Hour), notAfter })
}

func TestParseCertificates(t *testing.T) {
	a, b := makePEM(t, time.Now()), makePEM(t, time.Now())
	other := testcert.EncodePEM("EC PRIVATE KEY", []byte("hunter2"))
	broken := testcert.EncodePEM("CERTIFICATE", []byte("hunter2"))
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

// TestCertificateNotYetValid checks that a certificate which is not valid yet is used as soon as it
// is, without another change of the file.
func TestCertificateNotYetValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
		log := &watched{t: t}
		w := &reload.Watcher{Logger: slog.New(log)}
		writePair(t, certFile, keyFile, time.Now().Add(time.Hour))
		get, err := w.Certificate("server", certFile, keyFile, reload.ForServers, nil)
		if err != nil {
			t.Fatal(err)
		}
		first := get().Leaf
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Run(ctx)
		writePair(t, certFile, keyFile, time.Now().Add(time.Hour+time.Minute)) // valid in a minute, for an hour
		<-time.After(30 * time.Second)
		synctest.Wait()
		log.mu.Lock()
		errs := slices.Clone(log.errs)
		log.mu.Unlock()
		if got := get().Leaf; !got.Equal(first) || len(errs) != 1 || !strings.Contains(errs[0].Error(), "the certificate is not valid before") {
			t.Errorf("it is in use before it is valid: %v, and the log has %q", !got.Equal(first), errs)
		}
		<-time.After(35 * time.Second)
		synctest.Wait()
		if get().Leaf.Equal(first) {
			t.Error("it is not in use when it is valid")
		}
	})
}

// writePair writes a certificate that lives for an hour, up to notAfter, and its key.
func writePair(t *testing.T, certFile, keyFile string, notAfter time.Time) {
	t.Helper()
	pair := makePair(t, notAfter)
	testcert.WritePEM(t, certFile, "CERTIFICATE", pair.Cert.Raw)
	testcert.WritePEM(t, keyFile, "PRIVATE KEY", testcert.MarshalKey(t, pair.Key))
}

// fixture has a server certificate and a bundle of authorities that are watched.
type fixture struct {
	*reload.Watcher
	certFile, keyFile, caFile string
	certificate               func() tls.Certificate
	authorities               func() *x509.CertPool
	log                       bytes.Buffer
}

func newFixture(t *testing.T, until time.Time) *fixture {
	t.Helper()
	dir := t.TempDir()
	f := &fixture{certFile: filepath.Join(dir, "cert"), keyFile: filepath.Join(dir, "key"), caFile: filepath.Join(dir, "ca")}
	f.Watcher = &reload.Watcher{Logger: slog.New(slog.NewTextHandler(&f.log, nil))}
	writePair(t, f.certFile, f.keyFile, until)
	write(t, f.caFile, string(makePEM(t, until)))
	var err error
	if f.certificate, err = f.Certificate("server", f.certFile, f.keyFile, nil, nil); err != nil {
		t.Fatal(err)
	}
	if f.authorities, err = f.Authorities("client_ca", f.caFile, nil, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// wantCheck checks the lines for /readyz.
func (f *fixture) wantCheck(t *testing.T, want ...string) {
	t.Helper()
	err := f.Check()
	if err == nil && len(want) == 0 {
		return
	}
	if err == nil {
		t.Fatalf("nothing is reported, want %q", want)
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d problems are reported, want %d:\n%v", len(lines), len(want), err)
	}
	for i, line := range lines {
		if !strings.Contains(line, want[i]) {
			t.Errorf("line %d is %q, want %q", i+1, line, want[i])
		}
	}
}

// reloads returns how many of the two files are reported as reloaded.
func (f *fixture) reloads(t *testing.T) (sum float64) {
	t.Helper()
	for _, v := range gauges(t, f.Watcher, "tokend_file_last_reload_successful") {
		sum += v
	}
	return sum
}

func TestFault79ExpiredInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		f := newFixture(t, start.Add(time.Hour))
		f.wantCheck(t)
		write(t, f.certFile, "nonsense")
		if f.Look().Err == nil {
			t.Error("nonsense is accepted")
		}
		f.wantCheck(t, "certificate server: the replacement cannot be used, the last good one stays and is valid until 2000-01-01T01:00:00Z: ")
		<-time.After(time.Hour + time.Second)
		f.wantCheck(t,
			"certificate client_ca: the one in use expired at 2000-01-01T01:00:00Z: replace it",
			"certificate server: the one in use expired at 2000-01-01T01:00:00Z, and its replacement cannot be used: ")
		for _, until := range gauges(t, f.Watcher, "tokend_certificate_expiry_timestamp_seconds") {
			if until != float64(start.Add(time.Hour).Unix()) {
				t.Errorf("the metric says that it expires at %v", until)
			}
		}
		writePair(t, f.certFile, f.keyFile, start.Add(90*time.Minute))
		write(t, f.caFile, string(makePEM(t, start.Add(90*time.Minute))))
		if err := f.Look().Err; err != nil {
			t.Error(err)
		}
		f.wantCheck(t)
	})
}

func TestFault80ExpiredReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		f := newFixture(t, start.Add(time.Hour))
		leaf, pool := f.certificate().Leaf, f.authorities()
		writePair(t, f.certFile, f.keyFile, start.Add(-time.Minute))
		write(t, f.caFile, string(makePEM(t, start.Add(-time.Minute))))
		f.log.Reset()
		f.Look()
		if f.certificate().Leaf != leaf || f.authorities() != pool {
			t.Error("an expired replacement is used")
		}
		const cause = "the certificate expired at 1999-12-31T23:59:00Z, and the one in use is valid"
		f.wantCheck(t, cause, cause)
		if got := f.reloads(t); got != 0 {
			t.Errorf("%v of the two replacements count as reloaded", got)
		}
		if n := strings.Count(f.log.String(), cause); n != 2 {
			t.Errorf("the log has %d lines with the cause:\n%s", n, &f.log)
		}
		// A bundle with an old authority beside a valid one is as good as before.
		write(t, f.caFile, string(makePEM(t, start.Add(-time.Minute)))+string(makePEM(t, start.Add(2*time.Hour))))
		f.Look()
		if f.authorities() == pool {
			t.Error("a bundle is refused because one authority of two has expired")
		}
		f.wantCheck(t, cause)
		// An expired certificate may be replaced by another: there is nothing better.
		<-time.After(time.Hour + time.Second)
		writePair(t, f.certFile, f.keyFile, start.Add(30*time.Minute))
		f.Look()
		if f.certificate().Leaf == leaf {
			t.Error("an expired certificate is not replaced by another that has expired")
		}
		f.wantCheck(t, "certificate server: the one in use expired at 2000-01-01T00:30:00Z: replace it")
	})
}

// TestUnusableCertificates checks what is said of files that cannot be used, and which can.
func TestUnusableCertificates(t *testing.T) {
	f := newFixture(t, time.Now().Add(time.Minute))
	pair := makePair(t, time.Now().Add(time.Minute))
	other, der := testcert.EncodePEM("CERTIFICATE", pair.Cert.Raw), testcert.MarshalKey(t, pair.Key)
	server := func(certificate []byte, keyType string, der []byte, check func(*x509.Certificate) error) error {
		write(t, f.certFile, string(certificate))
		testcert.WritePEM(t, f.keyFile, keyType, der)
		_, err := f.Certificate("other", f.certFile, f.keyFile, check, nil)
		return err
	}
	for want, err := range map[string]error{
		"private key does not match": server(makePEM(t, time.Now().Add(time.Minute)), "PRIVATE KEY", der, nil),
		"the key is encrypted":       server(other, "ENCRYPTED PRIVATE KEY", nil, nil),
		"lacks serverAuth": server(other, "PRIVATE KEY", der, func(cert *x509.Certificate) error {
			if err := reload.ForServers(cert); err != nil {
				return err
			}
			cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			return reload.ForServers(cert)
		}),
		"the system's": func() error {
			_, err := f.Authorities("other", f.caFile, func() (*x509.CertPool, error) { return nil, errNotGood }, nil)
			return err
		}(),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if certs, err := reload.ReadCertificates(f.caFile); err != nil || len(certs) != 1 {
		t.Errorf("read %d certificates, %v", len(certs), err)
	}
	pool, err := f.Authorities("system", f.caFile, x509.SystemCertPool, nil)
	if system, _ := x509.SystemCertPool(); err != nil || pool().Equal(system) {
		t.Errorf("the file adds nothing to the system's authorities: %v", err)
	}
}
