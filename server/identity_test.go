package server_test

import (
	"strings"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestServiceIdentity checks that a caller without an Atlas secret can create and delete its org's
// token.
func TestServiceIdentity(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	for name, c := range s.Callers(t) {
		t.Run(name, func(t *testing.T) {
			got := c.Call(testutil.Context(t), testutil.Create, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id", "r-"+name)
			testutil.WantCreated.Check(t, got)
			if got.Token != s.Atlas.Org(0).EphemeralToken() {
				t.Error("the token is not the org's")
			}
			testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete))
			testutil.WantAmbiguous.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		})
	}
	if n := s.Atlas.Calls(emulator.Login); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	records := s.Records(t)
	if len(records) != 6 {
		t.Fatalf("%d audit records for 6 calls", len(records))
	}
	first := records[0]
	for field, want := range map[string]any{
		"method": "CreateToken", "profile": "acme", "org": s.Atlas.Org(0).ID, "outcome": "OK",
		"trace_id": "0af7651916cd43dd8448eb211c80319c",
	} {
		if first[field] != want {
			t.Errorf("audit %s is %v, want %v", field, first[field], want)
		}
	}
	if caller, _ := first["caller"].(map[string]any); caller["kind"] != "dns" || caller["name"] != "client.test" {
		t.Errorf("audit caller is %v", first["caller"])
	}
	if records[2]["outcome"] != "CREDENTIAL_AMBIGUOUS" {
		t.Errorf("the outcome of the refused call is %v", records[2]["outcome"])
	}
	for _, secret := range []string{s.Atlas.Org(0).UserAuthToken(), "eyJ"} {
		if strings.Contains(s.Audit.String()+s.Log.String(), secret) {
			t.Error("the audit or the log contains a secret")
		}
	}
}

// TestFault08ServiceCredential checks that a 401 is healed within the call by one login and one
// replay, and that a lasting one is not reported as the caller's fault.
func TestFault08ServiceCredential(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	for name, c := range s.Callers(t) {
		t.Run(name, func(t *testing.T) {
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
			s.Atlas.Org(0).RevokeJWTs()
			logins, creates := s.Atlas.Calls(emulator.Login), s.Atlas.Calls(emulator.Create)
			testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create))
			if n := s.Atlas.Calls(emulator.Login) - logins; n != 1 {
				t.Errorf("%d logins, want 1", n)
			}
			if n := s.Atlas.Calls(emulator.Create) - creates; n != 2 {
				t.Errorf("%d creates, want one and one replay", n)
			}
			s.Atlas.Org(0).RevokeJWTs()
			deletes := s.Atlas.Calls(emulator.Delete)
			testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete))
			if n := s.Atlas.Calls(emulator.Delete) - deletes; n != 2 {
				t.Errorf("%d deletes, want one and one replay", n)
			}
		})
	}
	t.Run("lasting", func(t *testing.T) {
		defer s.Atlas.Inject(emulator.Fault{On: emulator.Create, Status: 401})()
		c := s.RESTCaller(t)
		testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), time.Millisecond, 40*time.Second)
		logins := s.Atlas.Calls(emulator.Login)
		testutil.WantServiceRejected.CheckRetry(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create), time.Millisecond, 40*time.Second)
		if n := s.Atlas.Calls(emulator.Login) - logins; n > 1 { // one, if this took longer than a second
			t.Errorf("%d more logins, want one at most", n)
		}
	})
}

// TestFault30LoginRefused checks that a refused login is not repeated for 30 s, that a service
// without another identity is not ready meanwhile and says why, and that it then logs in by itself.
func TestFault30LoginRefused(t *testing.T) {
	t.Parallel()
	now := testutil.NewClock()
	s := testutil.StartIdentityAt(t, "", now.IdentityClock(), emulator.Config{Now: now.Now})
	accept := s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400, Body: `{"non_field_errors": ["planted"]}`})
	for _, c := range s.Callers(t) {
		for range 5 {
			testutil.WantServiceRejected.CheckRetry(t, c.Call(testutil.Context(t), testutil.Create), 20*time.Second, 40*time.Second)
		}
	}
	if n := s.Atlas.Calls(emulator.Login); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	testutil.Eventually(t, func() bool {
		code, body := s.Get(t, "/readyz")
		return code == 503 && strings.HasPrefix(body, "refused by Atlas\nprofile acme: ") && strings.Contains(body, "refuses")
	}, "/readyz does not say that Atlas refuses the service")
	s.WantHealth(t, healthpb.HealthCheckResponse_NOT_SERVING)

	accept()
	now.Advance(40 * time.Second)
	testutil.Eventually(t, func() bool { code, body := s.Get(t, "/readyz"); return code == 200 && body == "ready\n" }, "/readyz does not become ready again")
	s.WantHealth(t, healthpb.HealthCheckResponse_SERVING)
	if n := s.Atlas.Calls(emulator.Login); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	_, body := s.Get(t, "/readyz")
	if strings.Contains(body+s.Log.String()+s.Audit.String(), "planted") {
		t.Error("the log or /readyz contains Atlas's response")
	}
}

// TestReadyWithAnotherIdentity checks that /readyz reports a refused identity but stays ready while
// callers can use their own JWTs.
func TestReadyWithAnotherIdentity(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, `
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {dns_san: "caller.test", allow: [CreateToken], profile: acme}
  - {atlas_jwt: true, allow: [CreateToken], profile: passthrough}
`)
	defer s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400})()
	if _, err := s.Identity.Credential(testutil.Context(t)); err == nil || !s.Identity.Status().Refused {
		t.Fatalf("the login succeeded: %v", err)
	}
	if s.Auth.Refused() {
		t.Error("callers with an Atlas JWT count as refused")
	}
	if code, body := s.Get(t, "/readyz"); code != 200 || !strings.HasPrefix(body, "ready\nprofile acme: ") {
		t.Errorf("/readyz: %d %q", code, body)
	}
}
