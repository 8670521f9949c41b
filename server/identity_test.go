package server_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// identityService is a service that holds the Atlas identity of the emulator's first org, for callers with a client
// certificate, or for those that the policy names.
type identityService struct {
	*service
	audit  *lockedBuffer
	auth   *auth.Authenticator
	source *atlas.TokenSource
}

func startIdentity(t *testing.T, policy string) *identityService {
	t.Helper()
	return startIdentityAt(t, policy, atlas.Clock{}, emulator.Config{})
}

// startIdentityAt has the service go by a clock of its own.
func startIdentityAt(t *testing.T, policy string, clock atlas.Clock, config emulator.Config) *identityService {
	t.Helper()
	cfg := auth.Config{DefaultProfile: "acme"}
	if policy != "" {
		cfg = auth.Config{Policy: mustPolicy(t, policy)}
	}
	return startIdentityWith(t, cfg, clock, config)
}

func mustPolicy(t *testing.T, text string) *auth.Policy {
	t.Helper()
	policy, err := auth.ParsePolicy("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

func startIdentityWith(t *testing.T, cfg auth.Config, clock atlas.Clock, config emulator.Config) *identityService {
	t.Helper()
	em, err := emulator.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	// Few connections: a thousand callers on a busy machine would spend their time in handshakes otherwise.
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool(), MaxConns: 8, Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	resilient := newResilient(t, client)
	s := &identityService{audit: &lockedBuffer{}}
	s.source = atlas.NewTokenSource(atlas.TokenSourceConfig{
		Client: resilient, Profile: "acme",
		Secret: func() (atlas.UserAuthToken, error) { return atlas.UserAuthToken(em.Org(0).UserAuthToken()), nil },
		Clock:  clock,
	})
	t.Cleanup(s.source.Close)
	cfg.Sources = auth.Sources{"acme": s.source}
	authenticator, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(authenticator.Close)
	s.auth = authenticator
	s.service = startServiceWith(t, mutualTLS, em, func(c *server.Config, _ *atlas.Config) {
		c.CallCeiling = time.Minute
		c.Atlas, c.Auth = resilient, authenticator
		c.Audit = slog.New(slog.NewJSONHandler(s.audit, nil))
	})
	return s
}

// records are the audit's records, oldest first.
func (s *identityService) records(t *testing.T) []map[string]any {
	t.Helper()
	var all []map[string]any
	for line := range strings.Lines(s.audit.String()) {
		var record map[string]any
		if err := json.Unmarshal([]byte(line), &record); err != nil {
			t.Fatal(err)
		}
		all = append(all, record)
	}
	return all
}

var wantServiceRejected = want{code: codes.Unavailable, http: 503, reason: "SERVICE_CREDENTIAL_REJECTED"}

// checkRetry is check, for an answer whose delay depends on the clock.
func (w want) checkRetry(t *testing.T, got outcome, least, most time.Duration) {
	t.Helper()
	if got.Retry < least || got.Retry > most {
		t.Errorf("RetryInfo says %v, want %v to %v", got.Retry, least, most)
	}
	w.retry = got.Retry
	w.check(t, got)
}

// TestServiceIdentity: a caller without any Atlas secret gets its org's token, and deletes it.
func TestServiceIdentity(t *testing.T) {
	s := startIdentity(t, "")
	for name, c := range s.callers(t) {
		t.Run(name, func(t *testing.T) {
			got := c.call(testContext(t), create, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id", "r-"+name)
			wantCreated.check(t, got)
			if got.Token != s.atlas.Org(0).EphemeralToken() {
				t.Error("the token is not the org's")
			}
			wantDeleted.check(t, c.call(testContext(t), remove))
			wantAmbiguous.check(t, c.call(testContext(t), create, credential(s.atlas)...))
		})
	}
	if n := s.atlas.Calls(emulator.Login); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	records := s.records(t)
	if len(records) != 6 {
		t.Fatalf("%d audit records for 6 calls", len(records))
	}
	first := records[0]
	for field, want := range map[string]any{
		"method": "CreateToken", "profile": "acme", "org": s.atlas.Org(0).ID, "outcome": "OK",
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
		t.Errorf("the refused call is on record as %v", records[2]["outcome"])
	}
	for _, secret := range []string{s.atlas.Org(0).UserAuthToken(), "eyJ"} {
		if strings.Contains(s.audit.String()+s.log.String(), secret) {
			t.Error("the audit or the log has a secret in it")
		}
	}
}

// TestPolicy: each caller may do what the policy says, and nothing else.
func TestPolicy(t *testing.T) {
	s := startIdentity(t, `
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {dns_san: "client.test", allow: [CreateToken], profile: acme}
`)
	for name, c := range s.callers(t) {
		t.Run(name, func(t *testing.T) {
			wantCreated.check(t, c.call(testContext(t), create))
			notPermitted := want{code: codes.PermissionDenied, http: 403, reason: "CALLER_NOT_PERMITTED"}
			notPermitted.check(t, c.call(testContext(t), remove))
			// What a header claims is nobody's identity.
			notPermitted.check(t, c.call(testContext(t), remove, "x-spiffe-id", "spiffe://prod.internal/admin", "x-forwarded-client-cert", "By=x;URI=y"))
		})
	}
	if n := s.atlas.Calls(emulator.Delete); n != 0 {
		t.Errorf("Atlas saw %d deletes", n)
	}
}

// TestFault08ServiceCredential: a 401 is healed inside the call; one that cannot be is not the caller's fault.
func TestFault08ServiceCredential(t *testing.T) {
	s := startIdentity(t, "")
	for name, c := range s.callers(t) {
		t.Run(name, func(t *testing.T) {
			wantCreated.check(t, c.call(testContext(t), create))
			s.atlas.Org(0).RevokeJWTs()
			logins, creates := s.atlas.Calls(emulator.Login), s.atlas.Calls(emulator.Create)
			wantCreated.check(t, c.call(testContext(t), create))
			if n := s.atlas.Calls(emulator.Login) - logins; n != 1 {
				t.Errorf("%d logins, want 1", n)
			}
			if n := s.atlas.Calls(emulator.Create) - creates; n != 2 {
				t.Errorf("%d creates, want one and one replay", n)
			}
			s.atlas.Org(0).RevokeJWTs()
			deletes := s.atlas.Calls(emulator.Delete)
			wantDeleted.check(t, c.call(testContext(t), remove))
			if n := s.atlas.Calls(emulator.Delete) - deletes; n != 2 {
				t.Errorf("%d deletes, want one and one replay", n)
			}
		})
	}
	t.Run("for good", func(t *testing.T) {
		defer s.atlas.Inject(emulator.Fault{On: emulator.Create, Status: 401})()
		c := s.restCaller(t)
		wantServiceRejected.checkRetry(t, c.call(testContext(t), create), time.Second, 40*time.Second)
		logins := s.atlas.Calls(emulator.Login)
		wantServiceRejected.checkRetry(t, s.grpcCaller(t).call(testContext(t), create), time.Second, 40*time.Second)
		if n := s.atlas.Calls(emulator.Login) - logins; n != 0 {
			t.Errorf("%d more logins, want 0", n)
		}
	})
}

// TestFault30LoginRefused: no login for the next 30 s. A service that has no other identity is not ready meanwhile, says why, and
// logs in again without being asked.
func TestFault30LoginRefused(t *testing.T) {
	t.Parallel()
	now := newClock()
	s := startIdentityAt(t, "", now.serviceClock(), emulator.Config{Now: now.atlasClock(0)})
	accept := s.atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400, Body: `{"non_field_errors": ["planted"]}`})
	for _, c := range s.callers(t) {
		for range 5 {
			wantServiceRejected.checkRetry(t, c.call(testContext(t), create), 20*time.Second, 40*time.Second)
		}
	}
	if n := s.atlas.Calls(emulator.Login); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	eventually(t, func() bool {
		code, body := s.get(t, "/readyz")
		return code == 503 && strings.HasPrefix(body, "refused by Atlas\nprofile acme: ") && strings.Contains(body, "refuses")
	}, "/readyz does not say that Atlas refuses the service")
	s.wantHealth(t, healthpb.HealthCheckResponse_NOT_SERVING)

	accept()
	now.advance(40 * time.Second)
	eventually(t, func() bool { code, body := s.get(t, "/readyz"); return code == 200 && body == "ready\n" }, "/readyz does not become ready again")
	s.wantHealth(t, healthpb.HealthCheckResponse_SERVING)
	if n := s.atlas.Calls(emulator.Login); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	_, body := s.get(t, "/readyz")
	if strings.Contains(body+s.log.String()+s.audit.String(), "planted") {
		t.Error("Atlas's answer is told on")
	}
}

// TestReadyWithAnotherWayIn: a refused identity is said in words while there is one that Atlas takes, or callers with JWTs of their
// own.
func TestReadyWithAnotherWayIn(t *testing.T) {
	s := startIdentity(t, `
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {dns_san: "caller.test", allow: [CreateToken], profile: acme}
  - {atlas_jwt: true, allow: [CreateToken], profile: passthrough}
`)
	defer s.atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400})()
	if _, err := s.source.Credential(testContext(t)); err == nil || !s.source.Refused() {
		t.Fatalf("the login went well: %v", err)
	}
	if s.auth.Refused() {
		t.Error("callers with an Atlas JWT are taken for refused")
	}
	if code, body := s.get(t, "/readyz"); code != 200 || !strings.HasPrefix(body, "ready\nprofile acme: ") {
		t.Errorf("/readyz: %d %q", code, body)
	}
}

// wantHealth asks grpc.health.v1 until it says so.
func (s *service) wantHealth(t *testing.T, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	client := healthpb.NewHealthClient(s.grpcConn(t))
	eventually(t, func() bool {
		got, err := client.Check(testContext(t), &healthpb.HealthCheckRequest{Service: ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName})
		return err == nil && got.GetStatus() == want
	}, "health is not "+want.String())
}

// TestFault33ExpiredUnderLoad: callers by the thousand meet a credential that Atlas has dropped; one login serves them all.
func TestFault33ExpiredUnderLoad(t *testing.T) {
	s := startIdentity(t, "")
	callers := s.callers(t)
	for _, c := range callers { // with connections made, it is the calls that meet
		wantCreated.check(t, c.call(testContext(t), create))
	}
	s.atlas.Org(0).RevokeJWTs()
	logins := s.atlas.Calls(emulator.Login)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a busy machine takes its time for a thousand
	defer cancel()
	var wg sync.WaitGroup
	for i := range manyCallers {
		c := callers[[]string{"gRPC", "REST"}[i%2]]
		wg.Go(func() {
			if got := c.call(ctx, create); got.Code != codes.OK {
				t.Errorf("got %v %s", got.Code, got.Message)
			}
		})
	}
	wg.Wait()
	if n := s.atlas.Calls(emulator.Login) - logins; n != 1 {
		t.Errorf("%d logins for %d callers, want 1", n, manyCallers)
	}
}

// TestFault34FirstCallerCancels: the login goes on for the others, over both transports.
func TestFault34FirstCallerCancels(t *testing.T) {
	for _, transport := range []string{"gRPC", "REST"} {
		t.Run(transport, func(t *testing.T) {
			s := startIdentity(t, "")
			c := s.callers(t)[transport]
			gate := s.atlas.Hold(emulator.Login)
			ctx, cancel := context.WithCancel(t.Context())
			first, second := make(chan outcome, 1), make(chan outcome, 1)
			go func() { first <- c.call(ctx, create) }()
			if err := gate.Wait(testContext(t), 1); err != nil {
				t.Fatal(err)
			}
			go func() { second <- c.call(testContext(t), create) }()
			cancel()
			<-first
			gate.Release()
			wantCreated.check(t, <-second)
			if n := s.atlas.Calls(emulator.Login); n != 1 {
				t.Errorf("%d logins, want 1", n)
			}
		})
	}
}

// TestForgedIdentity: a certificate of one's own making names nobody, whatever is written in it.
func TestForgedIdentity(t *testing.T) {
	s := startIdentity(t, "")
	notCalled(t, s.atlas)
	s.checkNoHandshake(t, &s.certs.untrusted)
	for _, c := range s.callersAs(t, &s.certs.untrusted) {
		wantNoHandshake(t, c.call(testContext(t), create))
	}
	if s.audit.String() != "" {
		t.Error("a handshake that failed became a call")
	}
}
