package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestWhatCallersLink: whoever imports the messages and the gRPC client gets neither the REST gateway nor anything of the server.
func TestWhatCallersLink(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./gen/forsta/ephemeraltoken/v1")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		"github.com/ForstaLabs/ephemeral-token-service": true, "google.golang.org/grpc": true, "google.golang.org/protobuf": true,
		"google.golang.org/genproto/googleapis/api": true, "google.golang.org/genproto/googleapis/rpc": true,
		"golang.org/x/net": true, "golang.org/x/sys": true, "golang.org/x/text": true,
	}
	for module := range strings.FieldsSeq(string(out)) {
		if !allowed[module] {
			t.Errorf("callers link %s", module)
			allowed[module] = true // once is enough
		}
	}
}
