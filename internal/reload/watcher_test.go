package reload_test

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// TestReloadMetrics checks the metrics of a file that cannot be used, and that hiding a value does
// not hide another of the same name that has replaced it.
func TestReloadMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "secret")
		write(t, file, "good 1")
		w := watch(t, file)
		shown := &reload.Watcher{}
		hide := shown.Show(w)
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

		hideNext := shown.Show(watch(t, file))
		hide()
		if n := testutil.CollectAndCount(shown); n != 2 {
			t.Errorf("%d series after the first is hidden, want those of the second", n)
		}
		hideNext()
		if n := testutil.CollectAndCount(shown); n != 0 {
			t.Errorf("%d series after all are hidden", n)
		}
	})
}
