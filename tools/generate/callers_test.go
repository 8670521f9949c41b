package main

import (
	"os/exec"
	"strings"
	"testing"
)

// TestClientDependencies checks that clients link grpc-go and protobuf, and nothing of the gateway
// or the server.
func TestClientDependencies(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./gen/forsta/...", "./gen/tokenclient")
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
			t.Errorf("clients link %s", module)
			allowed[module] = true // report it once
		}
	}
}
