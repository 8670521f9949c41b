package main

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spf13/cobra/doc"
)

// TestManPages makes the man pages, in $MAN_DIR if that is set, which is how a release makes them:
// the generator stays out of the program. $MAN_VERSION is the release, and $MAN_DATE its date.
func TestManPages(t *testing.T) {
	dir := cmp.Or(os.Getenv("MAN_DIR"), t.TempDir())
	header := &doc.GenManHeader{Section: "1", Source: "tokend " + os.Getenv("MAN_VERSION"), Manual: "tokend"}
	if text := os.Getenv("MAN_DATE"); text != "" {
		date, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		header.Date = &date
	}
	root := newRoot(nil)
	root.DisableAutoGenTag = true
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"tokend.1", "tokend-serve.1", "tokend-dev.1", "tokend-config.1", "tokend-doctor.1", "tokend-create.1"} {
		if info, err := os.Stat(filepath.Join(dir, page)); err != nil || info.Size() < 500 {
			t.Errorf("%s: %v", page, err)
		}
	}
}
