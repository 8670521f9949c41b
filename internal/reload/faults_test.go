package reload_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

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

func TestFault95ByteOrderMark(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	parse := func(contents [][]byte) (string, error) { return string(contents[0]), nil }
	write(t, file, "\xef\xbb\xbfsecret\xef\xbb\xbf\n")
	v, err := reload.New(reload.Files[string]{Paths: []string{file}, Parse: parse})
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Get(); got != "secret\xef\xbb\xbf\n" { // in the middle it is a character
		t.Errorf("the content is %q", got)
	}
	write(t, file, "\xef\xbb\xbf\r\n")
	if _, err := reload.Read(file); err == nil {
		t.Error("a file with nothing but a byte order mark is not empty")
	}
}
