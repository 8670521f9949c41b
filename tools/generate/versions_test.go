package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckVersions(t *testing.T) {
	const same = `module m

require (
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.33.0
	google.golang.org/genproto/googleapis/api v0.0.1
	google.golang.org/genproto/googleapis/rpc v0.0.1
	google.golang.org/protobuf v1.36.12
)
`
	for _, tt := range []struct{ name, tools, wantErr string }{
		{"same", same, ""},
		{"other version", strings.Replace(same, "api v0.0.1", "api v0.0.2", 1), "google.golang.org/genproto/googleapis/api"},
		{"missing", strings.Replace(same, "\tgoogle.golang.org/protobuf v1.36.12\n", "", 1), "google.golang.org/protobuf"},
		{"not a go.mod", "nonsense (", "tools.mod"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			root, tools := filepath.Join(dir, "root.mod"), filepath.Join(dir, "tools.mod")
			write(t, root, same)
			write(t, tools, tt.tools)

			err := checkVersions(root, tools)
			switch {
			case tt.wantErr == "" && err != nil:
				t.Errorf("error %v, want none", err)
			case tt.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tt.wantErr)):
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
		})
	}
}

// TestCheckVersionsHere checks the two go.mod files of this repository.
func TestCheckVersionsHere(t *testing.T) {
	if err := checkVersions("../../go.mod", "../go.mod"); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
