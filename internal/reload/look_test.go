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

// Whoever asks for a look gets it at once: what is new is in use, what cannot be used is told each time and leaves the last good
// value, and nobody is told of a change twice.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		look := func(changed bool, err error) {
			t.Helper()
			got := w.Look()
			if !slices.Equal(got.Files, []string{file}) || (len(got.Changed) == 1) != changed || (got.Err != nil) != (err != nil) {
				t.Errorf("it found %+v", got)
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
		w.looks(1) // half way to being taken seriously
		look(true, nil)
		w.settles()
		w.want("good 3", "good 2", "good 3")
		w.wantErrors(errNotGood, nil)
	})
}

// A watcher looks at all of its values, whatever is wrong with one of them.
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
		t.Errorf("it found %+v", got)
	}
}

// A certificate that is not valid yet is one of the future: the last good one stays until then, and nobody need replace the file
// again.
func TestCertificateOfTheFuture(t *testing.T) {
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
			t.Errorf("before its time the other one is in use: %v, and the log has %q", !got.Equal(first), errs)
		}
		<-time.After(35 * time.Second)
		synctest.Wait()
		if get().Leaf.Equal(first) {
			t.Error("in its time it is not in use")
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
