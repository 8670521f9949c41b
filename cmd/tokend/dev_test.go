//go:build unix

package main_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
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
	return d
}

// TestDev does over gRPC with grpcurl, and over REST with plain HTTP, what somebody does who tries the service.
func TestDev(t *testing.T) {
	t.Parallel()
	d := startDev(t)
	auth := []string{"-H", "authorization: JWT " + d.jwt}
	call := func(t *testing.T, method string) result {
		t.Helper()
		return grpcurl(t, slices.Concat([]string{"-plaintext"}, auth, []string{d.grpc, rpcService + "/" + method})...)
	}

	t.Run("list", func(t *testing.T) {
		got := grpcurl(t, "-plaintext", d.grpc, "list")
		want := rpcService + "\ngrpc.health.v1.Health\ngrpc.reflection.v1.ServerReflection\ngrpc.reflection.v1alpha.ServerReflection\n"
		if got.code != 0 || got.stdout != want {
			t.Errorf("exit status %d, services:\n%s%s", got.code, got.stdout, got.stderr)
		}
	})
	t.Run("describe", func(t *testing.T) {
		for symbol, want := range map[string][]string{
			rpcService: {
				"rpc CreateToken ( .forsta.ephemeraltoken.v1.CreateTokenRequest ) returns ( .forsta.ephemeraltoken.v1.CreateTokenResponse ) {",
				`option (.google.api.http) = { post: "/v1/ephemeral-token", body: "*" };`,
				"rpc DeleteToken ( .forsta.ephemeraltoken.v1.DeleteTokenRequest ) returns ( .forsta.ephemeraltoken.v1.DeleteTokenResponse ) {",
				`option (.google.api.http) = { delete: "/v1/ephemeral-token" };`,
			},
			rpcService + ".CreateToken": {
				"rpc CreateToken ( .forsta.ephemeraltoken.v1.CreateTokenRequest ) returns ( .forsta.ephemeraltoken.v1.CreateTokenResponse ) {",
			},
			"forsta.ephemeraltoken.v1.CreateTokenResponse": {"string token = 1;"},
			"google.rpc.ErrorInfo":                         {"string reason = 1;"},
			"google.rpc.RetryInfo":                         {".google.protobuf.Duration retry_delay = 1;"},
		} {
			got := grpcurl(t, "-plaintext", d.grpc, "describe", symbol)
			for _, line := range want {
				if got.code != 0 || !strings.Contains(compact(got.stdout), line+"\n") {
					t.Errorf("describe %s, exit status %d, without %s:\n%s%s", symbol, got.code, line, got.stdout, got.stderr)
				}
			}
		}
	})
	t.Run("reflection v1", func(t *testing.T) {
		got := grpcurl(t, "-plaintext", "-d", `{"list_services": ""}`, d.grpc, "grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
		if got.code != 0 || !strings.Contains(got.stdout, `"name": "`+rpcService+`"`) {
			t.Errorf("exit status %d:\n%s%s", got.code, got.stdout, got.stderr)
		}
	})
	t.Run("health", func(t *testing.T) {
		for _, name := range []string{"", rpcService} {
			got := grpcurl(t, "-plaintext", "-d", `{"service": "`+name+`"}`, d.grpc, "grpc.health.v1.Health/Check")
			if got.code != 0 || !strings.Contains(got.stdout, `"status": "SERVING"`) {
				t.Errorf("of %q, exit status %d:\n%s%s", name, got.code, got.stdout, got.stderr)
			}
		}
		for path, want := range map[string]string{"/healthz": "200 ok", "/readyz": "200 ready"} {
			if got := probe(t, d.admin, path); got != want {
				t.Errorf("%s: %s, want %s", path, got, want)
			}
		}
	})
	t.Run("page", func(t *testing.T) {
		if !strings.Contains(d.stdout.String(), "\n# or in a browser: http://"+d.http+"/docs, where ") {
			t.Errorf("the guide does not tell of it:\n%s", d.stdout)
		}
		if got := probe(t, d.http, "/docs"); !strings.HasPrefix(got, "200 <!doctype html>") {
			t.Errorf("/docs: %s", got)
		}
		without := startDev(t, "--docs=false")
		if got := probe(t, without.http, "/docs"); !strings.HasPrefix(got, "404 ") || strings.Contains(without.stdout.String(), "browser") {
			t.Errorf("with --docs=false: %s\n%s", got, without.stdout)
		}
		// Without REST there is no page, and by default that is no mistake.
		withoutREST := invocation{args: slices.Concat([]string{"dev"}, freePorts, []string{"--http-addr="})}.start(t)
		withoutREST.awaitOutput(t, withoutREST.stdout, guideEnd)
	})
	t.Run("both calls", func(t *testing.T) {
		first := grpcurlToken(t, call(t, "CreateToken"))
		if first == "" {
			t.Fatal("the token is empty")
		}
		created := rest(t, http.MethodPost, d.http, "Authorization", "JWT "+d.jwt)
		if created.token() != first {
			t.Errorf("REST answers %d %q, gRPC had %q", created.status, created.body, first)
		}
		for name, want := range map[string]string{"Cache-Control": "no-store", "Content-Type": "application/json"} {
			if got := created.header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		deleted := rest(t, http.MethodDelete, d.http, "Authorization", "Bearer "+d.jwt)
		if _, typed := deleted.header["Content-Type"]; deleted.status != http.StatusNoContent || deleted.body != "" || typed {
			t.Errorf("delete over REST: %+v", deleted)
		}
		second := grpcurlToken(t, call(t, "CreateToken"))
		if second == "" || second == first {
			t.Errorf("after the delete there is %q, before it %q", second, first)
		}
		if got := call(t, "DeleteToken"); got.code != 0 || strings.TrimSpace(got.stdout) != "{}" {
			t.Errorf("delete over gRPC, exit status %d:\n%s%s", got.code, got.stdout, got.stderr)
		}
		if third := rest(t, http.MethodPost, d.http, "Authorization", "JWT "+d.jwt).token(); third == "" || third == second {
			t.Errorf("after the second delete there is %q, before it %q", third, second)
		}
	})
	t.Run("failing call", func(t *testing.T) {
		for _, test := range []struct {
			name, authorization, reason string
		}{
			{"no credential", "", "CREDENTIAL_MISSING"},
			{"malformed", "authorization: JWT x", "CREDENTIAL_MALFORMED"},
			{"refused by Atlas", "authorization: JWT a.b.c", "CREDENTIAL_REJECTED"},
		} {
			args := []string{"-plaintext"}
			if test.authorization != "" {
				args = append(args, "-H", test.authorization)
			}
			args = append(args, d.grpc, rpcService+"/CreateToken")
			shown := grpcurl(t, args...)
			for _, want := range []string{"Code: Unauthenticated\n", `"@type": "type.googleapis.com/google.rpc.ErrorInfo"`, `"reason": "` + test.reason + `"`, `"domain": "ephemeraltoken.forsta.io"`} {
				if !strings.Contains(shown.stderr, want) {
					t.Errorf("%s: without %s:\n%s", test.name, want, shown.stderr)
				}
			}
			decoded := grpcurl(t, append([]string{"-format-error"}, args...)...)
			var status errorStatus
			if err := json.Unmarshal([]byte(decoded.stderr), &status); err != nil || decoded.code != 64+16 {
				t.Fatalf("%s: %v, exit status %d: %s", test.name, err, decoded.code, decoded.stderr)
			}
			var overREST errorStatus
			headers := strings.SplitN(test.authorization, ": ", 2)
			if len(headers) == 1 {
				headers = nil
			}
			answer := rest(t, http.MethodPost, d.http, headers...)
			if err := json.Unmarshal([]byte(answer.body), &overREST); err != nil || answer.status != http.StatusUnauthorized {
				t.Fatalf("%s over REST: %v, %d %s", test.name, err, answer.status, answer.body)
			}
			if status.reason() != test.reason || overREST.reason() != test.reason || status.Message != overREST.Message || status.Message == "" {
				t.Errorf("%s: %+v over gRPC, %+v over REST", test.name, status, overREST)
			}
			if got := answer.header.Get("WWW-Authenticate"); got != "JWT" {
				t.Errorf("%s: WWW-Authenticate: %q", test.name, got)
			}
		}
	})
}

// errorStatus is google.rpc.Status as JSON.
type errorStatus struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Details []struct {
		Type   string `json:"@type"`
		Reason string `json:"reason"`
		Domain string `json:"domain"`
	} `json:"details"`
}

// reason is that of the ErrorInfo of our domain, "" if there is none.
func (s errorStatus) reason() string {
	for _, d := range s.Details {
		if d.Type == "type.googleapis.com/google.rpc.ErrorInfo" && d.Domain == "ephemeraltoken.forsta.io" {
			return d.Reason
		}
	}
	return ""
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
				{"curl -i -X POST", `(?s)^HTTP/1.1 201 .*\{"token":"[^"]+"\}$`},
				{"curl -i -X DELETE", `^HTTP/1.1 204 `},
				{"go tool -modfile=tools/go.mod grpcurl", `^\{\n  "token": "[^"]+"\n\}\n$`},
				{"go tool -modfile=tools/go.mod grpcurl", `^\{\}\n$`},
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

// paste runs a line as a shell does in which export has been pasted before.
func paste(t *testing.T, export, line string) result {
	t.Helper()
	switch word, _, _ := strings.Cut(line, " "); word {
	case "curl":
		if _, err := exec.LookPath("curl"); err != nil {
			missingTool(t, err)
		}
	case "go":
		if _, err := grpcurlBinary(); err != nil {
			missingTool(t, errors.New("grpcurl cannot be built here"))
		}
	}
	return command(t, "sh", "-c", export+"\n"+line)
}
