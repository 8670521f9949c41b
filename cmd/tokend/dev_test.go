//go:build unix

package main_test

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// guide is a tokend dev and what its guide says.
type guide struct {
	*process
	text     string
	admin    string
	commands []string // to paste, the export of a variable first
}

var guideEnd = regexp.MustCompile(`(?s)^(NOTHING HERE IS REAL.*)curl http://(\S+)/readyz\n`)

// startGuide starts tokend dev, which is ready as soon as it has printed its guide.
func startGuide(t *testing.T, in invocation) *guide {
	t.Helper()
	in.args = slices.Concat([]string{"dev"}, freePorts, in.args)
	g := &guide{process: in.start(t)}
	printed := g.awaitOutput(t, g.stdout, guideEnd)
	g.text, g.admin = printed[0], printed[2]
	for line := range strings.Lines(g.text) {
		line = strings.TrimSpace(line)
		switch word, _, _ := strings.Cut(line, " "); word {
		case "export", "curl", "go":
			g.commands = append(g.commands, line)
		}
	}
	if got := probe(t, g.admin, "/readyz"); got != "200 ready" {
		t.Errorf("/readyz: %s", got)
	}
	return g
}

// devService is a tokend dev and what its callers need.
type devService struct {
	*guide
	grpc, http, jwt string
}

func startDev(t *testing.T, args ...string) *devService {
	t.Helper()
	d := &devService{guide: startGuide(t, invocation{args: args})}
	find := func(pattern string) string {
		match := regexp.MustCompile(pattern).FindStringSubmatch(d.text)
		if match == nil {
			t.Fatalf("the guide has no %s:\n%s", pattern, d.text)
		}
		return match[1]
	}
	d.jwt, d.http, d.grpc = find(`export ATLAS_JWT=(\S+)\n`), find(`http://(\S+)/v1/ephemeral-token\n`), find(`(\S+) \S+/CreateToken\n`)
	return d
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
	startGuide(t, invocation{args: []string{"--http-addr="}})
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

// pasted is a line of a guide, and what it prints in a shell.
type pasted struct{ command, output string }

// refused is the output of a line that fails. What it writes to standard error differs with the TLS
// library.
const refused = ""

// TestDevLines pastes the lines that dev prints into a shell in the repository's root.
func TestDevLines(t *testing.T) {
	t.Parallel()
	const (
		created  = `(?s)^HTTP/\S+ 201 .*\{"token":"[^"]+"\}$`
		deleted  = `^HTTP/\S+ 204 `
		grpcurl  = "go tool -modfile=tools/go.mod grpcurl"
		rpcToken = `^\{\n  "token": "[^"]+"\n\}\n$`
	)
	calls := []pasted{
		{"export ATLAS_JWT=", `^$`},
		{"go run ./cmd/tokend create --plaintext", `^\S+\n$`},
		{"go run ./cmd/tokend delete --plaintext", `^deleted\n$`},
		{"curl -i -X POST", created},
		{"curl -i -X DELETE", deleted},
		{grpcurl, rpcToken},
	}
	// With --service-identity, a client with a certificate needs no Atlas secret, and one without
	// is refused.
	files := []pasted{{"export DEV_FILES=", `^$`}}
	client := []pasted{{"go run ./cmd/tokend create --ca-file", `^\S+\n$`}, {"go run ./cmd/tokend delete --ca-file", `^deleted\n$`}}
	rest := []pasted{{"curl -i -X POST --cacert", created}, {"curl -i -X DELETE --cacert", deleted}}
	rpc, refusedRPC := []pasted{{grpcurl + " -cacert", rpcToken}}, []pasted{{grpcurl + " -cacert", refused}}
	refusedREST := []pasted{{"curl -i -X POST --http1.1 --cacert", refused}}
	all := slices.Concat(files, client, rest, rpc, refusedREST)
	for name, test := range map[string]struct {
		args   []string
		listen string // what the machine has to have
		want   []pasted
	}{
		"tcp":                {nil, "", calls},
		"unix":               {[]string{"--grpc-addr=unix:" + socketPath(t)}, "", calls},
		"IPv6":               {[]string{"--grpc-addr=[::1]:0", "--http-addr=[::1]:0", "--admin-addr=[::1]:0"}, "[::1]:0", calls},
		"identity, tcp":      {[]string{"--service-identity"}, "", all},
		"identity, unix":     {[]string{"--service-identity", "--grpc-addr=unix:" + socketPath(t)}, "", all},
		"identity, no REST":  {[]string{"--service-identity", "--http-addr=", "--grpc-addr=localhost:0"}, "", slices.Concat(files, client, rpc, refusedRPC)},
		"identity, no gRPC":  {[]string{"--service-identity", "--grpc-addr="}, "", slices.Concat(files, rest, refusedREST)},
		"identity, loopback": {[]string{"--service-identity", "--grpc-addr=127.0.0.2:0", "--http-addr=127.0.0.3:0"}, "127.0.0.2:0", all},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testutil.NeedTool(t, "sh")
			if test.listen != "" && !canListen(test.listen) {
				t.Skip("this machine has no " + test.listen)
			}
			tmp := filepath.Join(t.TempDir(), "it's a place") // which a shell would take apart
			if err := os.Mkdir(tmp, 0o700); err != nil {
				t.Fatal(err)
			}
			g := startGuide(t, invocation{args: test.args, env: []string{"TMPDIR=" + tmp}})
			want := slices.Concat(test.want, []pasted{
				{"curl -k https://", `^\{"id":1\}$`}, {"curl -k https://", `^\{"id":2\}$`}, {"curl -k https://", `^\{"id":3\}$`}, {"curl http://", `^ready\n$`},
			})
			if len(g.commands) != len(want) {
				t.Fatalf("there are %d lines to paste, want %d:\n%s", len(g.commands), len(want), strings.Join(g.commands, "\n"))
			}
			for i, line := range g.commands {
				t.Run(strings.Fields(line)[0], func(t *testing.T) { g.paste(t, line, want[i]) })
			}
			g.signal(t, syscall.SIGTERM)
			if code := g.awaitEnd(t); code != 0 {
				t.Errorf("exit status %d", code)
			}
			if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
				t.Errorf("it leaves %v behind, %v", left, err)
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

// paste runs a line as a shell does in which the first one has been pasted before. Those that build
// grpcurl are for long runs.
func (g *guide) paste(t *testing.T, line string, want pasted) {
	t.Helper()
	if !strings.HasPrefix(line, want.command) {
		t.Fatalf("it is %s, want %s…", line, want.command)
	}
	switch word, _, _ := strings.Cut(line, " "); word {
	case "curl":
		testutil.NeedTool(t, "curl")
	case "go":
		testutil.SkipUnlessLong(t)
	}
	got := command(t, "sh", "-c", g.commands[0]+"\n"+line)
	if want.output != refused {
		if got.code != 0 || !regexp.MustCompile(want.output).MatchString(strings.ReplaceAll(got.stdout, "\r\n", "\n")) {
			t.Errorf("%s\nexit status %d, want %s:\n%s%s", line, got.code, want.output, got.stdout, got.stderr)
		}
		return
	}
	if got.code == 0 || got.stdout != "" || strings.Contains(line, "-cert ") {
		t.Errorf("%s\nexit status %d:\n%s%s", line, got.code, got.stdout, got.stderr)
	}
	if strings.HasPrefix(line, "curl") {
		poll(t, "the reason in the log", func() bool { return strings.Contains(g.stderr.String(), "client didn't provide a certificate") })
	}
}

// TestDevServiceIdentityFiles checks that only the owner can read the files that dev makes, and
// that it prints the policy.
func TestDevServiceIdentityFiles(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	d := startGuide(t, invocation{args: []string{"--service-identity"}, env: []string{"TMPDIR=" + tmp}})
	for _, want := range []string{
		"NOTHING HERE IS REAL",
		"# rule 1  line 4  spiffe_id spiffe://dev.invalid/web  may call CreateToken, DeleteToken  as profile acme\n",
		"# profile acme  line 2  userauthtoken_file " + tmp,
	} {
		if !strings.Contains(d.text, want) {
			t.Errorf("it does not say %q:\n%s", want, d.text)
		}
	}
	made, err := os.ReadDir(tmp)
	if err != nil || len(made) != 1 {
		t.Fatalf("it made %v, %v", made, err)
	}
	dir := filepath.Join(tmp, made[0].Name())
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
