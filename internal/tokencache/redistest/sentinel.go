package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Sentinel is a primary with a replica, and a sentinel that watches over them. It finds the primary
// gone after half a second.
type Sentinel struct {
	*Server
	t                testing.TB
	Primary, Replica *Server
	// Link is how the replica hears of what is written to the primary. The sentinel replaces it
	// after some eight seconds.
	Link *Proxy
}

// primaryName is the sentinel's name for the pair.
const primaryName = "main"

// StartSentinel runs primary and replica until the test ends. args are for both, and config, lines
// of its configuration file, for the sentinel, which does not run before Watch.
func StartSentinel(t testing.TB, args []string, config ...string) *Sentinel {
	t.Helper()
	// A replica whose first attempt to follow the primary got stuck tries again after repl-timeout.
	args = append([]string{"--repl-diskless-sync-delay", "0", "--repl-timeout", "10", "--repl-ping-replica-period", "1"}, args...)
	s := &Sentinel{t: t, Primary: newServer(t, args), Server: newServer(t, nil)}
	s.Link = s.Primary.NewProxy()
	s.Replica = newServer(t, append([]string{"--replicaof", "127.0.0.1 " + portOf(s.Link.listener.Addr().String())}, args...))
	s.Primary.start()
	s.Replica.start()
	// A sentinel that finds them apart checks again only after ten seconds.
	eventually(t, "the replica does not follow the primary", func() bool {
		log, _ := os.ReadFile(filepath.Join(s.Replica.dir, "log")) // which can be read without a password
		return strings.Contains(string(log), "sync: Finished with success")
	})
	s.watches(s.Primary.addr, config)
	return s
}

// watches configures a server as a sentinel.
func (s *Server) watches(primary string, config []string) {
	s.t.Helper()
	file := filepath.Join(s.dir, "sentinel.conf")
	lines := append([]string{
		fmt.Sprintf("sentinel monitor %s 127.0.0.1 %s 1", primaryName, portOf(primary)),
		"sentinel down-after-milliseconds " + primaryName + " 500",
		"sentinel failover-timeout " + primaryName + " 3000",
	}, config...)
	if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.file = []string{file, "--sentinel"}
}

// StartSentinelOverTLS runs a sentinel and a primary that both have this certificate, and returns
// a URL.
func StartSentinelOverTLS(t testing.TB, cert, key string) (url string) {
	t.Helper()
	secure, port := freeAddr(t), freeAddr(t)
	args := func(addr string) []string {
		return []string{"--tls-port", portOf(addr), "--tls-auth-clients", "no", "--tls-replication", "yes",
			"--tls-ca-cert-file", cert, "--tls-cert-file", cert, "--tls-key-file", key}
	}
	Start(t, args(secure)...)
	s := newServer(t, args(port))
	s.watches(secure, nil)
	s.start()
	return "rediss://" + port + "?master_set=" + primaryName
}

// URL names the sentinel and the primary.
func (s *Sentinel) URL() string { return s.Server.URL() + "?master_set=" + primaryName }

// Watch starts the sentinel, and waits until it knows of primary and replica.
func (s *Sentinel) Watch(secret ...string) {
	s.t.Helper()
	s.start()
	eventually(s.t, "the sentinel does not know of the replica", func() bool {
		answer := s.Command(append(secret, "SENTINEL", "REPLICAS", primaryName)...)
		return strings.Contains(answer, portOf(s.Replica.addr)) && strings.Contains(answer, "master-link-status\nok")
	})
}
