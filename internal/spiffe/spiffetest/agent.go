// Package spiffetest has a SPIFFE agent for tests: a Workload API on a socket, and trust domains.
// It shares no code with the packages that are tested with it.
package spiffetest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Agent gives every client the same, and each change to those that watch.
type Agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	socket string
	t      testing.TB

	mu      sync.Mutex
	server  *grpc.Server               // guarded by mu; nil while it is stopped
	ended   chan struct{}              // guarded by mu; closed when server has ended
	given   *workload.X509SVIDResponse // guarded by mu; nil if there is none
	failure error                      // guarded by mu; returned to all clients instead
	silent  bool                       // guarded by mu; no client gets an answer
	changed chan struct{}              // guarded by mu; closed and replaced with each change
}

// NewAgent returns an agent that does not listen yet and has no registered workloads. It ends with
// the test.
func NewAgent(t testing.TB) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") //nolint:usetesting // t.TempDir contains the test's name, and a socket's path is limited in length
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{socket: filepath.Join(dir, "agent.sock"), t: t, changed: make(chan struct{})}
	t.Cleanup(func() {
		a.Stop()
		_ = os.RemoveAll(dir)
	})
	return a
}

// StartAgent returns an agent that listens and gives all clients an SVID.
func StartAgent(t testing.TB, own *SVID) *Agent {
	t.Helper()
	a := NewAgent(t)
	a.Give(own)
	a.Start()
	return a
}

// Addr is the address of the Workload API.
func (a *Agent) Addr() string { return "unix://" + a.socket }

// Start makes the agent listen.
func (a *Agent) Start() {
	a.t.Helper()
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		a.t.Fatal(err)
	}
	server, ended := grpc.NewServer(), make(chan struct{})
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	a.mu.Lock()
	a.server, a.ended = server, ended
	a.mu.Unlock()
	go func() {
		defer close(ended)
		_ = server.Serve(l) // until Stop
	}()
}

// Stop ends the agent with all its connections, and removes its socket.
func (a *Agent) Stop() {
	a.mu.Lock()
	server, ended := a.server, a.ended
	a.server = nil
	a.mu.Unlock()
	if server != nil {
		server.Stop()
		<-ended
	}
}

// change changes the state and wakes the clients that watch.
func (a *Agent) change(do func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	do()
	close(a.changed)
	a.changed = make(chan struct{})
}

// Give makes all clients get these SVIDs, of which the first is the default, and the bundles of
// their trust domains.
func (a *Agent) Give(svids ...*SVID) { a.GiveFederated(nil, svids...) }

// GiveFederated is Give with the bundles of other trust domains.
func (a *Agent) GiveFederated(others []*TrustDomain, svids ...*SVID) {
	given := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}}
	for _, s := range svids {
		given.Svids = append(given.Svids, s.message())
	}
	for _, d := range others {
		given.FederatedBundles[d.id()] = d.bundle()
	}
	a.change(func() { a.given, a.failure, a.silent = given, nil, false })
}

// Fail makes all clients get an error, which ends the stream.
func (a *Agent) Fail(code codes.Code, said string) {
	a.change(func() { a.failure, a.silent = status.Error(code, said), false })
}

// BeSilent makes clients wait until the next change.
func (a *Agent) BeSilent() { a.change(func() { a.silent = true }) }

// FetchX509SVID implements workload.SpiffeWorkloadAPIServer.
func (a *Agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := checkHeader(stream.Context()); err != nil {
		return err
	}
	for {
		a.mu.Lock()
		given, failure, silent, changed := a.given, a.failure, a.silent, a.changed
		a.mu.Unlock()
		switch {
		case silent:
		case failure != nil:
			return failure
		case given == nil:
			return status.Error(codes.PermissionDenied, "no identity issued") // like SPIRE
		default:
			if err := stream.Send(given); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// checkHeader checks the header that protects workloads against request forgery (SPIFFE Workload
// Endpoint §3).
func checkHeader(ctx context.Context) error {
	header, _ := metadata.FromIncomingContext(ctx)
	if said := header.Get("workload.spiffe.io"); len(said) != 1 || said[0] != "true" {
		return status.Error(codes.InvalidArgument, errNoHeader.Error())
	}
	return nil
}

var errNoHeader = errors.New("security header missing from request")
