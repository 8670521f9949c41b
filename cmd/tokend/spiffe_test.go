//go:build unix

package main_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe/spiffetest"
)

// spiffePolicy has a profile for the caller web.
func spiffePolicy(t *testing.T, em *emulator.Emulator) string {
	t.Helper()
	secret := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken()))
	return writeFile(t, "policy.yaml", fmt.Appendf(nil, "profiles:\n  acme: {userauthtoken_file: %s}\ncallers:\n  - {spiffe_id: \"spiffe://prod.internal/web\", allow: [CreateToken], profile: acme}\n", secret))
}

// svidCall makes a REST call with an SVID, on a connection of its own, and returns the certificate
// that the service has shown.
func svidCall(t *testing.T, s *service, own *spiffetest.SVID, trusted *spiffetest.TrustDomain) (got answer, shown string, err error) {
	t.Helper()
	client := newHTTPClient(t, &tls.Config{
		RootCAs: trusted.Pool(), Certificates: []tls.Certificate{own.TLS()},
		VerifyConnection: func(state tls.ConnectionState) error {
			shown = state.PeerCertificates[0].SerialNumber.String()
			return nil
		},
	})
	defer client.CloseIdleConnections()
	got, err = do(client, newRequest(t, http.MethodPost, "https://"+s.http+restPath, ""))
	return got, shown, err
}

func svidConfig(own *spiffetest.SVID, trusted *spiffetest.TrustDomain) *tls.Config {
	return &tls.Config{RootCAs: trusted.Pool(), Certificates: []tls.Certificate{own.TLS()}}
}

// TestSPIFFE checks that the service needs no files: the agent gives it its certificate and the
// authorities of its callers. What the agent replaces is used at once.
func TestSPIFFE(t *testing.T) {
	t.Parallel()
	domain, other, em := spiffetest.NewTrustDomain(t, "prod.internal"), spiffetest.NewTrustDomain(t, "partner.example"), startAtlas(t)
	first, web := domain.Issue("/tokend"), domain.Issue("/web")
	agent := spiffetest.StartAgent(t, first)
	s := invocation{
		args: []string{"--spiffe-socket=" + agent.Addr(), "--policy-file=" + spiffePolicy(t, em), "--log-level=debug"},
		env:  []string{"SPIFFE_ENDPOINT_SOCKET=unix:///does/not/exist.sock", "HTTPS_PROXY=http://127.0.0.1:1", "GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99"},
	}.startServe(t, em)
	if !regexp.MustCompile(`"msg":"serving".*"tls":"mutual"`).MatchString(s.stderr.String()) {
		t.Error("the log does not say that TLS is mutual")
	}

	wants := func(own *spiffetest.SVID, trusted *spiffetest.TrustDomain, caller *spiffetest.SVID) bool {
		t.Helper()
		got, shown, err := svidCall(t, s, caller, trusted)
		return err == nil && got.token() == em.Org(0).EphemeralToken() && shown == own.Cert.SerialNumber.String()
	}
	if !wants(first, domain, web) {
		t.Error("web gets no token")
	}
	if got, err := rpcToken(t, s.grpc, svidConfig(web, domain)); err != nil || got != em.Org(0).EphemeralToken() {
		t.Errorf("over gRPC web gets another token, or none: %v", err)
	}
	for name, stranger := range map[string]*spiffetest.SVID{"another trust domain": other.Issue("/web"), "the same name": spiffetest.NewTrustDomain(t, "prod.internal").Issue("/web")} {
		if got, _, err := svidCall(t, s, stranger, domain); err == nil {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if _, err := rpcToken(t, s.grpc, svidConfig(stranger, domain)); err == nil {
			t.Errorf("%s is let in over gRPC", name)
		}
	}

	next := domain.Rotated()
	second := next.Issue("/tokend")
	agent.Give(second)
	poll(t, "the second SVID in use, and callers of both authorities", func() bool {
		return wants(second, next, next.Issue("/web")) && wants(second, next, web)
	})
	agent.Stop()
	poll(t, "/readyz to tell", func() bool { return strings.Contains(s.readyz(t), ": the SPIFFE agent cannot be reached: ") })
	if !wants(second, next, web) {
		t.Error("without the agent web gets no token")
	}
}

// The variable that other programs go by is not enough for tokend: what it serves with is said by
// its own settings.
func TestSPIFFENotAsked(t *testing.T) {
	t.Parallel()
	agent := spiffetest.StartAgent(t, spiffetest.NewTrustDomain(t, "prod.internal").Issue("/tokend"))
	s := invocation{env: []string{"SPIFFE_ENDPOINT_SOCKET=" + agent.Addr()}}.startServe(t, startAtlas(t))
	if !strings.Contains(s.stderr.String(), `"tls":"off"`) {
		t.Error("TLS is not off")
	}
}

// TestSPIFFEStopWhileWaiting checks that tokend can be stopped while it waits for the agent.
func TestSPIFFEStopWhileWaiting(t *testing.T) {
	t.Parallel()
	args := slices.Concat([]string{"serve", "--spiffe-socket=" + spiffetest.NewAgent(t).Addr()}, freePorts, atlasFlags(t, startAtlas(t)))
	p := invocation{args: args}.start(t)
	p.awaitOutput(t, p.stderr, regexp.MustCompile(`"level":"WARN","msg":"there is no X.509-SVID yet, trying again",.*connect: no such file`))
	p.signal(t, syscall.SIGTERM)
	if code := p.awaitEnd(t); code != 0 || strings.Contains(p.stderr.String(), `"serving"`) {
		t.Errorf("exit status %d", code)
	}
}

// config and doctor ask the agent as serve would.
func TestSPIFFEExamined(t *testing.T) {
	t.Parallel()
	domain, em := spiffetest.NewTrustDomain(t, "prod.internal"), startAtlas(t)
	own := domain.Issue("/tokend")
	agent := spiffetest.StartAgent(t, own)
	settings := append([]string{"--spiffe-socket=" + agent.Addr(), "--policy-file=" + spiffePolicy(t, em), "--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--admin-addr="}, atlasFlags(t, em)...)
	until := own.Cert.NotAfter.UTC().Format(time.RFC3339)

	got := tokend(t, append([]string{"config"}, settings...)...)
	for _, want := range []string{
		"\n--spiffe-socket=" + agent.Addr() + " ", "\nClient certificates are required.\n",
	} {
		if got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("exit status %d, config does not say %q:\n%s%s", got.code, want, got.stdout, got.stderr)
		}
	}
	diagnose := func() (ok bool, status, detail, remedy string) {
		t.Helper()
		got := tokend(t, append([]string{"doctor", "--json"}, settings...)...)
		var found diagnosed
		if err := json.Unmarshal([]byte(got.stdout), &found); err != nil {
			t.Fatalf("%v\n%s%s", err, got.stdout, got.stderr)
		}
		for _, f := range found.Checks {
			if f.Check == "spiffe SVID" {
				return found.OK, f.Status, f.Detail, f.Remedy
			}
		}
		t.Fatalf("no check of the agent:\n%s", got.stdout)
		return
	}
	if ok, status, detail, _ := diagnose(); !ok || status != "ok" || detail != "spiffe://prod.internal/tokend, valid until "+until+"; authorities of prod.internal: 1" {
		t.Errorf("all is well, and doctor says %s: %s", status, detail)
	}
	agent.Fail(codes.PermissionDenied, "no identity issued")
	if ok, status, detail, remedy := diagnose(); ok || status != "failed" || !strings.Contains(detail, "no registration entry") || !strings.Contains(remedy, "selectors") {
		t.Errorf("not registered, and doctor says %s: %s, %s", status, detail, remedy)
	}
	if got := tokend(t, append([]string{"config"}, settings...)...); got.code != 1 || !strings.Contains(got.stderr, "spiffe SVID: the SPIFFE agent has no registration entry") {
		t.Errorf("not registered, and config says: exit status %d\n%s", got.code, got.stderr)
	}
	if got := tokend(t, append([]string{"config", "--explain=spiffe://prod.internal/web"}, settings...)...); got.code != 0 || !strings.Contains(got.stdout, "matches rule 1") {
		t.Errorf("--explain needs no agent, and says: exit status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
}
