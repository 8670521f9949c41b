package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteImports(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "imports")
	stale := filepath.Join(dir, "stale.proto")
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	write(t, stale, "")

	if err := writeImports(dir); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "google", "api", "annotations.proto"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(got), "extend google.protobuf.MethodOptions") {
		t.Errorf("annotations.proto does not extend MethodOptions:\n%s", got)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Errorf("a file of an earlier run is still there: %v", err)
	}
}
