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
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// caller makes calls one after another.
type caller interface {
	call(ctx context.Context) error
}

// callers are concurrent callers and their connections.
type callers struct {
	all   []caller
	close func()
}

var errNoToken = errors.New("the answer has no token")

// callTimeout bounds one call.
const callTimeout = 20 * time.Second

// credentialsEach is the number of credentials of a caller, so that even a single fast caller stays
// below --caller-rate, which applies per credential.
const credentialsEach = 4

// credentialsOf returns the credentials of a caller.
type credentialsOf func(n int) [credentialsEach]string

// ownCredentials gives each caller its own credentials.
func ownCredentials(n int) (all [credentialsEach]string) {
	for i := range all {
		all[i] = credential(n*credentialsEach + i)
	}
	return all
}

// oneCredential gives all callers the same credential.
func oneCredential(int) (all [credentialsEach]string) {
	for i := range all {
		all[i] = credential(0)
	}
	return all
}

// credential returns a JWT of the form and size of Atlas's.
func credential(n int) string {
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))
	claims := fmt.Sprintf(`{"user_id":"5a4d3c52-2f5a-4a6e-9a5c-%012x","org_id":"46a6a86f-96ee-4fa1-a67d-9d7461fd9fe1","orig_iat":1700000000,"exp":4102444800}`, n)
	signature := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%032d", n))
	return "JWT " + header + "." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + "." + signature
}

type grpcCaller struct {
	client   ephemeraltokenv1.EphemeralTokenServiceClient
	metadata [credentialsEach]metadata.MD
	answered int // a refused call is repeated with the same credential
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

// dialGRPC makes n connections, which are not established yet.
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

// grpcCallers returns n callers that share conns connections. The connections use identities in
// turn, and plaintext if there are none.
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

// restCaller has its own connection, since HTTP/1.1 carries one call at a time. It is simpler than
// net/http's client, which costs more CPU than some of the servers.
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

// restCallers returns n callers with a connection each. The connections use identities in turn, and
// plaintext if there are none.
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

// outcome is the sorted latencies of all callers, and the duration.
type outcome struct {
	latencies []time.Duration // of answered calls
	refused   int
	took      time.Duration
}

// errRefused is returned for a call over a server's limit. It is counted and is not a failure.
var errRefused = errors.New("the server is over its limit")

// pause is the wait after a refused call.
const pause = 100 * time.Millisecond

// callerOutcome is the outcome of one caller.
type callerOutcome struct {
	latencies []time.Duration
	refused   int
}

// drive makes calls until end, at least one with each credential.
func (o *callerOutcome) drive(ctx context.Context, c caller, end time.Time) error {
	for ctx.Err() == nil && (time.Now().Before(end) || len(o.latencies) < credentialsEach) {
		begin := time.Now()
		err := c.call(ctx)
		if errors.Is(err, errRefused) && begin.Before(end.Add(callTimeout)) {
			o.refused++
			wait(ctx, pause)
			continue
		}
		if err != nil {
			return err
		}
		o.latencies = append(o.latencies, time.Since(begin))
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// drive makes each caller call without pause for d, at least once with each credential, until the
// first failure.
func drive(ctx context.Context, all []caller, d time.Duration) (outcome, error) {
	end := time.Now().Add(d)
	return together(ctx, all, func(ctx context.Context, o *callerOutcome, c caller) error { return o.drive(ctx, c, end) })
}

// together runs do for all callers concurrently until the first failure, and combines the outcomes.
func together(ctx context.Context, all []caller, do func(context.Context, *callerOutcome, caller) error) (outcome, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		work  sync.WaitGroup
		each  = make([]callerOutcome, len(all))
		start = time.Now()
	)
	for i, c := range all {
		work.Go(func() {
			if err := do(ctx, &each[i], c); err != nil {
				cancel(err)
			}
		})
	}
	work.Wait()
	result := outcome{took: time.Since(start)}
	for _, one := range each {
		result.latencies = append(result.latencies, one.latencies...)
		result.refused += one.refused
	}
	slices.Sort(result.latencies)
	return result, context.Cause(ctx)
}

// quantile returns a quantile of the latencies, which must not be empty; 0.5 is the median.
func (o outcome) quantile(q float64) time.Duration {
	return o.latencies[min(int(q*float64(len(o.latencies))), len(o.latencies)-1)]
}
