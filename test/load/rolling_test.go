package load

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // the client's part of health checking
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestRollingRestart replaces replicas one after the other while they are called, gRPC with the
// service config that we recommend and REST over connections that are kept alive: no call fails. A
// long run replaces each of three replicas five times, another one replica once.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	rounds, replaced := 1, 1
	if testutil.Long() {
		rounds, replaced = 5, 3
	}
	em, err := emulator.Start(emulator.Config{Orgs: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	p := newPlatform(t, em, 3)
	calls := p.startLoad(t)
	for round := range rounds {
		for i := range replaced {
			p.replace(t, i)
			if n := calls.failed.Load(); n > 0 {
				t.Fatalf("%d calls failed in round %d", n, round+1)
			}
		}
	}
	calls.end()
	if calls.failed.Load() > 0 || calls.answered.Load() < 100 {
		t.Errorf("%d calls answered, %d failed", calls.answered.Load(), calls.failed.Load())
	}
	t.Logf("%d replicas replaced, %d calls answered, none failed", rounds*replaced, calls.answered.Load())
}

// platform runs replicas and says where they are, as Kubernetes does: by their readiness, and
// somewhat late.
type platform struct {
	atlas    *emulator.Emulator
	resolver *manual.Resolver

	mu       sync.Mutex
	replicas []*testutil.Service // guarded by mu
	ready    []*testutil.Service // guarded by mu; where calls are sent
	turn     int                 // guarded by mu
}

// The times of a platform. A call may be sent to a replica until propagation after it has said that
// it is not ready.
const (
	rollingDelay = 3 * time.Second
	probing      = 50 * time.Millisecond
	propagation  = 200 * time.Millisecond
)

func newPlatform(t *testing.T, em *emulator.Emulator, replicas int) *platform {
	t.Helper()
	p := &platform{atlas: em, resolver: manual.NewBuilderWithScheme("replicas")}
	for range replicas {
		p.replicas = append(p.replicas, p.startReplica(t))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(probing)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			ready := p.probe(t)
			time.AfterFunc(propagation, func() { p.publish(ready) })
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	p.publish(p.replicas)
	return p
}

func (p *platform) startReplica(t *testing.T) *testutil.Service {
	t.Helper()
	s := testutil.StartWith(t, testutil.Plaintext, p.atlas, func(c *server.Config, _ *atlas.Config) { c.DrainDelay = rollingDelay })
	testutil.Eventually(t, func() bool { code, _ := s.Get(t, "/readyz"); return code == 200 }, "the replica is not ready")
	return s
}

// probe returns the replicas that say they are ready.
func (p *platform) probe(t *testing.T) (ready []*testutil.Service) {
	p.mu.Lock()
	replicas := append([]*testutil.Service(nil), p.replicas...)
	p.mu.Unlock()
	for _, s := range replicas {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.AdminAddr().String()+"/readyz", nil)
		if err != nil {
			continue
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		_ = resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			ready = append(ready, s)
		}
	}
	return ready
}

// publish tells clients where to call.
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

// dial connects a REST client to one replica after the other.
func (p *platform) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	p.mu.Lock()
	s := p.ready[p.turn%len(p.ready)]
	p.turn++
	p.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, network, s.HTTPAddr().String())
}

// replace starts a new replica, waits until calls are sent to it, and stops the one before.
func (p *platform) replace(t *testing.T, i int) {
	t.Helper()
	next := p.startReplica(t)
	p.mu.Lock()
	before := p.replicas[i]
	p.replicas = append(p.replicas, next)
	p.mu.Unlock()
	testutil.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range p.ready {
			if s == next {
				return true
			}
		}
		return false
	}, "no call is sent to the new replica")
	if err := before.Stop(); err != nil {
		t.Error(err)
	}
	p.mu.Lock()
	p.replicas = append([]*testutil.Service(nil), p.replicas[:len(p.replicas)-1]...)
	p.replicas[i] = next
	p.mu.Unlock()
}

// steadyLoad is calls that go on until they are ended.
type steadyLoad struct {
	answered, failed atomic.Int64
	end              func()
}

// startLoad calls over both transports, each caller every 10 ms, now and then to delete.
func (p *platform) startLoad(t *testing.T) *steadyLoad {
	t.Helper()
	config, err := os.ReadFile(testutil.Path("deploy/service-config.json"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("replicas:///tokend", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithResolvers(p.resolver),
		grpc.WithDefaultServiceConfig(string(config)))
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
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	l := &steadyLoad{end: func() { cancel(); wg.Wait() }}
	t.Cleanup(l.end)
	for worker := range 8 {
		wg.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				op := testutil.Create
				if n%20 == 19 {
					op = testutil.Delete
				}
				callCtx, done := context.WithTimeout(context.Background(), 20*time.Second)
				got := callers[worker%2].Call(callCtx, op, "authorization", "JWT "+p.atlas.Org(worker/2).JWT())
				done()
				if got.Code != codes.OK {
					l.failed.Add(1)
					t.Errorf("worker %d, %s: %+v", worker, op, got)
				} else {
					l.answered.Add(1)
				}
			}
		})
	}
	return l
}
