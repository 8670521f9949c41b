//go:build unix

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// profileDev is a tokend dev --service-identity, and what its guide says.
type profileDev struct {
	*process
	guide    string
	commands []string // to paste, the export of the directory first
	tmp      string   // where it may make its directory
}

func startProfileDev(t *testing.T, args ...string) *profileDev {
	t.Helper()
	d := &profileDev{tmp: filepath.Join(t.TempDir(), "it's a place")} // which a shell would take apart
	if err := os.Mkdir(d.tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	d.process = invocation{
		args: slices.Concat([]string{"dev", "--service-identity"}, freePorts, args),
		env:  []string{"TMPDIR=" + d.tmp},
	}.start(t)
	guide := d.awaitOutput(t, d.stdout, guideEnd)
	d.guide = guide[0]
	wantReady(t, guide[2])
	for line := range strings.Lines(d.guide) {
		switch word, _, _ := strings.Cut(line, " "); word {
		case "export", "curl", "go":
			d.commands = append(d.commands, strings.TrimSpace(line))
		}
	}
	return d
}

// left returns what is in its temporary directory.
func (d *profileDev) left(t *testing.T) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(d.tmp)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// TestDevServiceIdentity pastes the lines that dev prints into a shell: a client with a certificate
// and no Atlas secret creates and deletes a token, one without the certificate is refused, and no
// file is left.
func TestDevServiceIdentity(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	const (
		created = `(?s)^HTTP/\S+ 201 .*\{"token":"[^"]+"\}$`
		goTool  = "go tool -modfile=tools/go.mod grpcurl -cacert"
		rpcDone = `^\{\n  "token": "[^"]+"\n\}\n$`
		refused = "" // the message on standard error differs with the TLS library
	)
	type wanted struct{ command, output string }
	export, ready := wanted{"export DEV_FILES=", `^$`}, wanted{"curl http://", `^ready\n$`}
	rest := []wanted{{"curl -i -X POST --cacert", created}, {"curl -i -X DELETE --cacert", `^HTTP/\S+ 204 `}}
	client := []wanted{{"go run ./cmd/tokend create --ca-file", `^\S+\n$`}, {"go run ./cmd/tokend delete --ca-file", `^deleted\n$`}}
	rpc := []wanted{{goTool, rpcDone}}
	faults := []wanted{{"curl -k https://", `^\{"id":1\}$`}, {"curl -k https://", `^\{"id":2\}$`}, {"curl -k https://", `^\{"id":3\}$`}}
	overREST, overRPC := wanted{"curl -i -X POST --http1.1 --cacert", refused}, wanted{goTool, refused}
	for name, test := range map[string]struct {
		args []string
		want []wanted
	}{
		"tcp":      {nil, slices.Concat([]wanted{export}, client, rest, rpc, []wanted{overREST}, faults, []wanted{ready})},
		"unix":     {[]string{"--grpc-addr=unix:" + socketPath(t)}, slices.Concat([]wanted{export}, client, rest, rpc, []wanted{overREST}, faults, []wanted{ready})},
		"no REST":  {[]string{"--http-addr=", "--grpc-addr=localhost:0"}, slices.Concat([]wanted{export}, client, rpc, []wanted{overRPC}, faults, []wanted{ready})},
		"no gRPC":  {[]string{"--grpc-addr="}, slices.Concat([]wanted{export}, rest, []wanted{overREST}, faults, []wanted{ready})},
		"loopback": {[]string{"--grpc-addr=127.0.0.2:0", "--http-addr=127.0.0.3:0"}, slices.Concat([]wanted{export}, client, rest, rpc, []wanted{overREST}, faults, []wanted{ready})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "loopback" && !canListen("127.0.0.2:0") {
				t.Skip("this machine has no 127.0.0.2")
			}
			d := startProfileDev(t, test.args...)
			if len(d.commands) != len(test.want) {
				t.Fatalf("there are %d lines to paste, want %d:\n%s", len(d.commands), len(test.want), strings.Join(d.commands, "\n"))
			}
			for i, line := range d.commands {
				want := test.want[i]
				if !strings.HasPrefix(line, want.command) {
					t.Errorf("line %d is %s, want %s…", i, line, want.command)
					continue
				}
				t.Run(strings.Fields(line)[0], func(t *testing.T) {
					if want.output != refused {
						pasteLine(t, d.commands[0], line, want.output)
						return
					}
					if got := paste(t, d.commands[0], line); got.code == 0 || got.stdout != "" || strings.Contains(line, "-cert ") {
						t.Errorf("%s\nexit status %d:\n%s%s", line, got.code, got.stdout, got.stderr)
					}
					if strings.HasPrefix(line, "curl") {
						poll(t, "the reason in the log", func() bool { return strings.Contains(d.stderr.String(), "client didn't provide a certificate") })
					}
				})
			}
			d.signal(t, syscall.SIGTERM)
			if code := d.awaitEnd(t); code != 0 {
				t.Errorf("exit status %d", code)
			}
			if left := d.left(t); len(left) != 0 {
				t.Errorf("it leaves %v behind", left)
			}
		})
	}
}

// TestDevServiceIdentityFiles checks that only the owner can read the files that dev makes, and
// that it prints the policy.
func TestDevServiceIdentityFiles(t *testing.T) {
	t.Parallel()
	d := startProfileDev(t)
	for _, want := range []string{
		"NOTHING HERE IS REAL",
		"# rule 1  line 4  spiffe_id spiffe://dev.invalid/web  may call CreateToken, DeleteToken  as profile acme\n",
		"# profile acme  line 2  userauthtoken_file " + d.tmp,
	} {
		if !strings.Contains(d.guide, want) {
			t.Errorf("it does not say %q:\n%s", want, d.guide)
		}
	}
	made := d.left(t)
	if len(made) != 1 {
		t.Fatalf("it made %v", made)
	}
	dir := filepath.Join(d.tmp, made[0].Name())
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("its directory: %v, %v", info.Mode(), err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if info, err := file.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file.Name(), info.Mode(), err)
		}
	}
	secret, err := os.ReadFile(filepath.Join(dir, "userauthtoken"))
	if err != nil {
		t.Fatal(err)
	}
	written := d.stdout.String() + d.stderr.String()
	if strings.Contains(written, strings.TrimSpace(string(secret))) || regexp.MustCompile(`eyJ\w+\.`).MatchString(written) {
		t.Error("it writes an Atlas secret")
	}
}

// TestDevServiceIdentityFails checks that a failed start leaves no file.
func TestDevServiceIdentityFails(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	got := invocation{args: []string{"dev", "--service-identity", "--http-addr=0.0.0.0:0"}, env: []string{"TMPDIR=" + tmp}}.run(t)
	if got.code != 64 || !strings.Contains(got.stderr, "--http-addr: tokend dev listens on loopback only") || strings.Count(got.stderr, "\n") != 1 {
		t.Errorf("exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v behind, %v", left, err)
	}
}
