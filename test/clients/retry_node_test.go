package clients

import (
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

// TestRetriesOfNode checks the retries of another gRPC implementation with the recommended service
// config.
func TestRetriesOfNode(t *testing.T) {
	testutil.SkipUnlessLong(t)
	t.Parallel()
	n := startNode(t)
	config, err := os.ReadFile(recommendedConfig)
	if err != nil {
		t.Fatal(err)
	}
	s, d := testutil.StartDoor(t, func(_ *server.Config, a *atlas.Config) { a.Timeout = time.Second })
	for _, tc := range []struct {
		name     string
		config   string
		op       testutil.Operation
		failures []error        // of the Door
		fault    emulator.Fault // of Atlas
		code     codes.Code
		attempts int
		gap      time.Duration // between the first two
	}{
		{name: "a successful create", config: string(config), op: testutil.Create, attempts: 1},
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
		{name: "a delete that was done too late", config: repeatEverything, op: testutil.Delete, fault: emulator.Fault{Delay: time.Hour, AfterEffect: true}, code: codes.Unknown, attempts: 1},
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
				t.Errorf("%+v: want headers without an error only", got)
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

// codeName returns grpc-js's name of a code.
func codeName(c codes.Code) string { return codepb.Code(c).String() }

// node is a process of call.js, which reads calls, one per line, and prints their outcomes.
type node struct {
	in  *json.Encoder
	out *json.Decoder
}

// startNode installs the packages of the lock file without running their scripts.
func startNode(t *testing.T) node {
	t.Helper()
	nodejs, npm := testutil.NeedTool(t, "node"), testutil.NeedTool(t, "npm")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/grpc-js")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	install := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		testutil.SkipWithout(t, fmt.Sprintf("what npm ci installs (%v)\n%s", err, out))
	}
	cmd := exec.CommandContext(t.Context(), nodejs, filepath.Join(dir, "call.js"))
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // killed with the test's context, or at the end of its input
	})
	return node{json.NewEncoder(in), json.NewDecoder(out)}
}

// nodeOutcome is an outcome of call.js.
type nodeOutcome struct {
	Code     string `json:"code"`
	Message  string `json:"message"`
	Headers  bool   `json:"headers"`
	Pushback string `json:"pushback"`
}

// call makes one call over a new connection.
func (n node) call(t *testing.T, s *testutil.Service, op testutil.Operation, config string) nodeOutcome {
	t.Helper()
	method := "CreateToken"
	if op == testutil.Delete {
		method = "DeleteToken"
	}
	err := n.in.Encode(map[string]any{
		"address": s.GRPCAddr().String(), "protos": []string{testutil.Path("proto"), testutil.Path("third_party/googleapis")},
		"method": method, "jwt": s.Atlas.Org(0).JWT(), "serviceConfig": config, "seconds": 30,
	})
	if err != nil {
		t.Fatal(err)
	}
	var got nodeOutcome
	if err := n.out.Decode(&got); err != nil {
		t.Fatal(err)
	}
	return got
}
