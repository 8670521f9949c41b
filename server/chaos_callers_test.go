package server_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// chaosCall is one call, and what is needed to judge how it was answered.
type chaosCall struct {
	event

	requestID string
	transport string
	patience  time.Duration // its deadline, from when it was made
	took      time.Duration
	disturbed bool // something was wrong between the caller and the replica
	reason    string
}

// chaosClient makes calls to all replicas, over both transports.
type chaosClient struct {
	world  *chaosWorld
	number int
	random *rand.Rand
	org    int                  // whose callers the ways below are of
	ways   [][2]testutil.Caller // by replica: gRPC, REST
	close  []func()
	jwts   map[int]string
	calls  []chaosCall
}

// run calls in rushes, all clients at once, with silence between them, until the world's life is over.
func (c *chaosClient) run() {
	w := c.world
	defer c.hangUp()
	for rush := 1; ; rush++ {
		start := w.began.Add(time.Duration(rush) * rushInterval)
		if start.Sub(w.began) >= w.life {
			return
		}
		if rush%7 == 0 || time.Until(start) < 0 {
			continue // a long silence, or the last rush took long
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
		dial := func(ctx context.Context, addr string) (net.Conn, error) { return r.fromCallers.dial(ctx, "tcp", addr) }
		conn, err := grpc.NewClient("passthrough:///"+r.grpcAddr,
			grpc.WithTransportCredentials(creds), grpc.WithContextDialer(dial),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: .2, MaxDelay: 5 * time.Second},
				MinConnectTimeout: dialPatience,
			}))
		if err != nil {
			c.world.t.Error(err)
			return
		}
		transport := &http.Transport{
			DialContext: r.fromCallers.dial, TLSClientConfig: cfg, ForceAttemptHTTP2: true, TLSHandshakeTimeout: dialPatience,
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

// target is the replica for a call: any, or the one that has the org where each remembers for itself.
func (c *chaosClient) target(org int) int {
	if c.world.ttl > 0 {
		return org % len(c.world.replicas)
	}
	return c.random.IntN(len(c.world.replicas))
}

// credential is what a caller of the org sends: its JWT, until it may have expired, or nothing.
func (c *chaosClient) credential(org int) []string {
	if c.world.profiles {
		return nil
	}
	if c.jwts[org] == "" || c.random.IntN(20) == 0 {
		c.jwts = map[int]string{org: c.world.atlas.Org(org).JWT()}
		c.number += 1000 // a credential that nobody has seen yet
	}
	return []string{"authorization", "JWT " + c.jwts[org]}
}

// call makes one call.
func (c *chaosClient) call(org int) chaosCall {
	w, at := c.world, c.target(org)
	r := w.replicas[at]
	call := chaosCall{
		event:     event{client: c.number % 1000, org: org, op: testutil.Create},
		requestID: fmt.Sprintf("chaos-%d-%d", c.number%1000, len(c.calls)),
	}
	headers := append(c.credential(org), "x-request-id", call.requestID)
	if call.jwt = -c.number; w.profiles { // below zero: a caller's own
		call.jwt = profiles
	}
	switch dice := c.random.IntN(100); {
	case dice < 6:
		call.op = testutil.Delete
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
	call.callTick = w.atlas.Tick()
	out := c.ways[at][over].Call(ctx, call.op, headers...)
	call.ended, call.took = w.atlas.Tick(), time.Since(began)
	// Much happens in one moment of virtual time. The logical clock tells it apart.
	call.call, call.answer = int64(call.callTick), int64(call.ended)
	call.ok, call.token, call.reason = out.Code == codes.OK, out.Token, reasonOf(out)
	call.hit = strings.Contains(out.Get("cache-status"), "; hit")
	call.harmless = isHarmless(out)
	call.replica = at + 100*incarnation
	if now := r.number(); now != incarnation || now == 0 {
		call.replica = -int(call.ended) // nobody knows which of them it was
		call.disturbed = true
	}
	call.disturbed = call.disturbed || r.fromCallers.troubledSince(began)
	return call
}

// reasonOf is an outcome in a word, for the counts.
func reasonOf(out testutil.Outcome) string {
	switch {
	case out.Code == codes.OK:
		return "OK"
	case out.Reason != "":
		return out.Reason
	case strings.HasPrefix(out.Message, "test: "):
		return "no answer over REST"
	}
	return "no answer over gRPC (" + out.Code.String() + ")"
}

// callLog is what the servers log of each call.
type callLog struct {
	mu     sync.Mutex
	seen   map[string]handledCall // guarded by mu; by request id
	panics []string               // guarded by mu
}

type handledCall struct {
	took   time.Duration
	reason string
	cause  string
}

func (l *callLog) logger() *slog.Logger { return slog.New(l) }

// reasons counts the calls by how they ended.
func (l *callLog) reasons() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := map[string]int{}
	for _, h := range l.seen {
		counts[cmp.Or(h.reason, "OK")]++
	}
	return counts
}

// Enabled, Handle, WithAttrs and WithGroup make it a slog.Handler.
func (l *callLog) Enabled(context.Context, slog.Level) bool { return true }

func (l *callLog) Handle(_ context.Context, record slog.Record) error {
	var (
		id string
		h  handledCall
	)
	l.mu.Lock()
	defer l.mu.Unlock()
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "request_id":
			id = a.Value.String()
		case "duration_ms":
			h.took = time.Duration(a.Value.Float64() * float64(time.Millisecond))
		case "reason":
			h.reason = a.Value.String()
		case "cause":
			h.cause = a.Value.String()
		case "stack":
			l.panics = append(l.panics, a.Value.String())
		}
		return true
	})
	if id != "" {
		l.seen[id] = h
	}
	return nil
}

func (l *callLog) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l *callLog) WithGroup(string) slog.Handler      { return l }
