//go:build unix

package main_test

import (
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// devService is a tokend dev and what its guide says.
type devService struct {
	*process
	grpc, http, admin, jwt string
	commands               []string // to paste, the export of the JWT first
}

var guideEnd = regexp.MustCompile(`(?s)^(NOTHING HERE IS REAL.*)curl http://(\S+)/readyz\n`)

func startDev(t *testing.T, args ...string) *devService {
	t.Helper()
	d := &devService{process: invocation{args: slices.Concat([]string{"dev"}, freePorts, args)}.start(t)}
	guide := d.awaitOutput(t, d.stdout, guideEnd)
	for line := range strings.Lines(guide[0]) {
		line = strings.TrimSpace(line)
		switch word, _, _ := strings.Cut(line, " "); word {
		case "export", "curl", "go", "grpcurl":
			d.commands = append(d.commands, line)
		}
	}
	for _, found := range []struct {
		value   *string
		pattern string
	}{
		{&d.jwt, `export ATLAS_JWT=(\S+)\n`},
		{&d.http, `http://(\S+)/v1/ephemeral-token\n`},
		{&d.grpc, `(\S+) \S+/CreateToken\n`},
	} {
		match := regexp.MustCompile(found.pattern).FindStringSubmatch(guide[0])
		if match == nil {
			t.Fatalf("the guide has no %s:\n%s", found.pattern, guide[0])
		}
		*found.value = match[1]
	}
	d.admin = guide[2]
	wantReady(t, d.admin)
	return d
}

// wantReady checks that a dev is ready as soon as it has printed its guide.
func wantReady(t *testing.T, admin string) {
	t.Helper()
	if got := probe(t, admin, "/readyz"); got != "200 ready" {
		t.Errorf("/readyz: %s", got)
	}
}

// TestDev makes both calls over both transports with the JWT that dev prints, and opens the API
// page.
func TestDev(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	rpc := newRPCClient(t, d.grpc)
	ctx := withJWT(t.Context(), d.jwt)
	first, err := rpc.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{})
	if err != nil || first.GetToken() == "" {
		t.Fatalf("no token: %v", err)
	}
	if got := rest(t, http.MethodPost, d.http, "Authorization", "JWT "+d.jwt); got.token() != first.GetToken() {
		t.Errorf("REST answers %d %q, gRPC had %q", got.status, got.body, first.GetToken())
	}
	if got := rest(t, http.MethodDelete, d.http, "Authorization", "Bearer "+d.jwt); got.status != http.StatusNoContent {
		t.Errorf("delete over REST: %+v", got)
	}
	if _, err := rpc.DeleteToken(ctx, &ephemeraltokenv1.DeleteTokenRequest{}); err != nil {
		t.Errorf("delete over gRPC: %v", err)
	}
	if !strings.Contains(d.stdout.String(), "\n# or in a browser: http://"+d.http+"/docs, where ") {
		t.Errorf("the guide has no line about the page:\n%s", d.stdout)
	}
	if got := probe(t, d.http, "/docs"); !strings.HasPrefix(got, "200 <!doctype html>") {
		t.Errorf("/docs: %s", got)
	}
	without := startDev(t, "--docs=false")
	if got := probe(t, without.http, "/docs"); !strings.HasPrefix(got, "404 ") || strings.Contains(without.stdout.String(), "browser") {
		t.Errorf("with --docs=false: %s\n%s", got, without.stdout)
	}
	// Without REST there is no page, and by default that is not a mistake.
	withoutREST := invocation{args: slices.Concat([]string{"dev"}, freePorts, []string{"--http-addr="})}.start(t)
	withoutREST.awaitOutput(t, withoutREST.stdout, guideEnd)
}

// TestDevRestart calls a second dev with the JWT of the first, and reads in the log what the cache
// has spared Atlas.
func TestDevRestart(t *testing.T) {
	t.Parallel()
	first := startDev(t)
	second := startDev(t)
	if first.jwt != second.jwt {
		t.Error("the JWT is another one")
	}
	for range 2 {
		if got := rest(t, http.MethodPost, second.http, "Authorization", "JWT "+first.jwt); got.status != http.StatusCreated {
			t.Fatalf("%d", got.status)
		}
	}
	for _, want := range []string{`"cache":"tokend; fwd=miss","spared":"0 of 1 calls to Atlas"`, `"spared":"1 of 2 calls to Atlas"`} {
		poll(t, want, func() bool { return strings.Contains(second.stderr.String(), want) })
	}
}

// TestDevColor checks that the log on a terminal has colors unless NO_COLOR is set.
func TestDevColor(t *testing.T) {
	t.Parallel()
	testutil.NeedTool(t, "script") // gives the program a terminal
	for env, want := range map[string]string{"NO_COLOR=": "\x1b[32mlevel=INFO\x1b[0m", "NO_COLOR=1": "level=INFO"} {
		line := "tokend dev --service-identity " + strings.Join(freePorts, " ")
		p := invocation{program: "script", args: []string{"-qec", line, "/dev/null"}, env: []string{env}}.start(t)
		p.awaitOutput(t, p.stdout, regexp.MustCompile(`time=\S+ `+regexp.QuoteMeta(want)+` msg=`))
		p.signal(t, syscall.SIGTERM)
		p.awaitEnd(t)
	}
}

// What dev prints can be pasted as it is into a shell in the repository's root.
func TestDevLines(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip(err)
	}
	for name, args := range map[string][]string{
		"tcp":  nil,
		"unix": {"--grpc-addr=unix:" + socketPath(t)},
		"IPv6": {"--grpc-addr=[::1]:0", "--http-addr=[::1]:0", "--admin-addr=[::1]:0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "IPv6" && !canListen("[::1]:0") {
				t.Skip("this machine has no ::1")
			}
			d := startDev(t, args...)
			want := []struct{ command, output string }{
				{"export ATLAS_JWT=", `^$`},
				{"go run ./cmd/tokend create --plaintext", `^\S+\n$`},
				{"go run ./cmd/tokend delete --plaintext", `^deleted\n$`},
				{"curl -i -X POST", `(?s)^HTTP/1.1 201 .*\{"token":"[^"]+"\}$`},
				{"curl -i -X DELETE", `^HTTP/1.1 204 `},
				{"go tool -modfile=tools/go.mod grpcurl", `^\{\n  "token": "[^"]+"\n\}\n$`},
				{"curl -k https://", `^\{"id":1\}$`},
				{"curl -k https://", `^\{"id":2\}$`},
				{"curl -k https://", `^\{"id":3\}$`},
				{"curl http", `^ready\n$`},
			}
			if len(d.commands) != len(want) {
				t.Fatalf("there are %d lines to paste, want %d:\n%s", len(d.commands), len(want), strings.Join(d.commands, "\n"))
			}
			for i, line := range d.commands {
				if !strings.HasPrefix(line, want[i].command) {
					t.Errorf("line %d is %s, want %s…", i, line, want[i].command)
					continue
				}
				t.Run(strings.Fields(line)[0], func(t *testing.T) { pasteLine(t, d.commands[0], line, want[i].output) })
			}
		})
	}
}

// canListen reports whether this machine has an address.
func canListen(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		_ = l.Close()
	}
	return err == nil
}

func pasteLine(t *testing.T, export, line, want string) {
	t.Helper()
	got := paste(t, export, line)
	if got.code != 0 || !regexp.MustCompile(want).MatchString(strings.ReplaceAll(got.stdout, "\r\n", "\n")) {
		t.Errorf("%s\nexit status %d, want %s:\n%s%s", line, got.code, want, got.stdout, got.stderr)
	}
}

// paste runs a line as a shell does in which export has been pasted before. Those that build
// grpcurl are for long runs.
func paste(t *testing.T, export, line string) result {
	t.Helper()
	switch word, _, _ := strings.Cut(line, " "); word {
	case "curl":
		testutil.NeedTool(t, "curl")
	case "go":
		testutil.SkipUnlessLong(t)
	}
	return command(t, "sh", "-c", export+"\n"+line)
}
