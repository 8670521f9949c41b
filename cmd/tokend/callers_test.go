//go:build unix

package main_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

const (
	rpcService = "forsta.ephemeraltoken.v1.EphemeralTokenService"
	restPath   = "/v1/ephemeral-token"
)

// answer is an HTTP answer, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

// token is the token of a created answer, "" if there is none.
func (a answer) token() string {
	var body struct {
		Token string `json:"token"`
	}
	if a.status != http.StatusCreated || json.Unmarshal([]byte(a.body), &body) != nil {
		return ""
	}
	return body.Token
}

// newHTTPClient has connections of its own, so that nothing is left of them after the test.
func newHTTPClient(t *testing.T, config *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func newRequest(t *testing.T, method, url, body string, headers ...string) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	return req
}

func do(client *http.Client, req *http.Request) (answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

// rest makes a REST call with the given header values, in pairs.
func rest(t *testing.T, method, addr string, headers ...string) answer {
	t.Helper()
	got, err := do(newHTTPClient(t, nil), newRequest(t, method, "http://"+addr+restPath, "", headers...))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// readyz is what /readyz says, such as "200 ready".
func (s *service) readyz(t *testing.T) string {
	t.Helper()
	return probe(t, s.admin, "/readyz")
}

func probe(t *testing.T, admin, path string) string {
	t.Helper()
	client := newHTTPClient(t, nil)
	defer client.CloseIdleConnections() // the admin listener has few
	got, err := do(client, newRequest(t, http.MethodGet, "http://"+admin+path, ""))
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %s", got.status, strings.TrimSuffix(got.body, "\n"))
}

// newRPCClient calls the service over plaintext gRPC, at host:port or unix:/path.
func newRPCClient(t *testing.T, addr string) ephemeraltokenv1.EphemeralTokenServiceClient {
	t.Helper()
	if !strings.HasPrefix(addr, "unix:") {
		addr = "passthrough:///" + addr
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
}

func withJWT(ctx context.Context, jwt string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "JWT "+jwt)
}

// rpcToken makes a CreateToken call over TLS, without a JWT.
func rpcToken(t *testing.T, addr string, config *tls.Config, headers ...string) (string, error) {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), headers...), patience)
	defer cancel()
	resp, err := ephemeraltokenv1.NewEphemeralTokenServiceClient(conn).CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{})
	return resp.GetToken(), err
}
