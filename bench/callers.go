package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// caller makes one call after the other.
type caller interface {
	call(ctx context.Context) error
}

// callers are some that call together, and what they hold open.
type callers struct {
	all   []caller
	close func()
}

var errNoToken = errors.New("the answer has no token")

// callTimeout bounds one call.
const callTimeout = 20 * time.Second

// credentialsEach is how many credentials a caller uses in turn, so that even a single quick one
// stays below --caller-rate, which goes by credential here.
const credentialsEach = 4

// credentialsOf says which they are of the caller of a number.
type credentialsOf func(n int) [credentialsEach]string

// ownCredentials are those of the caller of that number, which no other one has.
func ownCredentials(n int) (all [credentialsEach]string) {
	for i := range all {
		all[i] = credential(n*credentialsEach + i)
	}
	return all
}

// oneCredential is what all callers have.
func oneCredential(int) (all [credentialsEach]string) {
	for i := range all {
		all[i] = credential(0)
	}
	return all
}

// credential is the authorization of that number, in the shape and size of Atlas's.
func credential(n int) string {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
	claims := fmt.Sprintf(`{"user_id":"5a4d3c52-2f5a-4a6e-9a5c-%012x","org_id":"46a6a86f-96ee-4fa1-a67d-9d7461fd9fe1","orig_iat":1700000000,"exp":4102444800}`, n)
	signature := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%032d", n))
	return "JWT " + header + "." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + signature
}

type grpcCaller struct {
	client   ephemeraltokenv1.EphemeralTokenServiceClient
	metadata [credentialsEach]metadata.MD
	answered int // one that is refused comes with the same credential again
}

func (c *grpcCaller) call(ctx context.Context) error {
	ctx = metadata.NewOutgoingContext(ctx, c.metadata[c.answered%credentialsEach])
	resp, err := c.client.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{})
	switch {
	case status.Code(err) == codes.ResourceExhausted:
		return errRefused
	case err == nil && resp.GetToken() == "":
		return errNoToken
	}
	c.answered++
	return err
}

// dialGRPC makes n connections, not yet established.
func dialGRPC(addr string, identities []*tls.Config, n int) ([]*grpc.ClientConn, func(), error) {
	var conns []*grpc.ClientConn
	closeAll := func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
	for i := range n {
		creds := insecure.NewCredentials()
		if len(identities) > 0 {
			creds = credentials.NewTLS(identities[i%len(identities)])
		}
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds))
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		conns = append(conns, conn)
	}
	return conns, closeAll, nil
}

// grpcCallers are n callers that share conns connections. identities are shown in turn; none: in
// plaintext.
func grpcCallers(addr string, identities []*tls.Config, n, conns int, credentials credentialsOf) (*callers, error) {
	shared, closeAll, err := dialGRPC(addr, identities, min(n, conns))
	if err != nil {
		return nil, err
	}
	c := &callers{close: closeAll}
	for i := range n {
		one := &grpcCaller{client: ephemeraltokenv1.NewEphemeralTokenServiceClient(shared[i%len(shared)])}
		for k, credential := range credentials(i) {
			one.metadata[k] = metadata.Pairs("authorization", credential)
		}
		c.all = append(c.all, one)
	}
	return c, nil
}

// restCaller has a connection of its own, since HTTP/1.1 carries one call at a time. It is simpler
// than net/http's client, which costs more than some of the servers.
type restCaller struct {
	conn     net.Conn
	answers  *bufio.Reader
	requests [credentialsEach][]byte
	answered int
}

var post = &http.Request{Method: http.MethodPost}

func (c *restCaller) call(context.Context) error {
	if err := c.conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(c.requests[c.answered%credentialsEach]); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.answers, post)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusTooManyRequests:
		return errRefused
	case resp.StatusCode >= 300:
		return errors.New(resp.Status)
	case n == 0:
		return errNoToken
	}
	c.answered++
	return nil
}

// restCallers are n callers with a connection each. identities are shown in turn; none: in
// plaintext.
func restCallers(ctx context.Context, addr string, identities []*tls.Config, n int, credentials credentialsOf) (*callers, error) {
	var conns []net.Conn
	c := &callers{close: func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}}
	for i := range n {
		var cfg *tls.Config
		if len(identities) > 0 {
			cfg = identities[i%len(identities)]
		}
		conn, err := dial(ctx, addr, cfg)
		if err != nil {
			c.close()
			return nil, err
		}
		conns = append(conns, conn)
		one := &restCaller{conn: conn, answers: bufio.NewReader(conn)}
		for k, credential := range credentials(i) {
			one.requests[k] = fmt.Appendf(nil, "POST /v1/ephemeral-token HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nAccept: application/json\r\nContent-Length: 0\r\n\r\n", addr, credential)
		}
		c.all = append(c.all, one)
	}
	return c, nil
}

func dial(ctx context.Context, addr string, cfg *tls.Config) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: callTimeout}
	if cfg == nil {
		return dialer.DialContext(ctx, "tcp", addr)
	}
	return (&tls.Dialer{NetDialer: dialer, Config: cfg}).DialContext(ctx, "tcp", addr)
}
