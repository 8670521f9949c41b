// Package redistest runs a real Redis for tests, behind a proxy that can be slow or cut.
package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a redis-server of the test's own, with nothing in it and nothing on disk.
type Server struct {
	t    testing.TB
	addr string
	dir  string
	file []string // a configuration, as a Sentinel needs one
	args []string
	cmd  *exec.Cmd
	gone chan struct{}
}

// Start runs a redis-server on a loopback port until the test ends. Without one installed the test
// is skipped, or fails if REQUIRE_TOOLS is 1. args are added to its command line, such as
// "--maxmemory", "1mb".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := newServer(t, args)
	s.start()
	return s
}

// newServer returns a server that does not run yet.
func newServer(t testing.TB, args []string) *Server {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatal("redis-server is not installed")
		}
		t.Skip("redis-server is not installed: on Debian, apt-get install redis-server")
	}
	return &Server{t: t, dir: t.TempDir(), args: args, addr: freeAddr(t)}
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// Addr is its host:port.
func (s *Server) Addr() string { return s.addr }

// URL is its address for Config.
func (s *Server) URL() string { return "redis://" + s.addr }

func (s *Server) start() {
	s.t.Helper()
	args := append(s.file, "--bind", "127.0.0.1", "--port", portOf(s.addr), "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", //nolint:gocritic // file is full
		"--dir", s.dir, "--logfile", filepath.Join(s.dir, "log"), "--daemonize", "no")
	s.cmd = exec.Command("redis-server", append(args, s.args...)...) //nolint:noctx,gosec // Stop ends it
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("redis-server: %v", err)
	}
	if s.gone == nil {
		s.t.Cleanup(s.Stop)
	}
	gone, cmd := make(chan struct{}), s.cmd
	s.gone = gone
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if s.ping() == nil {
			return
		}
		select {
		case <-gone:
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			s.t.Fatalf("redis-server ended: %s", log)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatal("redis-server does not answer")
		}
	}
}

// ping returns nil if the server answers, even if it requires a password.
func (s *Server) ping() error {
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(s.t.Context(), "tcp", s.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	answer := make([]byte, 8)
	n, err := conn.Read(answer)
	if err != nil {
		return err
	}
	if got := string(answer[:n]); !strings.HasPrefix(got, "+PONG") && !strings.HasPrefix(got, "-NOAUTH") {
		return fmt.Errorf("redis-server answers %q", got)
	}
	return nil
}

// Stop kills it. Its content is lost.
func (s *Server) Stop() {
	_ = s.cmd.Process.Kill()
	<-s.gone
}

// Up starts it again if it is stopped.
func (s *Server) Up() {
	s.t.Helper()
	select {
	case <-s.gone:
		s.start()
	default:
	}
}

// Restart kills it and starts it empty, on the same address.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Sibling starts another server, which has nothing in it.
func (s *Server) Sibling() *Server {
	s.t.Helper()
	return Start(s.t, s.args...)
}

// Follow makes it a replica of another server, and waits until it has caught up.
func (s *Server) Follow(primary *Server) {
	s.t.Helper()
	s.Command("REPLICAOF", "127.0.0.1", portOf(primary.addr))
	eventually(s.t, "the replica does not follow its primary", func() bool {
		return strings.Contains(s.Command("INFO", "replication"), "master_link_status:up")
	})
}

// Promote makes a replica a primary.
func (s *Server) Promote() {
	s.t.Helper()
	s.Command("REPLICAOF", "NO", "ONE")
}

// Pause makes it hang, and Resume lets it go on where it was.
func (s *Server) Pause() { _ = s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }

// Command runs a command with redis-cli's protocol and returns what the server answers, bulk
// strings as they are.
func (s *Server) Command(words ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "redis-cli", append([]string{"-p", portOf(s.addr), "--raw"}, words...)...).CombinedOutput() //nolint:gosec // the test's own words
	if err != nil {
		s.t.Fatalf("redis-cli: %v: %s", err, out)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// Proxy is a way to a server that can be slow or cut off. Each replica of a test has its own.
type Proxy struct {
	listener net.Listener
	work     sync.WaitGroup

	mu     sync.Mutex
	target string                // guarded by mu
	delay  time.Duration         // guarded by mu; before each piece from the server
	cut    bool                  // guarded by mu
	extra  string                // guarded by mu; what follows each piece
	conns  map[net.Conn]struct{} // guarded by mu
}

// NewProxy runs a proxy until the test ends.
func (s *Server) NewProxy() *Proxy {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	p := &Proxy{listener: l, target: s.addr, conns: map[net.Conn]struct{}{}}
	p.work.Go(p.accept)
	s.t.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		p.work.Wait()
	})
	return p
}

// URL is its address for Config.
func (p *Proxy) URL() string { return "redis://" + p.listener.Addr().String() }

// Delay delays the answers of the server from now on.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Append appends extra to each piece from the server.
func (p *Proxy) Append(extra string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.extra = extra
}

// Cut breaks every connection and refuses new ones until Restore.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for c := range p.conns {
		_ = c.Close()
	}
}

// Retarget breaks every connection, and connects to another server from now on.
func (p *Proxy) Retarget(s *Server) {
	p.Cut()
	p.mu.Lock()
	p.target = s.addr
	p.mu.Unlock()
	p.Restore()
}

// Restore ends Cut.
func (p *Proxy) Restore() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		p.work.Go(func() { p.serve(client) })
	}
}

// track notes a connection, and refuses it while the way is cut.
func (p *Proxy) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) forget(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *Proxy) serve(client net.Conn) {
	defer p.forget(client)
	if !p.track(client) {
		return
	}
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", target)
	if err != nil {
		return
	}
	defer p.forget(server)
	if !p.track(server) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	buffer := make([]byte, 32<<10)
	for {
		n, err := server.Read(buffer)
		if n > 0 {
			p.mu.Lock()
			delay, extra := p.delay, p.extra
			p.mu.Unlock()
			if delay > 0 {
				<-time.After(delay)
			}
			if _, err := client.Write(append(buffer[:n:n], extra...)); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = client.Close()
	<-done
}
