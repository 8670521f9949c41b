package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestProtoc compiles the API, and what a client needs to read errors, with Debian's protoc.
func TestProtoc(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		lacking(t, "protoc is not installed: on Debian, apt-get install protobuf-compiler libprotobuf-dev")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "protoc", "-I../../proto", "-I../../third_party/googleapis", "--python_out="+dir,
		"forsta/ephemeraltoken/v1/ephemeral_token.proto", "forsta/ephemeraltoken/v1/error_reason.proto",
		"google/api/annotations.proto", "google/api/http.proto", "google/rpc/status.proto", "google/rpc/error_details.proto")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(dir, "forsta", "ephemeraltoken", "v1", "ephemeral_token_pb2.py")); err != nil {
		t.Error(err)
	}
}

// lacking skips a test that needs a missing tool, or fails it if REQUIRE_TOOLS is 1.
func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}
