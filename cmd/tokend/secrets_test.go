//go:build unix

package main_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// leakTest is a service whose clients send planted secrets and keep the responses to failed calls.
type leakTest struct {
	*service
	conn    *grpc.ClientConn
	client  *http.Client
	secrets secrets
	told    strings.Builder // answers to failed calls, and the headers of all
}

// TestSecretsNotWritten checks that no credential and no token is in the output of the process at
// debug level, or in the response to a failed call, for all the ways of failing below.
func TestSecretsNotWritten(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"json", "text"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			s := invocation{
				args: []string{"--log-level=debug", "--log-format=" + format},
				env:  []string{"GRPC_GO_LOG_SEVERITY_LEVEL=info", "GRPC_GO_LOG_VERBOSITY_LEVEL=99"},
			}.startServe(t, startAtlas(t))
			conn, err := grpc.NewClient("passthrough:///"+s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			g := &leakTest{service: s, conn: conn, client: newHTTPClient(t, nil)}
			for i, org := range s.atlas.Orgs() {
				g.secrets.plant(fmt.Sprintf("userauthtoken %d", i), org.UserAuthToken())
			}

			g.succeed(t)
			g.failAtAtlas(t)
			g.credentialsInWrongPlaces(t)
			g.abort(t)
			for path, accept := range map[string]string{"/": "text/html", "/readyz": "application/json", "/metrics": "text/plain"} {
				got, err := do(g.client, newRequest(t, http.MethodGet, "http://"+s.admin+path, "", "Accept", accept))
				if err != nil || got.status != http.StatusOK || !strings.HasPrefix(got.header.Get("Content-Type"), accept) {
					t.Errorf("%s: %+v, %v", path, got, err)
				}
				fmt.Fprintln(&g.told, got.header, got.body)
			}

			s.signal(t, syscall.SIGTERM)
			if code := s.awaitEnd(t); code != 0 {
				t.Errorf("exit status %d", code)
			}
			if len(s.atlas.Tokens()) < 3 {
				t.Fatal("Atlas minted too few tokens for this to mean anything")
			}
			for _, token := range s.atlas.Tokens() {
				g.secrets.plant("ephemeral token", token.Value)
			}
			if encoded := fmt.Sprintf("%x", s.atlas.Tokens()[0].Value); len(g.secrets.find(encoded)) == 0 {
				t.Fatal("the search finds nothing")
			}
			written := s.stdout.String() + s.stderr.String()
			for _, expected := range []string{
				"DEBUG", "ATLAS_REDIRECT", "ATLAS_INVALID_RESPONSE", "ATLAS_UNREACHABLE", "DELETE_OUTCOME_UNKNOWN", "CREDENTIAL_REJECTED",
				"CREDENTIAL_MALFORMED", "CREDENTIAL_AMBIGUOUS", "ROUTE_NOT_FOUND", "METHOD_NOT_ALLOWED", "UNSUPPORTED_MEDIA_TYPE", "CANCELLED",
			} {
				if !strings.Contains(written, expected) {
					t.Errorf("the log has no %s, so too little was tried", expected)
				}
			}
			if found := g.secrets.find(written); len(found) > 0 {
				t.Errorf("written by the process: %q", found)
			}
			if found := g.secrets.find(g.told.String()); len(found) > 0 {
				t.Errorf("told to callers: %q in\n%s", found, g.told.String())
			}
		})
	}
}

// newJWT is a fresh one, planted.
func (g *leakTest) newJWT(spec emulator.JWT) string {
	jwt := g.atlas.Org(0).MintJWT(spec)
	g.secrets.plant("JWT", jwt)
	return jwt
}

// call makes one call over each transport, and reports how often there was a success.
func (g *leakTest) call(t *testing.T, method, jwt string, headers ...string) (succeeded int) {
	t.Helper()
	rpc := map[string]string{http.MethodPost: "/CreateToken", http.MethodDelete: "/DeleteToken"}[method]
	headers = append([]string{"authorization", "JWT " + jwt}, headers...)
	if g.invoke(t.Context(), t, "/"+rpcService+rpc, headers...) {
		succeeded++
	}
	got, err := do(g.client, newRequest(t, method, "http://"+g.http+restPath, "", headers...))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(&g.told, got.header)
	if got.status < 300 {
		return succeeded + 1
	}
	fmt.Fprintln(&g.told, got.status, got.body)
	return succeeded
}

// invoke makes one gRPC call.
func (g *leakTest) invoke(ctx context.Context, t *testing.T, method string, headers ...string) (ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, headers...), patience)
	defer cancel()
	var header, trailer metadata.MD
	err := g.conn.Invoke(ctx, method, &ephemeraltokenv1.CreateTokenRequest{}, &ephemeraltokenv1.CreateTokenResponse{}, grpc.Header(&header), grpc.Trailer(&trailer))
	fmt.Fprintln(&g.told, header, trailer)
	if err == nil {
		return true
	}
	st := status.Convert(err).Proto()
	wire, err := proto.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&g.told, "%s\n%s\n", prototext.Format(st), wire)
	return false
}

func (g *leakTest) succeed(t *testing.T) {
	t.Helper()
	for _, method := range []string{http.MethodPost, http.MethodDelete, http.MethodPost} {
		if n := g.call(t, method, g.newJWT(emulator.JWT{})); n != 2 {
			t.Fatalf("%d of 2 calls succeeded", n)
		}
	}
}

// failAtAtlas makes Atlas fail in many ways, with the token and the credential in its responses.
func (g *leakTest) failAtAtlas(t *testing.T) {
	t.Helper()
	for _, test := range []struct {
		name  string
		fault emulator.Fault // {jwt} and {token} in its texts are replaced
		only  string         // the method that it fails, "" for both
	}{
		{"401", emulator.Fault{Status: 401, Body: `{"detail": "no: {jwt} {token}"}`, Header: http.Header{"Www-Authenticate": {"JWT {token}"}}}, ""},
		{"403", emulator.Fault{Status: 403, Body: `{"detail": "{token}"}`}, ""},
		{"404", emulator.Fault{Status: 404, Header: http.Header{"Content-Type": {"text/html"}}, Body: "<p>{jwt} {token}"}, ""},
		{"409", emulator.Fault{Status: 409, Body: `{"{token}": ["{jwt}"]}`}, ""},
		{"429", emulator.Fault{Status: 429, Header: http.Header{"Retry-After": {"{token}"}}, Body: "{jwt}"}, ""},
		{"500", emulator.Fault{Status: 500, Body: "Traceback: {jwt} {token}", AfterEffect: true}, ""},
		{"503", emulator.Fault{Status: 503, Body: "{token}", Header: http.Header{"X-Token": {"{token}"}, "X-{token}": {"{jwt}"}}}, ""},
		{"redirect", emulator.Fault{Status: 302, Header: http.Header{"Location": {"https://elsewhere.example/?token={token}&jwt={jwt}"}}}, ""},
		{"redirect nowhere", emulator.Fault{Status: 301, Header: http.Header{"Location": {"%zz{token}"}}}, ""},
		{"half of the JSON", emulator.Fault{Body: `{"token": "{token}`}, http.MethodPost},
		{"no JSON", emulator.Fault{Body: "{token}"}, http.MethodPost},
		{"a list", emulator.Fault{Body: `{"token": ["{token}"]}`}, http.MethodPost},
		{"two", emulator.Fault{Body: `{"token": "{token}", "token": "{jwt}"}`}, http.MethodPost},
		{"another key", emulator.Fault{Body: `{"{token}": "{jwt}"}`}, http.MethodPost},
		{"control character", emulator.Fault{Body: `{"token": "{token}\u0000"}`}, http.MethodPost},
		{"not UTF-8", emulator.Fault{Body: "{\"token\": \"{token}\xff\"}"}, http.MethodPost},
		{"too long", emulator.Fault{Body: `{"token": "` + strings.Repeat("{token}", 3000) + `"}`}, http.MethodPost},
		{"media type", emulator.Fault{Header: http.Header{"Content-Type": {"text/{token}"}}}, http.MethodPost},
		{"not gzip", emulator.Fault{Header: http.Header{"Content-Encoding": {"gzip"}}}, http.MethodPost},
		{"truncated", emulator.Fault{Shape: emulator.Truncated}, http.MethodPost},
		{"reset in the body", emulator.Fault{Shape: emulator.Reset}, http.MethodPost},
		{"endless", emulator.Fault{Shape: emulator.Endless}, http.MethodPost},
		{"reset", emulator.Fault{Drop: emulator.ResetConnection, AfterEffect: true}, ""},
		{"close", emulator.Fault{Drop: emulator.CloseConnection}, ""},
		{"stream", emulator.Fault{Drop: emulator.AbortStream}, ""},
		{"headers", emulator.Fault{Header: http.Header{"X-Token": {strings.Repeat("{token}", 150_000)}}}, ""},
	} {
		for _, method := range []string{http.MethodPost, http.MethodDelete} {
			if test.only != "" && test.only != method {
				continue
			}
			// A credential of its own for each, so that nothing remembered of the last one is in
			// the way.
			jwt := g.newJWT(emulator.JWT{})
			if n := g.call(t, http.MethodPost, jwt); n != 2 {
				t.Fatalf("before %s: %d of 2 calls succeeded", test.name, n)
			}
			fill := strings.NewReplacer("{jwt}", jwt, "{token}", g.atlas.Org(0).EphemeralToken()).Replace
			fault := test.fault
			fault.Body, fault.Header = fill(fault.Body), http.Header{}
			for name, values := range test.fault.Header {
				fault.Header.Set(fill(name), fill(values[0]))
			}
			remove := g.atlas.Inject(fault)
			if n := g.call(t, method, jwt); n != 0 {
				t.Errorf("%s %s: %d calls succeeded", method, test.name, n)
			}
			remove()
		}
	}
	for _, spec := range []emulator.JWT{{Lifetime: -time.Minute}, {Forged: true}, {Unsigned: true}} {
		if n := g.call(t, http.MethodPost, g.newJWT(spec)); n != 0 {
			t.Errorf("JWT %+v: %d calls succeeded", spec, n)
		}
	}
	// Atlas is too slow for the caller.
	remove := g.atlas.Inject(emulator.Fault{Delay: time.Hour, AfterEffect: true})
	defer remove()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if g.invoke(ctx, t, "/"+rpcService+"/CreateToken", "authorization", "JWT "+g.newJWT(emulator.JWT{})) {
		t.Error("a call succeeded that Atlas does not answer")
	}
	got := rest(t, http.MethodPost, g.http, "Authorization", "JWT "+g.newJWT(emulator.JWT{}), "Grpc-Timeout", "50m")
	fmt.Fprintln(&g.told, got.status, got.header, got.body)
	if got.status != http.StatusGatewayTimeout {
		t.Errorf("a call that Atlas does not answer: %d", got.status)
	}
}

// credentialsInWrongPlaces sends credentials where none belong, in requests as raw as it takes.
//
// One place is left out: an opaque secret, which is not told from an id, as x-request-id.
func (g *leakTest) credentialsInWrongPlaces(t *testing.T) {
	t.Helper()
	jwt, authToken, token := g.newJWT(emulator.JWT{}), g.atlas.Org(0).UserAuthToken(), g.atlas.Org(0).EphemeralToken()
	// Not one of Atlas's, but as short as a JWT can well be.
	short := "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.4BYm4BW_iB14GVuwtlYnE7Sd7jM-ruKKHUgvksCvruk"
	g.secrets.plant("short JWT", short)
	fill := strings.NewReplacer(
		"{short}", short, "{jwt}", jwt, "{authtoken}", authToken, "{token}", token,
		"{basic}", base64.StdEncoding.EncodeToString([]byte("bot:"+authToken)), "{basicjwt}", base64.StdEncoding.EncodeToString([]byte(jwt)),
	).Replace

	for _, header := range []string{
		"X-Request-Id: {jwt}", "X-Request-Id: {short}", "X-Request-Id: JWT {jwt}", "X-Api-Key: {jwt}", "X-Atlas-Token: {authtoken}", "{jwt}: 1", "{authtoken}: 1", "X {token}: 1",
		"Authorization: {jwt}", "Authorization: {authtoken}", "Authorization: JWT {authtoken}", "Authorization: Token {authtoken}",
		"Authorization: Basic {basic}", "Authorization: Basic {basicjwt}", "Authorization: Bearer {basicjwt}", "Authorization: JWT {jwt} {jwt}",
		"Authorization: JWT {jwt}\x01", "Authorization: JWT {jwt}\x00", "Authorization: JWT {jwt}é", "Authorization: JWT\t{jwt}", "Authorization: JWT {jwt}.{jwt}",
		"Authorization: JWT {jwt}\r\nAuthorization: JWT {jwt}", "Authorization: JWT {jwt}\r\nGrpc-Metadata-Authorization: JWT {jwt}",
		"Grpc-Metadata-Authorization: JWT {jwt}", "Proxy-Authorization: JWT {jwt}", "Cookie: jwt={jwt}; token={token}",
		"Grpc-Timeout: {jwt}", "Traceparent: {jwt}", "Tracestate: a={token}", "Cache-Control: {token}", "X-Forwarded-For: {token}", "Referer: https://x/?{jwt}",
		"Content-Type: {authtoken}", "Content-Type: application/json; a={token}", "Content-Encoding: {authtoken}", "Transfer-Encoding: {authtoken}",
		"Content-Length: {authtoken}", "Expect: {authtoken}", "Upgrade: {token}\r\nConnection: upgrade", "Host: {token}.example", "Host: {jwt}/", "Accept: {token}",
	} {
		g.raw(t, g.http, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: tokend\r\nContent-Length: 0\r\n"+fill(header)+"\r\nConnection: close\r\n\r\n")
	}
	for _, line := range []string{
		"POST /v1/ephemeral-token/{jwt}", "POST /v1/ephemeral-token?jwt={jwt}&token={token}", "GET /v1/ephemeral-token?{jwt}", "GET /{jwt}", "GET /{token}/../..//",
		"GET /%zz{token}", "GET /{jwt}%2e", "{authtoken} /v1/ephemeral-token", "{authtoken} /", "GET {jwt}", "GET http://bot:{authtoken}@tokend/", "OPTIONS *?{token}",
		"CONNECT {token}:443", "POST /forsta.ephemeraltoken.v1.EphemeralTokenService/{token}",
	} {
		request := fill(line) + " HTTP/1.1\r\nHost: tokend\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
		for _, addr := range []string{g.http, g.admin, g.grpc} { // the last speaks HTTP/2 only
			g.raw(t, addr, request)
		}
	}
	g.raw(t, g.http, fill("POST / HTTP/{token}\r\n\r\n"))
	g.raw(t, g.http, fill("{jwt}\r\n\r\n"))
	g.raw(t, g.grpc, fill("{jwt}\r\n\r\n"))
	for _, body := range []string{`{"jwt": "{jwt}", "userauthtoken": "{authtoken}"}`, `{"{token}": 1}`, `{"jwt": "{jwt}`, "{jwt}", "token={token}", `{"token": "{token}"}{`} {
		for _, mediaType := range []string{"application/json", "application/x-www-form-urlencoded"} {
			body := fill(body)
			g.raw(t, g.http, fmt.Sprintf("POST /v1/ephemeral-token HTTP/1.1\r\nHost: tokend\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", mediaType, len(body), body))
		}
	}

	for _, headers := range [][]string{
		{"x-request-id", "{jwt}"}, {"x-request-id", "{short}"}, {"x-api-key", "{jwt}"}, {"x-{authtoken}", "1"}, {"{jwt}", "1"}, {"{token}-bin", "{jwt}"}, {"cookie", "{jwt}"},
		{"authorization", "{jwt}"}, {"authorization", "{authtoken}"}, {"authorization", "JWT {authtoken}"}, {"authorization", "Basic {basic}"},
		{"authorization", "JWT {jwt} {token}"}, {"authorization", "JWT {jwt}", "authorization", "JWT {jwt}"}, {"authorization-bin", "JWT {jwt}"}, {"grpc-trace-bin", "{jwt}"},
	} {
		filled := make([]string, len(headers))
		for i := range headers {
			filled[i] = fill(headers[i])
			if i%2 == 0 {
				filled[i] = strings.ToLower(filled[i])
			}
		}
		if g.invoke(t.Context(), t, "/"+rpcService+"/CreateToken", filled...) {
			t.Errorf("a call succeeded with %q", headers)
		}
	}
	for _, method := range []string{"/" + rpcService + "/{token}", "/" + rpcService + "/{jwt}", "/{authtoken}/CreateToken", "/grpc.health.v1.Health/{token}"} {
		if g.invoke(t.Context(), t, fill(method), "authorization", "JWT "+jwt) {
			t.Errorf("%s: it succeeded", method)
		}
	}
	g.credentialsInFraming(t, fill)
}

// credentialsInFraming puts credentials into gRPC's own headers. grpc-go refuses those and quotes
// them to the client that sent them, so the response is not kept.
func (g *leakTest) credentialsInFraming(t *testing.T, fill func(string) string) {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for _, test := range []struct{ path, name, value string }{
		{rpcService + "/CreateToken", "Grpc-Timeout", "{token}"},
		{rpcService + "/CreateToken", "Authorization-Bin", "{token}!"}, // not base64
		{rpcService + "/CreateToken", "Grpc-Encoding", "{token}"},
		{rpcService + "/CreateToken", "Content-Type", "application/grpc+{token}"},
		{rpcService + "/CreateToken", "Content-Type", "application/{token}"},
		{"{token}", "Content-Type", "application/grpc"},
	} {
		req := newRequest(t, http.MethodPost, "http://"+g.grpc+"/"+fill(test.path), "\x00\x00\x00\x00\x00", "Te", "trailers", "Content-Type", "application/grpc")
		req.Header.Set(test.name, fill(test.value))
		if _, err := do(client, req); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// raw sends request unchanged, and keeps the answer.
func (g *leakTest) raw(t *testing.T, addr, request string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		return // refused before all of it was there
	}
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("no end of an answer to %.80q", request)
	}
	fmt.Fprintf(&g.told, "%s\n", answer)
}

// abort makes clients disconnect during a call.
func (g *leakTest) abort(t *testing.T) {
	t.Helper()
	jwt := g.newJWT(emulator.JWT{})
	conn, err := net.Dial("tcp", g.http)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: tokend\r\nAuthorization: JWT %s\r\nContent-Length: 100\r\n\r\n{", jwt); err != nil {
		t.Error(err)
	}
	_ = conn.Close()

	gate := g.atlas.HoldAnswer(emulator.Create) // Atlas has made the token
	defer gate.Release()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		rpc := ephemeraltokenv1.NewEphemeralTokenServiceClient(g.conn)
		_, _ = rpc.CreateToken(withJWT(ctx, jwt), &ephemeraltokenv1.CreateTokenRequest{})
	}()
	if err := gate.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	poll(t, "the call to Atlas ends", func() bool { return gate.Held() == 0 })

	conn, err = net.Dial("tcp", g.http)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: tokend\r\nAuthorization: JWT %s\r\nContent-Length: 0\r\n\r\n", g.newJWT(emulator.JWT{})); err != nil {
		t.Error(err)
	}
	if err := gate.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	poll(t, "the call to Atlas ends", func() bool { return gate.Held() == 0 })
}

// TestSecretsNotWrittenBeforeTLS checks that the credential of a client that does not use TLS is
// not logged.
func TestSecretsNotWrittenBeforeTLS(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	s := startServe(t, "--log-level=debug", "--tls-cert-file="+certs.serverCert, "--tls-key-file="+certs.serverKey)
	g := &leakTest{service: s}
	jwt := g.newJWT(emulator.JWT{})
	for _, addr := range []string{s.grpc, s.http} {
		g.raw(t, addr, "POST /v1/ephemeral-token?"+jwt+" HTTP/1.1\r\nHost: tokend\r\nAuthorization: JWT "+jwt+"\r\nConnection: close\r\n\r\n")
		g.raw(t, addr, jwt+"\r\n\r\n")
		g.raw(t, addr, "\x16\x03\x01\x00\x80"+jwt[:128]) // the header of a TLS record
	}
	s.signal(t, syscall.SIGTERM)
	s.awaitEnd(t)
	if found := g.secrets.find(s.stdout.String() + s.stderr.String() + g.told.String()); len(found) > 0 {
		t.Errorf("found %q in\n%s%s", found, s.stderr, g.told.String())
	}
}
