package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	codepb "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestRetriesOfNode: what another implementation of gRPC makes of the same service config and of the same answers.
func TestRetriesOfNode(t *testing.T) {
	n := installNode(t)
	config, err := os.ReadFile(recommendedConfig)
	if err != nil {
		t.Fatal(err)
	}
	s, d := testutil.StartDoor(t, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Second })
	for _, tc := range []struct {
		name     string
		config   string
		op       testutil.Operation
		failures []error        // at the door
		fault    emulator.Fault // behind it
		code     codes.Code
		attempts int
		gap      time.Duration // between the first two
	}{
		{name: "a create that goes well", config: string(config), op: testutil.Create, attempts: 1},
		{name: "a create is tried again, after the pushback", config: string(config), op: testutil.Create, failures: []error{unavailable(400 * time.Millisecond)}, attempts: 2, gap: 400 * time.Millisecond},
		{
			name: "three attempts and no more", config: string(config), op: testutil.Create, code: codes.Unavailable, attempts: 3,
			failures: []error{unavailable(time.Millisecond), unavailable(time.Millisecond), unavailable(time.Millisecond)},
		},
		{name: "a refused create", config: repeatEverything, op: testutil.Create, fault: emulator.Fault{Status: http.StatusUnauthorized}, code: codes.Unauthenticated, attempts: 1},
		{
			name: "a delete that was not sent may be tried again", config: repeatEverything, op: testutil.Delete, attempts: 3, gap: 10 * time.Millisecond,
			failures: []error{unsent(10 * time.Millisecond), unsent(10 * time.Millisecond)},
		},
		{name: "a delete that Atlas failed", config: repeatEverything, op: testutil.Delete, fault: emulator.Fault{Status: http.StatusServiceUnavailable}, code: codes.Unknown, attempts: 1},
		{name: "a delete without an answer", config: repeatEverything, op: testutil.Delete, fault: emulator.Fault{Drop: emulator.ResetConnection}, code: codes.Unknown, attempts: 1},
		{name: "a delete that was done too late", config: repeatEverything, op: testutil.Delete, fault: emulator.Fault{Delay: time.Hour, AfterEffect: true}, code: codes.Unavailable, attempts: 1},
		{name: "a delete in conflict", config: repeatEverything, op: testutil.Delete, fault: emulator.Fault{Status: http.StatusConflict}, code: codes.Aborted, attempts: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			defer s.Atlas.Inject(tc.fault)()
			d.Expect(tc.failures...)
			deletes := s.Atlas.Calls(emulator.Delete)
			got := n.call(t, s, tc.op, tc.config)
			at := d.Attempts()
			if got.Code != codeName(tc.code) || len(at) != tc.attempts {
				t.Fatalf("%+v after %d attempts, want %s after %d", got, len(at), codeName(tc.code), tc.attempts)
			}
			if got.Headers != (tc.code == codes.OK) {
				t.Errorf("%+v: an error has no headers, and what goes well has", got)
			}
			if len(at) > 1 && at[1].Sub(at[0]) < tc.gap {
				t.Errorf("the second attempt came after %v, want %v at least", at[1].Sub(at[0]), tc.gap)
			}
			if calls := s.Atlas.Calls(emulator.Delete) - deletes; tc.op == testutil.Delete && calls != 1 {
				t.Errorf("Atlas got %d deletes, want 1", calls)
			}
		})
	}
}

// codeName is a code as grpc-js has it.
func codeName(c codes.Code) string { return codepb.Code(c).String() }

// node is a folder with call.js and what that needs.
type node string

// installNode has npm install exactly what the lock file names, and run none of it. Without Node, or without the packages, the
// test is skipped, or fails if REQUIRE_TOOLS is 1.
func installNode(t *testing.T) node {
	t.Helper()
	lacking := func(why string) {
		if os.Getenv("REQUIRE_TOOLS") == "1" { //nolint:forbidigo // a switch of the tests, which is set for all of them
			t.Fatal(why)
		}
		t.Skip(why)
	}
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			lacking(tool + " is not installed: on Debian, apt-get install nodejs npm")
		}
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/grpc-js")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	npm := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1")
	npm.Dir = dir
	if out, err := npm.CombinedOutput(); err != nil {
		lacking(fmt.Sprintf("npm ci: %v\n%s", err, out))
	}
	return node(dir)
}

// nodeOutcome is what call.js saw.
type nodeOutcome struct {
	Code     string `json:"code"`
	Message  string `json:"message"`
	Headers  bool   `json:"headers"`
	Pushback string `json:"pushback"`
}

// call makes one call, by a process of its own.
func (n node) call(t *testing.T, s *testutil.Service, op testutil.Operation, config string) nodeOutcome {
	t.Helper()
	method := "CreateToken"
	if op == testutil.Delete {
		method = "DeleteToken"
	}
	var protos []string
	for _, dir := range []string{testutil.Path("proto"), testutil.Path("third_party/googleapis")} {
		abs, err := filepath.Abs(dir)
		if err != nil {
			t.Fatal(err)
		}
		protos = append(protos, abs)
	}
	input, err := json.Marshal(map[string]any{
		"address": s.GRPCAddr().String(), "protos": protos, "method": method, "jwt": s.Atlas.Org(0).JWT(), "serviceConfig": config, "seconds": 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", filepath.Join(string(n), "call.js"))
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, &stderr)
	}
	var got nodeOutcome
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("node printed %q: %v", out, err)
	}
	return got
}
