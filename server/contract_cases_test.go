package server_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// contractRun compares REST responses with the OpenAPI document, and collects the parts of the
// document that were seen.
type contractRun struct {
	seen map[string]bool // as CheckDocumented returns them
}

// TestContract causes every documented REST response and compares it with the document. It fails
// for a response that is not documented, and for a documented one that does not occur.
func TestContract(t *testing.T) {
	t.Parallel()
	r := &contractRun{seen: map[string]bool{}}
	for _, tc := range []struct {
		name string
		run  func(*testing.T, *contractRun)
	}{
		{"successes", answerSuccesses},
		{"other origins", answerOrigins},
		{"malformed requests", answerUnreadable},
		{"errors of net/http", answerRefusedByHTTP},
		{"credentials", answerCredentials},
		{"callers", answerCallers},
		{"issuer that is down", answerIssuerDown},
		{"statuses of Atlas", answerAtlasStatuses},
		{"unreachable Atlas", answerNoAtlas},
		{"service's own credential", answerServiceCredential},
		{"deadlines", answerDeadlines},
		{"cancelled calls", answerCancelled},
		{"too many calls", answerOverloaded},
		{"open breaker", answerBreaker},
		{"end of a drain", answerShuttingDown},
		{"panic", answerPanic},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, r) })
	}
	if t.Failed() {
		return // the rest would follow from that
	}
	for _, part := range testutil.DocumentedParts(testutil.OpenAPI(t)) {
		if !r.seen[part] {
			t.Errorf("this response never occurred: %s", part)
		}
	}
	for reason := range apierror.Reasons() {
		name := (&apierror.Error{Reason: reason}).ReasonName()
		if !slices.ContainsFunc(testutil.DocumentedParts(testutil.OpenAPI(t)), func(part string) bool { return strings.HasSuffix(part, " "+name) }) {
			t.Errorf("no response with the reason %s is documented", name)
		}
	}
}

// saw checks a response; the reason is "" for a success and for an error of net/http.
func (r *contractRun) saw(t *testing.T, a testutil.Answer, status int, reason string) {
	t.Helper()
	if a.Status != status || reason != "" && !strings.Contains(a.Body, `"`+reason+`"`) {
		t.Errorf("%s %s: %s, want %d %s", a.Verb, a.Path, a, status, reason)
	}
	for _, part := range a.CheckDocumented(t) {
		r.seen[part] = true
	}
}

// call makes one call.
func (r *contractRun) call(t *testing.T, c testutil.RESTCaller, op testutil.Operation, status int, reason string, headers ...string) {
	t.Helper()
	r.saw(t, c.Call(t.Context(), op, headers...).Answer(), status, reason)
}

// both makes a call of each operation.
func (r *contractRun) both(t *testing.T, c testutil.RESTCaller, status int, reason string, headers ...string) {
	t.Helper()
	r.call(t, c, testutil.Create, status, reason, headers...)
	r.call(t, c, testutil.Delete, status, reason, headers...)
}

func answerSuccesses(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext, testutil.WithTTL(time.Minute))
	c, jwt := s.RESTCaller(t), testutil.Credential(s.Atlas)
	for range 2 {
		r.call(t, c, testutil.Create, 201, "", jwt...) // the second is cached
	}
	r.call(t, c, testutil.Create, 201, "", append(jwt, "cache-control", "no-cache")...)
	r.call(t, c, testutil.Delete, 204, "", jwt...)
}

// answerOrigins checks a response of each kind. TestCORS checks the others.
func answerOrigins(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext, withOrigin)
	c := s.RESTCaller(t)
	r.call(t, c, testutil.Create, 201, "", append(testutil.Credential(s.Atlas), "Origin", pageOrigin)...)
	r.call(t, c, testutil.Delete, 204, "", append(testutil.Credential(s.Atlas), "Origin", pageOrigin)...)
	r.both(t, c, 401, "CREDENTIAL_MISSING", "Origin", pageOrigin)
	for _, answer := range []string{"POST 201", "DELETE 204", "POST 401", "DELETE 401"} {
		for _, header := range testutil.OfCORS {
			if !r.seen[answer+" header "+header] {
				t.Errorf("%s has no header %s", answer, header)
			}
		}
	}
}

func answerUnreadable(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext)
	c := s.RESTCaller(t)
	for _, tc := range []struct {
		status         int
		reason         string
		verb, path     string
		body           string
		header, values string
	}{
		{400, "REQUEST_MALFORMED", "", testutil.ServicePath, "x", "Content-Type", "application/json"},
		{413, "REQUEST_TOO_LARGE", "", testutil.ServicePath, strings.Repeat(" ", 64<<10+1), "Content-Type", "application/json"},
		{415, "UNSUPPORTED_MEDIA_TYPE", "", testutil.ServicePath, "x", "Content-Type", "text/plain"},
		{431, "HEADERS_TOO_LARGE", "", testutil.ServicePath, "", "X-Large", strings.Repeat("x", 16<<10)},
		{404, "ROUTE_NOT_FOUND", "", testutil.ServicePath + "/", "", "X", "y"},
		{405, "METHOD_NOT_ALLOWED", http.MethodGet, testutil.ServicePath, "", "X", "y"},
	} {
		for _, verb := range []testutil.Operation{testutil.Create, testutil.Delete} {
			if tc.verb != "" {
				verb = testutil.Operation(tc.verb)
			}
			got := c.Do(testutil.Context(t), string(verb), tc.path, strings.NewReader(tc.body), append(testutil.Credential(s.Atlas), tc.header, tc.values)...)
			r.saw(t, got.Answer(), tc.status, tc.reason)
		}
	}
}

// answerRefusedByHTTP checks net/http's own errors, in plain text. The document mentions them
// outside the operations, so that clients get one type of error.
func answerRefusedByHTTP(t *testing.T, _ *contractRun) {
	s := testutil.Start(t, testutil.ServerTLS)
	check := func(op testutil.Operation, resp *http.Response, status int) {
		t.Helper()
		if a := answerOf(t, op, resp); a.Status != status || a.Header.Get("Content-Type") == "application/json" {
			t.Errorf("%s, want %d in plain text", a, status)
		}
	}
	for _, tc := range []struct {
		status         int
		version, lines string
	}{
		{400, "1.1", ""}, // no Host
		{417, "1.1", "Host: x\r\nExpect: more\r\n"},
		{431, "1.1", "Host: x\r\nX-Large: " + strings.Repeat("x", 256<<10) + "\r\n"},
		{501, "1.1", "Host: x\r\nTransfer-Encoding: gzip\r\n"},
		{505, "3.0", "Host: x\r\n"},
	} {
		for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
			check(op, testutil.RawHTTP(t, s, fmt.Sprintf("%s %s HTTP/%s\r\n%s\r\n", op, testutil.ServicePath, tc.version, tc.lines)), tc.status)
		}
	}
}

// answerOf reads a whole response.
func answerOf(t *testing.T, op testutil.Operation, resp *http.Response) testutil.Answer {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return testutil.Answer{Verb: string(op), Path: testutil.ServicePath, Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
}

func answerCredentials(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext)
	c := s.RESTCaller(t)
	r.both(t, c, 401, "CREDENTIAL_MISSING")
	r.both(t, c, 401, "CREDENTIAL_MALFORMED", "authorization", "Basic eDp5")
	r.both(t, c, 400, "CREDENTIAL_AMBIGUOUS", append(testutil.Credential(s.Atlas), testutil.Credential(s.Atlas)...)...)
}

func answerCallers(t *testing.T, r *contractRun) {
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"ec": key})
	s := testutil.StartIdentityWith(t, auth.Config{RootCAs: issuer.RootCAs, Policy: testutil.MustPolicy(t, policyOf(issuer))}, atlas.Clock{}, emulator.Config{})
	testutil.Eventually(t, func() bool { return s.Auth.Issuers()[issuer.URL].OK }, "the issuer's keys are not fetched")
	c := callerCredentials{issuer, key, s.Certs.CA}
	r.both(t, restAs(t, s.Service, nil), 401, "CALLER_REJECTED", "authorization", c.token(t, map[string]any{"aud": "other"}))
	r.both(t, restAs(t, s.Service, nil), 401, "CALLER_UNKNOWN", testutil.Credential(s.Atlas)...)
	r.both(t, restAs(t, s.Service, c.withURI(t, "/unlisted")), 403, "CALLER_NOT_PERMITTED")
	r.both(t, restAs(t, s.Service, c.withURI(t, "/web")), 403, "CALLER_NOT_PERMITTED", "Sec-Fetch-Site", "cross-site") // a page of another site
}

func policyOf(issuer *authtest.Issuer) string {
	return fmt.Sprintf(`
profiles:
  acme: {userauthtoken_file: /run/secrets/acme}
callers:
  - {spiffe_id: "spiffe://prod.internal/web", allow: [CreateToken, DeleteToken], profile: acme}
  - {oidc: {issuer: %q, audience: tokend, subject: "ci-*"}, allow: [CreateToken, DeleteToken], profile: acme}
`, issuer.URL)
}

// restAs returns a REST client with this certificate, or without one if it is nil.
func restAs(t *testing.T, s *testutil.Service, cert *tls.Certificate) testutil.RESTCaller {
	t.Helper()
	return s.RESTCallerWith(t, s.ClientTLSWith(cert))
}

func answerIssuerDown(t *testing.T, r *contractRun) {
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Answer(authtest.PathKeys, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	s := testutil.StartIdentityWith(t, auth.Config{RootCAs: issuer.RootCAs, Policy: testutil.MustPolicy(t, policyOf(issuer))}, atlas.Clock{}, emulator.Config{})
	token := "Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", key, issuer.Claims(nil))
	r.both(t, restAs(t, s.Service, nil), 503, "CALLER_CHECK_UNAVAILABLE", "authorization", token)
}

func answerAtlasStatuses(t *testing.T, r *contractRun) {
	for _, tc := range []struct {
		atlas          int
		create, remove int
		ofCreate       string
		ofRemove       string
	}{
		{302, 500, 500, "ATLAS_REDIRECT", "ATLAS_REDIRECT"},
		{401, 401, 401, "CREDENTIAL_REJECTED", "CREDENTIAL_REJECTED"},
		{402, 500, 500, "ATLAS_INVALID_RESPONSE", "ATLAS_INVALID_RESPONSE"},
		{403, 403, 403, "ATLAS_FORBIDDEN", "ATLAS_FORBIDDEN"},
		{404, 501, 501, "ATLAS_ROUTE", "ATLAS_ROUTE"},
		{409, 409, 409, "ATLAS_CONFLICT", "ATLAS_CONFLICT"},
		{429, 429, 429, "ATLAS_RATE_LIMITED", "ATLAS_RATE_LIMITED"},
		{500, 503, 500, "ATLAS_UNAVAILABLE", "DELETE_OUTCOME_UNKNOWN"},
	} {
		s := testutil.Start(t, testutil.Plaintext)
		s.Atlas.Inject(emulator.Fault{Status: tc.atlas})
		r.call(t, s.RESTCaller(t), testutil.Create, tc.create, tc.ofCreate, testutil.Credential(s.Atlas)...)
		r.call(t, s.RESTCaller(t), testutil.Delete, tc.remove, tc.ofRemove, testutil.Credential(s.Atlas)...)
	}
	// A status that leaves the outcome open.
	switching := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	t.Cleanup(switching.Close)
	s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) {
		a.BaseURL, a.RootCAs = switching.URL, x509.NewCertPool()
		a.RootCAs.AddCert(switching.Certificate())
	})
	r.call(t, s.RESTCaller(t), testutil.Delete, 500, "ATLAS_INVALID_RESPONSE", testutil.Credential(s.Atlas)...)
}

func answerNoAtlas(t *testing.T, r *contractRun) {
	t.Run("refused", func(t *testing.T) {
		s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) {
			a.BaseURL = "https://127.0.0.1:1/v1" // a port that stays closed
		})
		r.both(t, s.RESTCaller(t), 503, "ATLAS_UNREACHABLE", testutil.Credential(s.Atlas)...)
	})
	t.Run("certificate", func(t *testing.T) {
		s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) { a.RootCAs = x509.NewCertPool() })
		r.both(t, s.RESTCaller(t), 503, "ATLAS_TLS", testutil.Credential(s.Atlas)...)
	})
	t.Run("slow", func(t *testing.T) {
		s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) { a.Timeout = 100 * time.Millisecond })
		s.Atlas.Inject(emulator.Fault{Delay: time.Hour})
		r.call(t, s.RESTCaller(t), testutil.Create, 503, "ATLAS_TIMEOUT", testutil.Credential(s.Atlas)...)
	})
	t.Run("slow handshake", func(t *testing.T) {
		silent, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = silent.Close() })
		s := testutil.Start(t, testutil.Plaintext, func(_ *server.Config, a *atlas.Config) {
			a.BaseURL, a.Timeout = "https://"+silent.Addr().String()+"/v1", 100*time.Millisecond
		})
		r.both(t, s.RESTCaller(t), 503, "ATLAS_TIMEOUT", testutil.Credential(s.Atlas)...)
	})
}

func answerServiceCredential(t *testing.T, r *contractRun) {
	t.Run("refused", func(t *testing.T) {
		s := testutil.StartIdentity(t, "")
		s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: 400})
		r.both(t, s.RESTCaller(t), 503, "SERVICE_CREDENTIAL_REJECTED")
	})
	t.Run("login answered with junk", func(t *testing.T) {
		s := testutil.StartIdentity(t, "")
		s.Atlas.Inject(emulator.Fault{On: emulator.Login, Body: "<html>"})
		r.both(t, s.RESTCaller(t), 500, "ATLAS_INVALID_RESPONSE")
	})
}

func answerDeadlines(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext)
	c := s.RESTCaller(t)
	r.both(t, c, 504, "DEADLINE_EXCEEDED", append(testutil.Credential(s.Atlas), "Grpc-Timeout", "1m")...)
	s.Atlas.Inject(emulator.Fault{Delay: time.Hour, AfterEffect: true})
	r.untilSent(t, "DELETE 504 application/json DEADLINE_EXCEEDED-outcome-unknown", func(limit time.Duration) {
		timeout := fmt.Sprintf("%dm", limit.Milliseconds())
		r.both(t, c, 504, "DEADLINE_EXCEEDED", append(testutil.Credential(s.Atlas), "Grpc-Timeout", timeout)...)
	})
}

// untilSent makes calls with growing limits until one has been sent before its limit.
func (r *contractRun) untilSent(t *testing.T, part string, call func(limit time.Duration)) {
	t.Helper()
	for limit := 100 * time.Millisecond; !r.seen[part] && !t.Failed() && limit < 10*time.Second; limit *= 4 {
		call(limit)
	}
}

func answerCancelled(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext)
	for op, on := range map[testutil.Operation]emulator.Operation{testutil.Create: emulator.Create, testutil.Delete: emulator.Delete} {
		r.saw(t, leave(t, s, s.Atlas.Hold(on), op, testutil.Credential(s.Atlas)[1]), 499, "CANCELLED")
	}
	identity := testutil.StartIdentity(t, "")
	r.saw(t, leave(t, identity.Service, identity.Atlas.Hold(emulator.Login), testutil.Delete, ""), 499, "CANCELLED") // the delete was not sent
}

// leave makes a call and half-closes the connection once Atlas holds the call, so that the response
// to a cancelled call can be read.
func leave(t *testing.T, s *testutil.Service, gate *emulator.Gate, op testutil.Operation, authorization string) testutil.Answer {
	t.Helper()
	defer gate.Release()
	raw, err := net.Dial("tcp", s.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	var conn interface {
		io.ReadWriter
		CloseWrite() error
	} = raw.(*net.TCPConn)
	if s.Mode != testutil.Plaintext {
		cfg := s.Certs.ClientConfig(s.Mode)
		cfg.ServerName = "localhost"
		conn = tls.Client(raw, cfg)
	}
	request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n", op, testutil.ServicePath)
	if authorization != "" {
		request += "Authorization: " + authorization + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := gate.Wait(testutil.Context(t), 1); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return answerOf(t, op, resp)
}

func answerOverloaded(t *testing.T, r *contractRun) {
	s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.MaxCalls = 1 })
	gate := s.Atlas.Hold(emulator.Create)
	defer gate.Release()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := s.RESTCaller(t)
	first := testutil.Async(ctx, c, testutil.Create, testutil.Credential(s.Atlas)...)
	if err := gate.Wait(testutil.Context(t), 1); err != nil {
		t.Fatal(err)
	}
	r.both(t, c, 429, "OVERLOADED", testutil.Credential(s.Atlas)...)
	gate.Release()
	testutil.WantCreated.Check(t, <-first)
}

// answerBreaker uses the circuit breaker's error. Row 65 of the fault table tests the breaker.
func answerBreaker(t *testing.T, r *contractRun) {
	s, d := testutil.StartDoor(t)
	d.Expect(&atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindUnavailable, RetryAfter: 300 * time.Millisecond})
	r.call(t, s.RESTCaller(t), testutil.Delete, 503, "ATLAS_UNAVAILABLE", testutil.Credential(s.Atlas)...)
}

// answerShuttingDown uses the reason alone. TestDrainTimeout tests the drain.
func answerShuttingDown(t *testing.T, r *contractRun) {
	s, d := testutil.StartDoor(t)
	for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
		d.Expect(&apierror.Error{Reason: apierror.ShuttingDown})
		r.call(t, s.RESTCaller(t), op, 503, "SHUTTING_DOWN", testutil.Credential(s.Atlas)...)
	}
}

func answerPanic(t *testing.T, r *contractRun) {
	s, d := testutil.StartDoor(t)
	for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
		d.Expect(testutil.ErrPanic)
		r.call(t, s.RESTCaller(t), op, 500, "INTERNAL", testutil.Credential(s.Atlas)...)
	}
}
