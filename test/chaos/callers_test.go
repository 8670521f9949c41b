package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/network"
)

// chaosCall is one call and its result.
type chaosCall struct {
	history.Event

	requestID string
	transport string
	patience  time.Duration // its timeout
	took      time.Duration
	disturbed bool // there was a fault between the caller and the replica
	reason    string
}

// chaosClient calls all replicas over both transports.
type chaosClient struct {
	world  *chaosWorld
	number int
	random *rand.Rand
	org    int                  // of the callers in ways
	ways   [][2]testutil.Caller // by replica: gRPC, REST
	close  []func()
	jwts   map[int]string
	calls  []chaosCall
}

// run makes bursts of calls, at the same times as the other clients, until the end of the world's
// life.
func (c *chaosClient) run() {
	w := c.world
	defer c.hangUp()
	for rush := 1; ; rush++ {
		start := w.began.Add(time.Duration(rush) * rushInterval)
		if start.Sub(w.began) >= w.life {
			return
		}
		if rush%7 == 0 || time.Until(start) < 0 {
			continue // a long pause, or the last burst took long
		}
		<-time.After(time.Until(start))
		org := int(time.Since(w.began) / w.slot)
		c.connect(org)
		for range w.calls {
			c.calls = append(c.calls, c.call(org))
			<-time.After(time.Duration(c.random.IntN(80)) * time.Millisecond)
		}
	}
}

// connect makes connections as one of the org's callers.
func (c *chaosClient) connect(org int) {
	if c.ways != nil && (c.org == org || !c.world.profiles) {
		return
	}
	c.hangUp()
	c.org = org
	cfg := c.world.clientTLS(org)
	for _, r := range c.world.replicas {
		creds, scheme := insecure.NewCredentials(), "http://"
		if cfg != nil {
			creds, scheme = credentials.NewTLS(cfg), "https://"
		}
		dial := func(ctx context.Context, addr string) (net.Conn, error) { return r.fromCallers.Dial(ctx, "tcp", addr) }
		conn, err := grpc.NewClient("passthrough:///"+r.grpcAddr,
			grpc.WithTransportCredentials(creds), grpc.WithContextDialer(dial),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: 5 * time.Second},
				MinConnectTimeout: network.DialPatience,
			}))
		if err != nil {
			c.world.t.Error(err)
			return
		}
		transport := &http.Transport{
			DialContext: r.fromCallers.Dial, TLSClientConfig: cfg, ForceAttemptHTTP2: true, TLSHandshakeTimeout: network.DialPatience,
			IdleConnTimeout: 50 * time.Second,
			HTTP2:           &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second},
		}
		c.close = append(c.close, func() { _ = conn.Close() }, transport.CloseIdleConnections)
		c.ways = append(c.ways, [2]testutil.Caller{
			testutil.NewGRPCCaller(conn),
			testutil.RESTCaller{Base: scheme + r.httpAddr, Client: &http.Client{Transport: transport}},
		})
	}
}

func (c *chaosClient) hangUp() {
	for _, hangUp := range c.close {
		hangUp()
	}
	c.close, c.ways = nil, nil
}

// target returns the replica for a call: a random one, or the org's own if each replica has its own
// cache.
func (c *chaosClient) target(org int) int {
	if c.world.ttl > 0 {
		return org % len(c.world.replicas)
	}
	return c.random.IntN(len(c.world.replicas))
}

// credential returns the credential of a caller of the org: a JWT, or nothing with profiles.
func (c *chaosClient) credential(org int) []string {
	if c.world.profiles {
		return nil
	}
	if c.jwts[org] == "" || c.random.IntN(20) == 0 {
		c.jwts = map[int]string{org: c.world.atlas.Org(org).JWT()}
		c.number += 1000 // a new credential
	}
	return []string{"authorization", "JWT " + c.jwts[org]}
}

// call makes one call.
func (c *chaosClient) call(org int) chaosCall {
	w, at := c.world, c.target(org)
	r := w.replicas[at]
	call := chaosCall{
		Event:     history.Event{Client: c.number % 1000, Org: org, Op: testutil.Create},
		requestID: fmt.Sprintf("chaos-%d-%d", c.number%1000, len(c.calls)),
	}
	headers := append(c.credential(org), "x-request-id", call.requestID)
	if call.JWT = -c.number; w.profiles { // below zero: pass-through
		call.JWT = history.FirstProfile
	}
	switch dice := c.random.IntN(100); {
	case dice < 6:
		call.Op = testutil.Delete
	case dice < 16:
		headers = append(headers, "cache-control", "no-cache")
	}
	call.patience = time.Duration(2000+c.random.IntN(10_000)) * time.Millisecond
	if c.random.IntN(10) == 0 {
		call.patience = time.Duration(10+c.random.IntN(200)) * time.Millisecond
	}
	over := c.random.IntN(2)
	call.transport = []string{"gRPC", "REST"}[over]
	ctx, cancel := context.WithTimeout(context.Background(), call.patience)
	defer cancel()

	began, incarnation := time.Now(), r.number()
	call.CallTick = w.atlas.Tick()
	out := c.ways[at][over].Call(ctx, call.Op, headers...)
	call.Ended, call.took = w.atlas.Tick(), time.Since(began)
	// Many events share an instant of virtual time; the logical clock orders them.
	call.Call, call.Answer = int64(call.CallTick), int64(call.Ended)
	call.OK, call.Token, call.reason = out.Code == codes.OK, out.Token, history.Reason(out)
	call.Hit = strings.Contains(out.Get("cache-status"), "; hit")
	call.Harmless = history.IsHarmless(out)
	call.Replica = at + 100*incarnation
	if now := r.number(); now != incarnation || now == 0 {
		call.Replica = -int(call.Ended) // it is unknown which incarnation answered
		call.disturbed = true
	}
	call.disturbed = call.disturbed || r.fromCallers.TroubledSince(began)
	return call
}
