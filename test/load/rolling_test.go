package load

import (
	"context"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // for healthCheckConfig
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestRollingRestart replaces replicas one by one under load, with gRPC clients that use the
// recommended service config and REST clients that keep their connections. No call may fail. A long
// run replaces each of three replicas five times.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		p := newPlatform(t, v)
		stop := p.startCalls(t)
		for range testutil.Some([]int{1, 2, 3, 4, 5}, 1) {
			for i := range testutil.Some(p.replicas, 1) {
				p.replace(t, i)
			}
		}
		answered := stop()
		if answered < 100 {
			t.Errorf("%d calls were answered, want at least 100", answered)
		}
		t.Logf("%d calls", answered)
	})
}

// platform runs replicas and tells clients their addresses as Kubernetes does: by their readiness,
// and somewhat late.
type platform struct {
	virtual  *testutil.Virtual
	atlas    *emulator.Emulator
	resolver *manual.Resolver

	mu       sync.Mutex
	replicas []*testutil.Service // guarded by mu
	ready    []*testutil.Service // guarded by mu; where calls are sent
	turn     int                 // guarded by mu
}

// A replica may still receive calls for propagation after it has reported that it is not ready.
const (
	drainDelay  = 3 * time.Second
	probing     = 50 * time.Millisecond
	propagation = 200 * time.Millisecond
)

func newPlatform(t *testing.T, v *testutil.Virtual) *platform {
	t.Helper()
	p := &platform{virtual: v, atlas: v.StartAtlas(t, emulator.Config{Orgs: 4}), resolver: manual.NewBuilderWithScheme("replicas")}
	for range 3 {
		p.replicas = append(p.replicas, p.startReplica(t))
	}
	p.publish(p.replicas)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			ready := p.probe(t)
			time.AfterFunc(propagation, func() { p.publish(ready) })
			<-time.After(probing)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return p
}

func (p *platform) startReplica(t *testing.T) *testutil.Service {
	t.Helper()
	s := p.virtual.StartWith(t, testutil.Plaintext, p.atlas, func(c *server.Config, _ *atlas.Config) { c.DrainDelay = drainDelay })
	testutil.Eventually(t, func() bool { code, _ := s.Get(t, "/readyz"); return code == 200 }, "the replica is not ready")
	return s
}

// probe returns the replicas that report that they are ready.
func (p *platform) probe(t *testing.T) (ready []*testutil.Service) {
	p.mu.Lock()
	replicas := slices.Clone(p.replicas)
	p.mu.Unlock()
	for _, s := range replicas {
		if code, _ := s.Get(t, "/readyz"); code == http.StatusOK {
			ready = append(ready, s)
		}
	}
	return ready
}

// publish tells clients the addresses.
func (p *platform) publish(ready []*testutil.Service) {
	p.mu.Lock()
	p.ready = ready
	p.mu.Unlock()
	var endpoints []resolver.Endpoint
	for _, s := range ready {
		endpoints = append(endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: s.GRPCAddr().String()}}})
	}
	p.resolver.UpdateState(resolver.State{Endpoints: endpoints})
}

// dial connects a REST client to the replicas in turn.
func (p *platform) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	p.mu.Lock()
	s := p.ready[p.turn%len(p.ready)]
	p.turn++
	p.mu.Unlock()
	return s.DialContext(ctx, network, s.HTTPAddr().String())
}

// replace starts a replica, waits until it receives calls, and stops the one that it replaces.
func (p *platform) replace(t *testing.T, i int) {
	t.Helper()
	next := p.startReplica(t)
	p.mu.Lock()
	old := p.replicas[i]
	p.replicas = append(p.replicas, next)
	p.mu.Unlock()
	testutil.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return slices.Contains(p.ready, next)
	}, "the new replica receives no calls")
	if err := old.Stop(); err != nil {
		t.Error(err)
	}
	p.mu.Lock()
	p.replicas = slices.Clone(p.replicas[:len(p.replicas)-1])
	p.replicas[i] = next
	p.mu.Unlock()
}

// startCalls calls over both transports, each client every 10 ms, and every 20th call deletes. stop
// returns how many calls were answered.
func (p *platform) startCalls(t *testing.T) (stop func() (answered int64)) {
	t.Helper()
	config, err := os.ReadFile(testutil.Path("deploy/service-config.json"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("replicas:///tokend", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(p.resolver),
		grpc.WithDefaultServiceConfig(string(config)), p.replicas[0].DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	transport := &http.Transport{DialContext: p.dial, MaxIdleConnsPerHost: 8}
	t.Cleanup(transport.CloseIdleConnections)
	callers := []testutil.Caller{
		testutil.NewGRPCCaller(conn),
		testutil.RESTCaller{Base: "http://tokend.test", Client: &http.Client{Transport: transport}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered atomic.Int64
	for client := range 8 {
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				op := testutil.Create
				if n%20 == 0 {
					op = testutil.Delete
				}
				got := callers[client%2].Call(testutil.Context(t), op, "authorization", "JWT "+p.atlas.Org(client/2).JWT())
				if got.Code != codes.OK {
					t.Errorf("client %d, %s: %+v", client, op, got)
					return
				}
				answered.Add(1)
				<-time.After(10 * time.Millisecond)
			}
		})
	}
	return func() int64 {
		cancel()
		wg.Wait()
		return answered.Load()
	}
}
