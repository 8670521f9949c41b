package redis

import (
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// wantOneCache wants two replicas to share tokens and to see each other's deletes, with any number
// of nodes.
func wantOneCache(t *testing.T, one, two *replica) {
	t.Helper()
	for _, r := range []*replica{one, two} { // until a client has found the nodes of a new cluster
		r.eventually("nothing is cached", func() bool { return r.hits(user{"warm", "u"}) })
	}
	for _, org := range []string{orgA, orgB} { // of two slots, without the braces
		u, other := user{org, "u"}, user{org, "other"}
		one.wantMiss(u)
		two.wantHit(u)
		two.wantMiss(other)
		for range 3 {
			two.delete(org)
			one.wantMiss(u)
			two.wantHit(u)
		}
	}
	u := user{orgA, "u"}
	two.delete("") // of every org
	one.wantMiss(u)
	one.wantMiss(u) // the note of the last token is from before
	two.wantHit(u)
	two.eventually("Check says that all is well", func() bool { // a busy machine may have been late once
		one.create(u)
		two.create(u)
		return one.Check() == nil && two.Check() == nil
	})
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	cluster, w := redistest.StartCluster(t), newFakeAtlas()
	early := newReplica(t, w, cluster.URL(), Config{}) // the nodes are there and have no slots yet
	early.wantMiss(user{orgA, "early"})
	cluster.Join()
	other := newReplica(t, w, cluster.URL(), Config{}).connected()
	wantOneCache(t, early.connected(), other)
	for _, node := range cluster.Nodes { // one is enough to find the others
		r := newReplica(t, w, node.URL(), Config{}).connected()
		r.eventually("no hit through this node", func() bool { return r.hits(user{orgA, "u"}) })
	}
}

func TestRedisSentinel(t *testing.T) {
	t.Parallel()
	s, w := redistest.StartSentinel(t, nil), newFakeAtlas()
	early := newReplica(t, w, s.URL(), Config{})
	early.wantMiss(user{orgA, "early"})
	s.Watch()
	wantOneCache(t, early.connected(), newReplica(t, w, s.URL(), Config{}).connected())
}

// TestRedisSentinelPassword uses one password for the sentinel and the nodes.
func TestRedisSentinelPassword(t *testing.T) {
	t.Parallel()
	const password = "planted-password"
	nodes := []string{"--requirepass", password, "--masterauth", password}
	for name, tc := range map[string]struct {
		config []string
		secret []string // of redis-cli
	}{
		"the sentinel's too":    {[]string{"requirepass " + password}, []string{"--no-auth-warning", "-a", password}},
		"the sentinel has none": {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, w := redistest.StartSentinel(t, nodes, append(tc.config, "sentinel auth-pass main "+password)...), newFakeAtlas()
			s.Watch(tc.secret...)
			wantShared(t, w, Config{URL: s.URL(), Password: func() string { return password }})
			r := newReplicaWith(t, w, Config{URL: s.URL(), Password: func() string { return "planted-guess" }})
			r.eventually("nothing is reported", func() bool { return r.Check() != nil })
			if strings.Contains(r.Check().Error()+r.log.String(), "planted") {
				t.Error("a password is in the log")
			}
		})
	}
}

// TestRedisSentinelOverTLS secures the connections to the sentinel as well.
func TestRedisSentinelOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := writeCertificate(t, dir)
	url := redistest.StartSentinelOverTLS(t, filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	w := newFakeAtlas()
	wantShared(t, w, Config{URL: url, RootCAs: func() *x509.CertPool { return ca }})
	for name, c := range map[string]Config{
		"the system's authorities": {URL: url},
		"no authority":             {URL: url, RootCAs: x509.NewCertPool},
		"no TLS":                   {URL: strings.Replace(url, "rediss", "redis", 1)},
	} {
		r := newReplicaWith(t, w, c)
		r.eventually(name+": nothing is reported", func() bool { return strings.Contains(r.log.String(), "Redis failed") })
	}
}

// TestCertificateNames checks the certificate of each node against the name that the cluster gives
// for it.
func TestCertificateNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := writeCertificate(t, dir) // for 127.0.0.1
	port := freePort(t)
	_ = redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"))
	for _, tc := range []struct {
		url, addr string
		good      bool
	}{
		{"127.0.0.1", "127.0.0.1", true},
		{"redis.internal", "127.0.0.1", false},
		{"127.0.0.1", "localhost", false},
	} {
		c := Config{URL: "rediss://" + tc.url + ":" + port, RootCAs: func() *x509.CertPool { return ca }}
		opt, err := options(c)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := opt.Dialer(t.Context(), "tcp", tc.addr+":"+port)
		if (err == nil) != tc.good {
			t.Errorf("%s, asked for by %s: %v", tc.addr, tc.url, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}
