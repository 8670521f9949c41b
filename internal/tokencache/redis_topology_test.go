package tokencache

import (
	"crypto/x509"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// wantOneCache wants two replicas to share what they remember and to honour each other's deletes, however many nodes
// there are.
func wantOneCache(t *testing.T, one, two *replica) {
	t.Helper()
	for _, org := range []string{orgA, orgB} { // of two slots, but for the braces
		jwt, other := newJWT(org, "u", time.Time{}), newJWT(org, "other", time.Time{})
		one.wantMiss(jwt)
		two.wantHit(jwt)
		two.wantMiss(other)
		for range 3 {
			two.delete(other)
			one.wantMiss(jwt)
			two.wantHit(jwt)
		}
	}
	jwt := newJWT(orgA, "u", time.Time{})
	two.delete(newJWT("", "u", time.Time{})) // of whatever org
	one.wantMiss(jwt)
	two.wantHit(jwt)
	two.eventually("Check says that all is well", func() bool { // a busy machine may have been late once
		one.token(jwt)
		two.token(jwt)
		return one.Check() == nil && two.Check() == nil
	})
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	cluster, w := redistest.StartCluster(t), newFakeAtlas()
	early := newReplica(t, w, cluster.URL(), Config{}) // the nodes are there and have no slots yet
	early.wantMiss(newJWT(orgA, "early", time.Time{}))
	cluster.Join()
	other := newReplica(t, w, cluster.URL(), Config{}).connected()
	wantOneCache(t, early.connected(), other)
	// One node is enough to find the others.
	newReplica(t, w, cluster.Nodes[2].URL(), Config{}).connected().wantHit(newJWT(orgA, "u", time.Time{}))
}

func TestRedisSentinel(t *testing.T) {
	t.Parallel()
	s, w := redistest.StartSentinel(t, nil), newFakeAtlas()
	early := newReplica(t, w, s.URL(), Config{})
	early.wantMiss(newJWT(orgA, "early", time.Time{}))
	s.Watch()
	wantOneCache(t, early.connected(), newReplica(t, w, s.URL(), Config{}).connected())
}

// One password is for all of them.
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
			wantShared(t, w, RedisConfig{URL: s.URL(), Password: func() string { return password }})
			r, book := newReplicaWith(t, w, RedisConfig{URL: s.URL(), Password: func() string { return "planted-guess" }})
			r.eventually("nobody is told", func() bool { return r.Check() != nil })
			if strings.Contains(r.Check().Error()+book.String(), "planted") {
				t.Error("a password is in the log")
			}
		})
	}
}

// The sentinel's own connections are as safe as the others.
func TestRedisSentinelOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := writeCertificate(t, dir)
	url := redistest.StartSentinelOverTLS(t, filepath.Join(dir, "cert"), filepath.Join(dir, "key"))
	w := newFakeAtlas()
	wantShared(t, w, RedisConfig{URL: url, RootCAs: func() *x509.CertPool { return ca }})
	for name, c := range map[string]RedisConfig{
		"the system's authorities": {URL: url},
		"no authority":             {URL: url, RootCAs: x509.NewCertPool},
		"no TLS":                   {URL: strings.Replace(url, "rediss", "redis", 1)},
	} {
		r, book := newReplicaWith(t, w, c)
		r.eventually(name+": nobody is told", func() bool { return strings.Contains(book.String(), "Redis fails") })
		if r.client() {
			t.Errorf("%s: connected all the same", name)
		}
	}
}

// A cluster may tell the names of its nodes, and each has that in its certificate.
func TestTheNameInACertificate(t *testing.T) {
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
		c := RedisConfig{URL: "rediss://" + tc.url + ":" + port, RootCAs: func() *x509.CertPool { return ca }}
		opt, err := c.options()
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
