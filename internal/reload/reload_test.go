package reload_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

func TestReplacedInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		w.looks(3)
		w.want("good 1")
		write(t, file, "good 2")
		w.looks(1)
		w.want("good 1") // seen once only
		w.settles()
		w.want("good 2", "good 2")
		w.looks(3)
		w.want("good 2", "good 2")
		w.wantErrors()
	})
}

func TestReplacedByRename(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		write(t, filepath.Join(dir, "new"), "good 2")
		if err := os.Rename(filepath.Join(dir, "new"), file); err != nil {
			t.Fatal(err)
		}
		w.looks(2)
		w.want("good 2", "good 2")
	})
}

// TestReplacedByKubernetes swaps a mounted volume as the kubelet does: the file is a link to
// ..data/secret, ..data a link to a directory with a time stamp, and a rename points ..data
// elsewhere.
func TestReplacedByKubernetes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		mount := func(stamp, cert, key string) {
			t.Helper()
			if err := os.Mkdir(filepath.Join(dir, stamp), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, stamp, "cert"), cert)
			write(t, filepath.Join(dir, stamp, "key"), key)
			if err := os.Symlink(stamp, filepath.Join(dir, "..data_tmp")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
				t.Fatal(err)
			}
		}
		mount("..2026_01_01", "good cert 1", "good key 1")
		for _, name := range []string{"cert", "key"} {
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		w := watch(t, filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
		w.want("good cert 1+good key 1")
		mount("..2026_01_02", "good cert 2", "good key 2")
		if err := os.RemoveAll(filepath.Join(dir, "..2026_01_01")); err != nil {
			t.Fatal(err)
		}
		w.looks(2)
		w.want("good cert 2+good key 2", "good cert 2+good key 2")
		w.wantErrors()
	})
}

// TestHalfWritten checks that a file which a slow writer extends is not used before it is whole.
// Each part would parse.
func TestHalfWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		for _, part := range []string{"good", "good 2", "good 22", "good 222"} {
			write(t, file, part)
			if part == "good" {
				w.looks(1)
			} else {
				w.settles()
			}
			w.want("good 1")
		}
		w.settles()
		w.want("good 222", "good 222")
		w.wantErrors()
	})
}

// TestPairIsConsistent replaces one file of two later than the other, and checks that the mixture
// is never used.
func TestPairIsConsistent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
		write(t, cert, "good c1")
		write(t, key, "good k1")
		w := watch(t, cert, key)
		write(t, cert, "good c2")
		w.looks(1)
		write(t, key, "good k2")
		w.settles()
		w.want("good c1+good k1")
		w.settles()
		w.want("good c2+good k2", "good c2+good k2")
	})
}

// TestReplacedBeforeEachRead changes the file before every read. Versions that stay for a while are
// used.
func TestReplacedBeforeEachRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 0")
		w := watch(t, file)
		const versions = 30
		for n := range versions {
			write(t, file, fmt.Sprintf("good %d", n+1))
			w.looks(1)
		}
		if used := len(w.changes); used < versions/2 {
			t.Errorf("%d of %d versions were used", used, versions)
		}
		w.wantErrors()
	})
}

// TestSecondFileComesLater checks that the second file of a pair may come a little later without a
// report.
func TestSecondFileComesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
		write(t, cert, "good c1")
		write(t, key, "good k1")
		w := watch(t, cert, key)
		write(t, cert, "bad until the key is there")
		w.looks(1)
		w.settles() // the first failure to parse
		write(t, cert, "good c2")
		write(t, key, "good k2")
		w.looks(2)
		w.want("good c2+good k2", "good c2+good k2")
		w.wantErrors()
	})
}

func TestLastGoodIsKept(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, path string)
		want  error
	}{
		{"deleted", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, fs.ErrNotExist},
		{"empty", func(t *testing.T, path string) { write(t, path, "") }, reload.ErrEmpty},
		{"blank", func(t *testing.T, path string) { write(t, path, " \n") }, reload.ErrEmpty},
		{"too large", func(t *testing.T, path string) { write(t, path, "good"+strings.Repeat(" x", reload.MaxSize/2)) }, reload.ErrTooLarge},
		{"not parsable", func(t *testing.T, path string) { write(t, path, "hunter2") }, errNotGood},
		{"a directory", func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, reload.ErrNotRegular},
		{"not permitted", func(t *testing.T, path string) {
			if os.Geteuid() == 0 {
				t.Skip("root may read everything")
			}
			if err := os.Chmod(path, 0); err != nil {
				t.Fatal(err)
			}
		}, fs.ErrPermission},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), "secret")
				write(t, file, "good 1")
				w := watch(t, file)
				tc.spoil(t, file)
				w.looks(5)
				w.want("good 1")
				w.wantErrors(tc.want)
				for _, err := range w.errs {
					if strings.Contains(err.Error(), "hunter2") {
						t.Errorf("the error quotes the file: %v", err)
					}
				}
				if err := os.RemoveAll(file); err != nil {
					t.Fatal(err)
				}
				write(t, file, "good 2")
				w.looks(2)
				w.want("good 2", "good 2")
				w.wantErrors(tc.want, nil)
			})
		})
	}
}

// TestFailuresAreReportedOnce alternates between two failures.
func TestFailuresAreReportedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		for range 3 {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			w.looks(2)
			write(t, file, "bad")
			w.looks(3)
		}
		w.wantErrors(fs.ErrNotExist, errNotGood)
		write(t, file, "good 1") // the value in use, so no change
		w.looks(2)
		w.want("good 1")
		w.wantErrors(fs.ErrNotExist, errNotGood, nil)
		write(t, file, "bad") // what was refused before is reported anew
		w.looks(3)
		w.wantErrors(fs.ErrNotExist, errNotGood, nil, errNotGood)
	})
}

func TestNewFails(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good"), filepath.Join(dir, "bad")
	write(t, good, "good")
	write(t, bad, "hunter2")
	for _, tc := range []struct {
		name  string
		paths []string
		want  []error
	}{
		{"no file", nil, nil},
		{"missing", []string{filepath.Join(dir, "none")}, []error{fs.ErrNotExist}},
		{"not parsable", []string{good, bad}, []error{errNotGood}},
		{"two reasons", []string{filepath.Join(dir, "none"), good, dir}, []error{fs.ErrNotExist, reload.ErrNotRegular}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, err := reload.New(reload.Files[string]{Paths: tc.paths, Parse: parseGood})
			if err == nil || v != nil {
				t.Fatalf("got %v, %v; want an error", v, err)
			}
			for _, want := range tc.want {
				if !errors.Is(err, want) {
					t.Errorf("%v is not %v", err, want)
				}
			}
		})
	}
}

// TestGetWhileReplacing is for the race detector.
func TestGetWhileReplacing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	write(t, file, "good 0")
	changed := make(chan string, 1)
	v, err := reload.New(reload.Files[string]{Paths: []string{file}, Parse: parseGood, OnChange: func(s string) { changed <- s }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { v.Run(ctx, time.Millisecond) })
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if !strings.HasPrefix(v.Get(), "good") {
					t.Errorf("got %q", v.Get())
				}
			}
		})
	}
	for i := 1; i <= 5; i++ {
		want := fmt.Sprintf("good %d", i)
		write(t, file+".new", want)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
		if got := <-changed; got != want {
			t.Errorf("changed to %q, want %q", got, want)
		}
	}
	cancel()
	wg.Wait()
}
