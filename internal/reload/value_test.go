package reload_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// TestReplacedInPlace checks that contents are used once two readings have found the same, so that
// neither a part that a slow writer leaves, which would parse, nor a mixture of two files is.
func TestReplacedInPlace(t *testing.T) {
	type step struct {
		cert, key string // what is written before the next reading, if anything
		want      string
	}
	for name, steps := range map[string][]step{
		"at once":         {{"", "", "c1+good k1"}, {"good c2", "", "c1+good k1"}, {"", "", "c2+good k1"}, {"", "", "c2+good k1"}},
		"by a slow write": {{"good", "", "c1+good k1"}, {"good c", "", "c1+good k1"}, {"good c2", "", "c1+good k1"}, {"", "", "c2+good k1"}},
		"one by one":      {{"good c2", "", "c1+good k1"}, {"", "good k2", "c1+good k1"}, {"", "", "c2+good k2"}, {"", "", "c2+good k2"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cert, key := filepath.Join(t.TempDir(), "cert"), filepath.Join(t.TempDir(), "key")
				write(t, cert, "good c1")
				write(t, key, "good k1")
				w := watch(t, cert, key)
				var changes []string
				for i, step := range steps {
					for path, content := range map[string]string{cert: step.cert, key: step.key} {
						if content != "" {
							write(t, path, content)
						}
					}
					w.looks(1)
					if want := "good " + step.want; i > 0 && steps[i-1].want != step.want {
						changes = append(changes, want)
					}
					w.want("good "+step.want, changes...)
				}
				w.wantErrors()
			})
		})
	}
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

// TestParsedAgain checks that contents that cannot be used are parsed again, because the reason may
// not be in the files.
func TestParsedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
		write(t, path, "good")
		w := &watched{t: t}
		v, err := reload.New(reload.Files[string]{
			Paths: []string{path}, Logger: slog.New(w),
			Parse: func(contents [][]byte) (string, error) {
				if string(contents[0]) == "good" {
					return "good", nil
				}
				_, err := os.Stat(other)
				return string(contents[0]), err
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.run(v)
		write(t, path, "better")
		w.looks(6)
		w.want("good")
		w.wantErrors(fs.ErrNotExist)
		write(t, other, "x")
		w.looks(1)
		w.want("better")
		w.wantErrors(fs.ErrNotExist, nil)
	})
}

// TestLook checks that Look uses new contents at once, returns an error each time for those that
// cannot be used, and reports each change once.
func TestLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		look := func(changed bool, err error) {
			t.Helper()
			got := w.watcher.Look()
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
		w.looks(1)
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
		if _, err := reload.Watch(w, reload.Files[string]{Paths: []string{path}, Name: path, Parse: parseGood, Logger: w.Logger}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, a, "bad")
	write(t, b, "good 2")
	if got := w.Look(); !slices.Equal(got.Files, []string{a, b}) || !slices.Equal(got.Changed, []string{b}) || got.Err == nil {
		t.Errorf("got %+v", got)
	}
}

// TestReloadMetrics checks the metrics of a file that cannot be used, and that removing a value
// does not remove another of the same name that has replaced it.
func TestReloadMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		shown := &reload.Watcher{}
		remove := shown.Add(w)
		start := time.Now().Unix()
		want := func(ok bool, since int64) {
			t.Helper()
			status := w.Status()
			if (status.Err == nil) != ok || status.Since.Unix() != since {
				t.Errorf("the error is %v since %d, want OK %v since %d", status.Err, status.Since.Unix(), ok, since)
			}
			line := map[bool]string{true: "1", false: "0"}[ok]
			if err := testutil.CollectAndCompare(shown, strings.NewReader(`
# HELP tokend_file_last_reload_successful 1 if the files on disk, or what the SPIFFE agent has, are in use; 0 while they cannot be used, and the last good ones stay.
# TYPE tokend_file_last_reload_successful gauge
tokend_file_last_reload_successful{kind="",name=""} `+line+"\n"), "tokend_file_last_reload_successful"); err != nil {
				t.Error(err)
			}
		}
		want(true, start)
		write(t, file, "bad")
		w.looks(1)
		want(true, start)
		w.looks(3)
		want(false, start)
		write(t, file, "good 2")
		w.looks(2)
		since := w.Status().Since.Unix()
		if since <= start {
			t.Error("the time is that of the first file")
		}
		want(true, since)
		write(t, file, "bad again")
		w.looks(3)
		want(false, since)
		write(t, file, "good 2") // as it was
		w.looks(2)
		want(true, since)

		removeNext := shown.Add(watch(t, file))
		remove()
		if n := testutil.CollectAndCount(shown); n != 2 {
			t.Errorf("%d series after the first is removed, want those of the second", n)
		}
		removeNext()
		if n := testutil.CollectAndCount(shown); n != 0 {
			t.Errorf("%d series after all are removed", n)
		}
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
