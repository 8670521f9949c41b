package reload_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// TestLook checks that Look uses new contents at once, returns an error each time for those that
// cannot be used, and reports each change once.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		look := func(changed bool, err error) {
			t.Helper()
			got := w.Look()
			if !slices.Equal(got.Files, []string{file}) || (len(got.Changed) == 1) != changed || (got.Err != nil) != (err != nil) {
				t.Errorf("got %+v", got)
			}
		}
		look(false, nil)
		w.want("good 1")
		write(t, file, "good 2")
		look(true, nil)
		w.want("good 2", "good 2")
		w.looks(2)
		w.want("good 2", "good 2")
		write(t, file, "bad")
		look(false, errNotGood)
		look(false, errNotGood)
		w.looks(3)
		w.want("good 2", "good 2")
		w.wantErrors(errNotGood) // one line
		write(t, file, "good 3")
		w.looks(1) // seen once
		look(true, nil)
		w.settles()
		w.want("good 3", "good 2", "good 3")
		w.wantErrors(errNotGood, nil)
	})
}

// TestWatcherLooks checks that a watcher reads all files even if one cannot be used.
func TestWatcherLooks(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	w := &reload.Watcher{Logger: slog.New(slog.DiscardHandler)}
	for _, path := range []string{a, b} {
		write(t, path, "good")
		if _, err := reload.Watch(w, reload.Files[string]{Paths: []string{path}, Parse: parseGood, Logger: w.Logger}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, a, "bad")
	write(t, b, "good 2")
	if got := w.Look(); !slices.Equal(got.Files, []string{a, b}) || !slices.Equal(got.Changed, []string{b}) || got.Err == nil {
		t.Errorf("got %+v", got)
	}
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
	certPEM, key := makePair(t, notAfter)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, certFile, string(certPEM))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}
