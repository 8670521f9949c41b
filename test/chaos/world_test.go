package chaos

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/network"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/testcert"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// chaosSetup is the configuration of a world.
type chaosSetup struct {
	name     string
	replicas int
	ttl      time.Duration // 0: no cache
	stale    time.Duration
	profiles bool          // the service holds the Atlas identities, and callers have certificates
	slot     time.Duration // for which each org is in use
	calls    int           // of each client in a burst
	// tokens, if set, replaces the cache of a replica.
	tokens func(tokencache.Atlas) server.Tokens
}

// chaosWorld is an Atlas, replicas and callers on an in-memory network.
type chaosWorld struct {
	chaosSetup

	t        *testing.T
	life     time.Duration
	network  *network.Network
	atlas    *emulator.Emulator
	skew     atomic.Int64 // of Atlas's clock, in ns
	began    time.Time
	ca       testcert.Authority
	tls      server.TLS
	policy   *auth.Policy
	replicas []*chaosReplica
	handled  *history.CallLog

	recovered time.Duration // after the last fault

	mu     sync.Mutex
	faults map[string]int // guarded by mu; count by name
}

// The times of a world.
const (
	chaosAtlasTimeout = 5 * time.Second
	chaosCeiling      = 15 * time.Second
	chaosDrain        = 20 * time.Second
	jwtLife           = 2 * time.Minute
	refreshWindow     = 7 * time.Minute
	rushInterval      = 30 * time.Second
)

func newChaosWorld(t *testing.T, s chaosSetup, life time.Duration, random *rand.Rand) *chaosWorld {
	t.Helper()
	w := &chaosWorld{
		chaosSetup: s, t: t, life: life, network: network.New(), began: time.Now(), faults: map[string]int{},
		handled: &history.CallLog{Seen: map[string]history.HandledCall{}},
	}
	listener, err := w.network.Listen("127.0.0.1:443")
	if err != nil {
		t.Fatal(err)
	}
	w.atlas, err = emulator.Start(emulator.Config{
		Listener: listener, Orgs: int(life/s.slot) + 1, JWTLifetime: jwtLife, RefreshWindow: refreshWindow,
		Now: func() time.Time { return time.Now().Add(time.Duration(w.skew.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.profiles {
		w.makeProfiles()
	}
	for i := range s.replicas {
		r := &chaosReplica{
			world: w, fromCallers: w.network.NewLink(history.Fork(random)), toAtlas: w.network.NewLink(history.Fork(random)),
			grpcAddr: fmt.Sprintf("127.0.0.1:%d", 9090+i), httpAddr: fmt.Sprintf("127.0.0.1:%d", 8080+i),
		}
		w.replicas = append(w.replicas, r)
		r.start()
	}
	return w
}

// makeProfiles makes a profile for each org, and admits the certificate with its name.
func (w *chaosWorld) makeProfiles() {
	w.t.Helper()
	years := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * 365 * 24 * time.Hour) }
	w.ca = testcert.NewAuthority(w.t, years)
	leaf, clients := w.ca.IssueAs(w.t, func(c *x509.Certificate) {
		c.DNSNames = []string{"localhost"}
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		years(c)
	}), w.ca.Pool()
	w.tls = server.TLS{Certificate: func() tls.Certificate { return leaf }, ClientCAs: func() *x509.CertPool { return clients }}
	var profiles, callers strings.Builder
	for i := range w.atlas.Orgs() {
		fmt.Fprintf(&profiles, "  p%d: {userauthtoken_file: /run/secrets/p%d}\n", i, i)
		fmt.Fprintf(&callers, "  - {dns_san: p%d.test, allow: [CreateToken, DeleteToken], profile: p%d}\n", i, i)
	}
	w.policy = testutil.MustPolicy(w.t, "profiles:\n"+profiles.String()+"callers:\n"+callers.String())
}

// chaosReplica is an address that has a server most of the time.
type chaosReplica struct {
	world                *chaosWorld
	fromCallers, toAtlas *network.Link
	grpcAddr, httpAddr   string
	skew                 atomic.Int64 // of its clock, in ns

	mu      sync.Mutex
	present *incarnation // guarded by mu; nil while there is none
	last    int          // guarded by mu; the number of the latest
}

// incarnation is one server from start to stop.
type incarnation struct {
	id         int
	listeners  []net.Listener
	client     *atlas.Client
	atlas      *resilient.Client
	identities auth.Identities
	auth       *auth.Authenticator
	gone       atomic.Bool // it has crashed and cannot connect any more
	stop       context.CancelFunc
	done       chan error
}

// start starts a server, unless there is one.
func (r *chaosReplica) start() {
	w := r.world
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.present != nil {
		return
	}
	r.last++
	n := &incarnation{id: r.last, done: make(chan error, 1)}
	client, err := atlas.New(atlas.Config{
		BaseURL: w.atlas.URL(), RootCAs: w.atlas.CertPool(), Timeout: chaosAtlasTimeout,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if n.gone.Load() {
				return nil, net.ErrClosed
			}
			return r.toAtlas.Dial(ctx, network, addr)
		},
	})
	if err != nil {
		w.t.Error(err)
		return
	}
	n.client, n.atlas = client, testutil.NewResilient(w.t, client)
	cfg := server.Config{
		GRPCAddr: r.grpcAddr, HTTPAddr: r.httpAddr, Atlas: n.atlas, Logger: w.handled.Logger(),
		CallCeiling: chaosCeiling, DrainTimeout: chaosDrain, TLS: w.tls,
		Cache: tokencache.Config{TTL: w.ttl, StaleIfError: w.stale},
	}
	if w.profiles {
		cfg.Auth = n.makeAuth(w, r)
	}
	if w.tokens != nil {
		cfg.Tokens = w.tokens
	}
	cfg.Listen = func(addr string) (net.Listener, error) {
		l, err := w.network.Listen(addr)
		if err == nil {
			n.listeners = append(n.listeners, l)
		}
		return l, err
	}
	srv, err := server.New(cfg)
	if err != nil {
		w.t.Error(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	go func() { n.done <- srv.Run(ctx) }()
	r.present = n
	r.fromCallers.Each(0, nil) // there may have been no server until now
}

func (n *incarnation) makeAuth(w *chaosWorld, r *chaosReplica) *auth.Authenticator {
	clock := atlas.Clock{Now: func() time.Time { return time.Now().Add(time.Duration(r.skew.Load())) }}
	n.identities = auth.Identities{}
	for i, org := range w.atlas.Orgs() {
		name := fmt.Sprintf("p%d", i)
		n.identities[name] = atlas.NewIdentity(atlas.IdentityConfig{
			Client: n.atlas, Profile: name, Clock: clock,
			Secret: func() atlas.UserAuthToken { return atlas.UserAuthToken(org.UserAuthToken()) },
		})
	}
	a, err := auth.New(auth.Config{Policy: w.policy, Identities: n.identities})
	if err != nil {
		w.t.Error(err)
	}
	n.auth = a
	return a
}

// take removes and returns the present server, nil if there is none.
func (r *chaosReplica) take() *incarnation {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.present
	r.present = nil
	return n
}

// number returns the id of the present server, 0 if there is none.
func (r *chaosReplica) number() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.present == nil {
		return 0
	}
	return r.present.id
}

// crash simulates a power loss: the server's connections break and it sends nothing more. Then it
// stops.
func (r *chaosReplica) crash() {
	n := r.take()
	if n == nil {
		return
	}
	n.gone.Store(true)
	for _, l := range n.listeners {
		_ = l.Close() // the server closes it as well
	}
	for _, l := range []*network.Link{r.fromCallers, r.toAtlas} {
		l.Each(1, (*network.Conn).Reset)
	}
	_ = n.end() // the listeners are closed
}

// stop drains the server within its drain timeout.
func (r *chaosReplica) stop() error {
	n := r.take()
	if n == nil {
		return nil
	}
	began := time.Now()
	err := n.end()
	if took := time.Since(began); took > chaosDrain+2*time.Second {
		err = errors.Join(err, fmt.Errorf("a drain took %v", took))
	}
	return err
}

// end stops the server and closes what it used.
func (n *incarnation) end() error {
	n.stop()
	err := <-n.done
	for _, identity := range n.identities {
		identity.Close()
	}
	if n.auth != nil {
		n.auth.Close()
	}
	n.client.CloseIdleConnections()
	return err
}

// clientTLS returns the configuration of an org's callers, nil without TLS.
func (w *chaosWorld) clientTLS(org int) *tls.Config {
	if !w.profiles {
		return nil
	}
	c := testutil.Certificates{Pool: w.ca.Pool(), Client: w.ca.Issue(w.t, fmt.Sprintf("p%d.test", org))}
	return c.ClientConfig(testutil.MutualTLS)
}
