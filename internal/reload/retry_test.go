package reload_test

import (
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// TestRetry checks that contents are parsed again if their error is marked with Retry, and else
// not.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "good")
		var (
			mu     sync.Mutex
			missed = errors.New("the other file is not there")
			answer error
			tries  int
		)
		set := func(err error) { mu.Lock(); defer mu.Unlock(); answer, tries = err, 0 }
		w := &watched{t: t}
		v, err := reload.New(reload.Files[string]{
			Paths: []string{path}, Logger: slog.New(w),
			Parse: func(contents [][]byte) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				tries++
				return string(contents[0]), answer
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Value = v
		run(t, v)
		looks := func(want int, value string) {
			t.Helper()
			w.looks(6)
			mu.Lock()
			defer mu.Unlock()
			if tries != want || v.Get() != value {
				t.Errorf("tried %d times, want %d; the value is %q, want %q", tries, want, v.Get(), value)
			}
		}
		set(missed)
		write(t, path, "better")
		looks(2, "good") // the second time, it is reported
		set(errors.Join(errNotGood, reload.Retry(missed)))
		write(t, path, "best")
		looks(6, "good")
		set(nil)
		looks(1, "best")
		if errs := w.errs; len(errs) != 3 || !errors.Is(errs[1], missed) || !strings.HasSuffix(errs[1].Error(), missed.Error()) || errs[2] != nil {
			t.Errorf("reported %q", w.errs)
		}
		if reload.Retry(nil) != nil {
			t.Error("Retry(nil) is not nil")
		}
	})
}
