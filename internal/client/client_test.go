package client_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/client"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
)

// run runs a command line as tokend does.
func run(t *testing.T, jwt string, args ...string) (stdout string, exit int, message string) {
	t.Helper()
	var out bytes.Buffer
	root := &cobra.Command{Use: "tokend", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(client.Commands(jwt)...)
	root.SetArgs(args)
	root.SetOut(&out)
	err := root.ExecuteContext(testutil.Context(t))
	var failed *client.Error
	switch {
	case errors.As(err, &failed):
		exit = failed.ExitStatus()
	case err != nil:
		t.Fatal(err)
	}
	if err != nil {
		message = err.Error()
	}
	return out.String(), exit, message
}

func TestCreateAndDelete(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext)
	jwt := s.Atlas.Org(0).JWT()
	addr := "--addr=" + s.GRPCAddr().String()

	token, exit, message := run(t, jwt, "create", "--plaintext", addr)
	if exit != 0 || len(token) < 20 || strings.Count(token, "\n") != 1 {
		t.Fatalf("create: status %d, %s; printed %d bytes", exit, message, len(token))
	}
	file := filepath.Join(t.TempDir(), "jwt")
	if err := os.WriteFile(file, []byte("\xef\xbb\xbf"+s.Atlas.Org(0).JWT()+"\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, exit, message := run(t, "", "create", "--plaintext", addr, "--jwt-file="+file, "--json")
	var created struct{ Token, CacheStatus, RequestID string }
	if err := json.Unmarshal([]byte(out), &created); err != nil || exit != 0 || created.Token != strings.TrimSpace(token) || created.RequestID == "" || created.CacheStatus != "tokend; fwd=miss" {
		t.Errorf("create as JSON: status %d, %s, %v; same token: %v", exit, message, err, created.Token == strings.TrimSpace(token))
	}
	if out, exit, message := run(t, jwt, "delete", "--plaintext", addr); exit != 0 || out != "deleted\n" {
		t.Errorf("delete: status %d, %q, %s", exit, out, message)
	}
	if again, _, _ := run(t, jwt, "create", "--plaintext", addr); again == token {
		t.Error("the token is the same after the delete")
	}
}

func TestClientCertificate(t *testing.T) {
	s := testutil.Start(t, testutil.MutualTLS)
	cert := s.Certs.Client
	dir := t.TempDir()
	testcert.WritePEM(t, filepath.Join(dir, "cert.pem"), "CERTIFICATE", cert.Certificate[0])
	testcert.WritePEM(t, filepath.Join(dir, "key.pem"), "PRIVATE KEY", testcert.MarshalKey(t, cert.PrivateKey))
	jwt := s.Atlas.Org(0).JWT()
	ca := []string{"create", "--addr=" + s.GRPCAddr().String(), "--ca-file=" + s.Certs.CAFile}

	own := []string{"--cert-file=" + filepath.Join(dir, "cert.pem"), "--key-file=" + filepath.Join(dir, "key.pem")}
	if _, exit, message := run(t, jwt, append(ca, own...)...); exit != 0 {
		t.Errorf("status %d: %s", exit, message)
	}
	for name, tt := range map[string]struct {
		args []string
		want string // in the advice
	}{
		"no certificate":    {ca, "--cert-file"},
		"unknown authority": {ca[:2], "--ca-file"},
		"plaintext":         {append(ca[:2:2], "--plaintext"), "leave out --plaintext"},
	} {
		t.Run(name, func(t *testing.T) {
			_, exit, message := run(t, jwt, tt.args...)
			if exit != 69 || !strings.Contains(message, tt.want) {
				t.Errorf("status %d, want 69 and %q: %s", exit, tt.want, message)
			}
		})
	}
}

// TestExitStatus checks the kinds of failures, and that none prints the JWT.
func TestExitStatus(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext)
	jwt := s.Atlas.Org(0).JWT()
	addr := "--addr=" + s.GRPCAddr().String()
	for _, tt := range []struct {
		name   string
		jwt    string
		fault  emulator.Fault
		args   []string
		exit   int
		reason string
		want   string // in the message
	}{
		{"no credential", "", emulator.Fault{}, []string{"create", addr}, 77, "CREDENTIAL_MISSING", "authorization"},
		{"malformed", "x", emulator.Fault{}, []string{"create", addr}, 77, "CREDENTIAL_MALFORMED", ""},
		{"with a scheme", "JWT " + jwt, emulator.Fault{}, []string{"create", addr}, 77, "", "without a scheme"},
		{"rejected", jwt, emulator.Fault{Status: http.StatusUnauthorized}, []string{"create", addr}, 77, "CREDENTIAL_REJECTED", "log in"},
		{"forbidden", jwt, emulator.Fault{Status: http.StatusForbidden}, []string{"delete", addr}, 77, "ATLAS_FORBIDDEN", "request id"},
		{"wrong response", jwt, emulator.Fault{Status: http.StatusMovedPermanently}, []string{"create", addr}, 70, "ATLAS_REDIRECT", ""},
		{"unknown outcome", jwt, emulator.Fault{Status: http.StatusBadGateway}, []string{"delete", addr}, 76, "DELETE_OUTCOME_UNKNOWN", "do not repeat it blindly"},
		{"throttled", jwt, emulator.Fault{Status: http.StatusTooManyRequests}, []string{"delete", addr}, 75, "ATLAS_RATE_LIMITED", "try again in"},
		{"nothing listens", jwt, emulator.Fault{}, []string{"create", "--addr=127.0.0.1:1"}, 69, "", "127.0.0.1:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer s.Atlas.Inject(tt.fault)()
			out, exit, message := run(t, tt.jwt, append(tt.args, "--plaintext", "--json")...)
			var got struct {
				Error struct{ Code, Reason, Message string }
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if exit != tt.exit || got.Error.Reason != tt.reason || got.Error.Code == "" || !strings.Contains(message, tt.want) {
				t.Errorf("status %d, want %d; %+v; %s", exit, tt.exit, got.Error, message)
			}
			if len(tt.jwt) > 1 && strings.Contains(out+message, tt.jwt) {
				t.Error("the JWT is printed")
			}
		})
	}
}

// TestUsage checks the mistakes that are found before a call.
func TestUsage(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		jwt  string
		args []string
		want string
	}{
		{"", []string{"--plaintext", "--ca-file=x"}, "--plaintext"},
		{"", []string{"--ca-file=" + empty + "x"}, "--ca-file: open"},
		{"", []string{"--ca-file=" + empty}, "no certificate"},
		{"", []string{"--cert-file=x"}, "give both"},
		{"", []string{"--cert-file=" + empty, "--key-file=" + empty}, "--cert-file and --key-file"},
		{"a.b.c", []string{"--jwt-file=" + empty}, "$ATLAS_JWT is set as well"},
		{"", []string{"--jwt-file=" + empty}, "is empty"},
		{"", []string{"--jwt-file=" + empty + "x"}, "--jwt-file: open"},
		{"", []string{"--timeout=0"}, "--timeout"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			_, exit, message := run(t, tt.jwt, append([]string{"create"}, tt.args...)...)
			if exit != 64 || !strings.Contains(message, tt.want) {
				t.Errorf("status %d, want 64 and %q: %s", exit, tt.want, message)
			}
		})
	}
}
