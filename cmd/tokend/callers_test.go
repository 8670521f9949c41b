//go:build unix

package main_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
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
	got, err := do(newHTTPClient(t, nil), newRequest(t, http.MethodGet, "http://"+admin+path, ""))
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

// grpcurlToken is the token in grpcurl's output.
func grpcurlToken(t *testing.T, got result) string {
	t.Helper()
	var message struct {
		Token string `json:"token"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &message); err != nil || got.code != 0 {
		t.Fatalf("grpcurl: %v, exit status %d\n%s%s", err, got.code, got.stdout, got.stderr)
	}
	return message.Token
}

// accepts reports whether anybody listens on addr.
func accepts(network, addr string) bool {
	conn, err := net.Dial(network, addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// compact is text without what indentation adds.
func compact(text string) string {
	var b bytes.Buffer
	for _, line := range strings.Split(text, "\n") {
		b.WriteString(strings.TrimSpace(line))
		b.WriteByte('\n')
	}
	return b.String()
}
