package testutil

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Long reports whether to run the long versions of the tests: TOKEND_LONG=1, which .ci/run sets.
// Without it a suite that can run for minutes takes a second or two.
func Long() bool { return os.Getenv("TOKEND_LONG") == "1" }

// Some returns all cases in a long run, else the first n of them.
func Some[T any](all []T, n int) []T {
	if Long() {
		return all
	}
	return all[:n]
}

// SkipUnlessLong skips a test outside long runs.
func SkipUnlessLong(t testing.TB) {
	t.Helper()
	if !Long() {
		t.Skip("long: set TOKEND_LONG=1")
	}
}

// NeedTool returns the path of a program. Without the program the test is skipped, or fails if
// REQUIRE_TOOLS=1, which .ci/run sets.
func NeedTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		SkipWithout(t, name)
	}
	return path
}

// SkipWithout skips a test that needs something, or fails it if REQUIRE_TOOLS=1.
func SkipWithout(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is missing, and REQUIRE_TOOLS=1", what)
	}
	t.Skipf("%s is missing", what)
}

// Path returns the path of a file of the repository, given relative to its root.
func Path(name string) string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "buf.gen.yaml")); err == nil { // at the root only, unlike go.mod
			return filepath.Join(dir, filepath.FromSlash(name))
		}
	}
	panic("the test does not run inside the repository")
}
