package tokencache

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// syncLog is a log for several goroutines to write.
type syncLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newReplicaWith is newReplica with a RedisConfig of its own, and a log.
func newReplicaWith(t *testing.T, w *fakeAtlas, c RedisConfig) (*replica, *syncLog) {
	t.Helper()
	book := &syncLog{}
	r := &replica{testCache: newTestCache(t, w, Config{TTL: time.Hour, Redis: &c, Logger: slog.New(slog.NewTextHandler(book, nil))})}
	return r, book
}

// wantShared wants what one fills to be there for the other.
func wantShared(t *testing.T, w *fakeAtlas, c RedisConfig) {
	t.Helper()
	one, _ := newReplicaWith(t, w, c)
	two, _ := newReplicaWith(t, w, c)
	jwt := newJWT(orgA, "u", time.Time{})
	one.connected().wantMiss(jwt)
	two.connected().wantHit(jwt)
}

func TestRedisPassword(t *testing.T) {
	const password = "planted-password"
	server, w := redistest.Start(t, "--requirepass", password), newFakeAtlas()
	wantShared(t, w, RedisConfig{URL: server.URL(), Password: func() string { return password }})
	wantShared(t, w, RedisConfig{URL: "redis://default@" + server.Addr() + "/3", Password: func() string { return password }})

	for name, tc := range map[string]struct {
		password func() string
		want     string
	}{
		"wrong": {func() string { return "planted-guess" }, "WRONGPASS"},
		"none":  {nil, "NOAUTH"},
	} {
		r, book := newReplicaWith(t, w, RedisConfig{URL: server.URL(), Password: tc.password})
		r.eventually("nobody is told", func() bool { return strings.Contains(book.String(), tc.want) })
		r.wantMiss(newJWT(orgA, "u", time.Time{}))
		if err := r.Check(); err == nil || strings.Contains(err.Error()+book.String(), "planted") {
			t.Errorf("%s: Check says %v, the log %s", name, err, book)
		}
	}
}

// A server that quotes what it was sent does not bring the password into the log.
func TestAnErrorOfRedisIsNotQuoted(t *testing.T) {
	addr := fakeRedis(t, func([]string) string { return "-ERR what is 'AUTH' 'planted-password'?\r\n" })
	r, book := newReplicaWith(t, newFakeAtlas(), RedisConfig{
		URL: "redis://" + addr, Password: func() string { return "planted-password" },
	})
	r.eventually("nobody is told", func() bool { return strings.Contains(book.String(), "it answers with an error") })
	if err := r.Check(); err == nil || strings.Contains(err.Error()+book.String(), "planted") {
		t.Error("the password is in the log")
	}
}

func TestRedisOverAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "redis.sock")
	_ = redistest.Start(t, "--unixsocket", path)
	wantShared(t, newFakeAtlas(), RedisConfig{URL: "unix://" + path})
}

func TestRedisOverTLS(t *testing.T) {
	dir := t.TempDir()
	ca := writeCertificate(t, dir)
	port := freePort(t)
	_ = redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"))
	w := newFakeAtlas()
	wantShared(t, w, RedisConfig{URL: "rediss://127.0.0.1:" + port, RootCAs: func() *x509.CertPool { return ca }})

	for name, c := range map[string]RedisConfig{
		"the system's authorities": {URL: "rediss://127.0.0.1:" + port},
		"no authority":             {URL: "rediss://127.0.0.1:" + port, RootCAs: x509.NewCertPool},
		"another name":             {URL: "rediss://localhost:" + port, RootCAs: func() *x509.CertPool { return ca }},
		"no TLS":                   {URL: "redis://127.0.0.1:" + port},
	} {
		r, book := newReplicaWith(t, w, c)
		r.eventually(name+": nobody is told", func() bool { return strings.Contains(book.String(), "Redis fails") })
		if r.client() {
			t.Errorf("%s: connected all the same", name)
		}
	}
}

// Whoever forgets the s of rediss, or has one too many, is told that, and not that time has run out.
func TestRedisOverTheOtherProtocol(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := writeCertificate(t, dir)
	port := freePort(t)
	server := redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"))
	mute, err := net.Listen("tcp", "127.0.0.1:0") // takes what it is sent for half a command
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	go answerLines(mute)
	for url, want := range map[string]redisError{
		"redis://127.0.0.1:" + port:        errSpeaksTLS,
		"rediss://" + server.Addr():        errNoTLS,
		"rediss://" + mute.Addr().String(): errNoTLS,
	} {
		r, book := newReplicaWith(t, newFakeAtlas(), RedisConfig{URL: url, RootCAs: func() *x509.CertPool { return ca }})
		r.eventually(url+": nobody is told", func() bool { return strings.Contains(book.String(), string(want)) })
	}
}

// answerLines answers a command as Redis does, once it ends, and nothing that does not begin with one.
func answerLines(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			b := make([]byte, 4096)
			for n, err := conn.Read(b); err == nil; n, err = conn.Read(b) {
				if bytes.HasPrefix(b[:n], []byte("PING\r\n")) {
					_, _ = conn.Write([]byte("-NOAUTH Authentication required.\r\n"))
				}
			}
		}()
	}
}

// client reports whether there is a connection.
func (r *replica) client() bool { return r.caching.store.(*redisStore).client.client.Load() != nil }

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// writeCertificate writes cert and key for 127.0.0.1, and returns who signed it.
func writeCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a private authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err1 := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	der, err2 := x509.MarshalPKCS8PrivateKey(private)
	err3 := os.WriteFile(filepath.Join(dir, "cert"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600)
	err4 := os.WriteFile(filepath.Join(dir, "key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	parsed, err5 := x509.ParseCertificate(cert)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return pool
}

func TestRedisURLMistakes(t *testing.T) {
	for _, url := range []string{
		"", "planted", "planted:6379", "redis:planted", "http://planted:6379", "redis://", "redis:///0", "redis://:6379",
		"redis://planted:port", "redis://planted:0", "redis://planted:65536", "redis://planted:1 ", "redis://planted\x00:1",
		"redis://user:planted@host:6379", "redis://:planted@host:6379", "rediss://user:@planted:6379",
		"redis://planted/zero", "redis://planted/-1", "redis://planted/1?addr=planted:1", "redis://planted/0/1", "redis://planted#fragment", "redis://planted/%zz",
		"redis://planted?skip_verify=1", "rediss://planted?skip_verify", "redis://planted?client_cache=1", "redis://planted?db=1",
		"redis://planted?skip_verify=1;x", "redis://planted?addr", "redis://planted?addr=planted", "redis://planted?addr=planted:0",
		"redis://planted?addr=redis://planted:1", "redis://planted?master_set=", "redis://planted?master_set=a&master_set=b",
		"unix://", "unix://planted/path", "unix:///planted?addr=planted:1", "unix:planted", "unix://user:planted@/path",
	} {
		err := Config{TTL: time.Second, Redis: &RedisConfig{URL: url}}.Validate()
		if e := config.As(err); e == nil || e.Field != "Cache.Redis.URL" {
			t.Errorf("%q: %v, want an error about Cache.Redis.URL", url, err)
		} else if strings.Contains(err.Error(), "planted") {
			t.Errorf("%q is quoted: %v", url, err)
		}
		if _, err := New(newFakeAtlas(), Config{TTL: time.Second, Redis: &RedisConfig{URL: url}}); err == nil {
			t.Errorf("%q: New takes it", url)
		}
	}
	for _, url := range []string{
		"redis://host", "redis://host:6379", "redis://host:6379/", "redis://host:6379/1", "redis://user@host:6379", "rediss://host:6379",
		"redis://[::1]:6379", "redis://[::1]", "redis://a:1?addr=b:1&addr=[::1]:2", "redis://a:1?master_set=main",
		"redis://a:1/2?addr=b:1&master_set=main", "valkey://host", "valkeys://host", "unix:///run/redis.sock",
	} {
		if err := (Config{TTL: time.Second, Redis: &RedisConfig{URL: url}}).Validate(); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
}

func TestMistakesInAConfig(t *testing.T) {
	for name, tc := range map[string]struct {
		config Config
		want   []string
	}{
		"Redis and no TTL": {Config{Redis: &RedisConfig{URL: "redis://host"}}, []string{"Cache.Redis.URL: "}},
		"stale and no TTL": {Config{StaleIfError: 1}, []string{"Cache.StaleIfError: "}},
		"both":             {Config{StaleIfError: 1, Redis: &RedisConfig{URL: "redis://host"}}, []string{"Cache.StaleIfError: ", "Cache.Redis.URL: "}},
	} {
		err := tc.config.Validate()
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %v", name, err, want)
			}
		}
	}
	const tooLong = 400 * 24 * time.Hour
	for _, c := range []Config{
		{TTL: -1}, {TTL: 1, StaleIfError: -1}, {MaxTokens: -1}, {CallTimeout: -1}, {SettleTime: -1},
		{TTL: tooLong}, {TTL: 1, StaleIfError: tooLong}, {CallTimeout: tooLong}, {SettleTime: tooLong},
	} {
		if _, err := New(newFakeAtlas(), c); err == nil {
			t.Errorf("New takes %+v", c)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestStatusStrings(t *testing.T) {
	for want, s := range map[string]Status{
		"tokend; fwd=miss":            {},
		"tokend; fwd=request":         {Forward: ForwardRequest},
		"tokend; fwd=miss; collapsed": {Forward: ForwardMiss, Collapsed: true},
		"tokend; hit; ttl=1":          {Hit: true, TTL: 1999 * time.Millisecond},
		"tokend; hit; detail=stale":   {Hit: true, Stale: true, TTL: -time.Second},
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
