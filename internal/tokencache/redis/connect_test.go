package redis

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// wantShared wants one replica to read what another one stored.
func wantShared(t *testing.T, w *fakeAtlas, c Config) {
	t.Helper()
	c.Budget = time.Second
	one, two := newReplicaWith(t, w, c), newReplicaWith(t, w, c)
	u := user{orgA, "u"}
	one.connected().wantMiss(u)
	two.connected().wantHit(u)
}

func TestRedisPassword(t *testing.T) {
	t.Parallel()
	const password = "planted-password"
	server, w := redistest.Start(t, "--requirepass", password), newFakeAtlas()
	wantShared(t, w, Config{URL: server.URL(), Password: func() string { return password }})
	wantShared(t, w, Config{URL: "redis://default@" + server.Addr() + "/3", Password: func() string { return password }})

	for name, tc := range map[string]struct {
		password func() string
		want     string
	}{
		"wrong": {func() string { return "planted-guess" }, "WRONGPASS"},
		"none":  {nil, "NOAUTH"},
	} {
		r := newReplicaWith(t, w, Config{URL: server.URL(), Password: tc.password})
		r.eventually("nothing is reported", func() bool { return strings.Contains(r.log.String(), tc.want) })
		r.wantMiss(user{orgA, "u"})
		if err := r.Check(); err == nil || strings.Contains(err.Error()+r.log.String(), "planted") {
			t.Errorf("%s: Check says %v, the log %s", name, err, r.log)
		}
	}
}

// TestRedisErrorIsNotQuoted keeps the password out of the log if the server quotes the command.
func TestRedisErrorIsNotQuoted(t *testing.T) {
	t.Parallel()
	addr := fakeRedis(t, func([]string) string { return "-ERR what is 'AUTH' 'planted-password'?\r\n" })
	r := newReplicaWith(t, newFakeAtlas(), Config{
		URL: "redis://" + addr, Password: func() string { return "planted-password" },
	})
	r.eventually("nothing is reported", func() bool { return strings.Contains(r.log.String(), "it replied with an error") })
	if err := r.Check(); err == nil || strings.Contains(err.Error()+r.log.String(), "planted") {
		t.Error("the password is in the log")
	}
}

func TestRedisUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "redis.sock")
	_ = redistest.Start(t, "--unixsocket", path)
	wantShared(t, newFakeAtlas(), Config{URL: "unix://" + path})
}

func TestRedisOverTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := writeCertificate(t, dir)
	port := freePort(t)
	_ = redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"))
	w := newFakeAtlas()
	wantShared(t, w, Config{URL: "rediss://127.0.0.1:" + port, RootCAs: func() *x509.CertPool { return ca }})

	for name, c := range map[string]Config{
		"the system's authorities": {URL: "rediss://127.0.0.1:" + port},
		"no authority":             {URL: "rediss://127.0.0.1:" + port, RootCAs: x509.NewCertPool},
		"another name":             {URL: "rediss://localhost:" + port, RootCAs: func() *x509.CertPool { return ca }},
		"no TLS":                   {URL: "redis://127.0.0.1:" + port},
	} {
		r := newReplicaWith(t, w, c)
		r.eventually(name+": nothing is reported", func() bool { return strings.Contains(r.log.String(), "Redis failed") })
	}
}

// TestTLSMismatch reports redis:// for rediss://, and the reverse, as the likely cause.
func TestTLSMismatch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := writeCertificate(t, dir)
	port := freePort(t)
	_ = redistest.Start(t, "--tls-port", port, "--tls-auth-clients", "no",
		"--tls-cert-file", filepath.Join(dir, "cert"), "--tls-key-file", filepath.Join(dir, "key"))
	plain := fakeRedis(t, func([]string) string { return "" })
	answers := listen(t, "-ERR unknown command\r\n")
	for url, want := range map[string]Error{
		"redis://127.0.0.1:" + port: ErrClosedConn,
		"redis://" + plain:          ErrClosedConn,
		"rediss://" + answers:       ErrNoTLS,
	} {
		r := newReplicaWith(t, newFakeAtlas(), Config{URL: url, RootCAs: func() *x509.CertPool { return ca }})
		r.eventually(url+": it is not named", func() bool { return strings.Contains(r.log.String(), string(want)) })
	}
}

// listen runs a server that answers whatever it reads first.
func listen(t *testing.T, answer string) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1))
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

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

// writeCertificate writes a certificate and key for 127.0.0.1, and returns its authority.
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
	t.Parallel()
	for _, url := range []string{
		"", "planted", "planted:6379", "redis:planted", "http://planted:6379", "redis://", "redis:///0", "redis://:6379",
		"redis://planted:port", "redis://planted:0", "redis://planted:65536", "redis://planted:1 ", "redis://planted\x00:1",
		"redis://user:planted@host:6379", "redis://:planted@host:6379", "rediss://user:@planted:6379",
		"redis://planted/zero", "redis://planted/-1", "redis://planted/1?addr=planted:1", "redis://planted/0/1", "redis://planted:1//", "redis://planted:1//1", "redis://planted:1/1/", "redis://planted#fragment", "redis://planted/%zz",
		"redis://planted?skip_verify=1", "rediss://planted?skip_verify", "redis://planted?client_cache=1", "redis://planted?db=1",
		"redis://planted?skip_verify=1;x", "redis://planted?addr", "redis://planted?addr=planted", "redis://planted?addr=planted:0",
		"redis://planted?addr=redis://planted:1", "redis://planted?master_set=", "redis://planted?master_set=a&master_set=b",
		"unix://", "unix://planted/path", "unix:///planted?addr=planted:1", "unix:planted", "unix://user:planted@/path",
	} {
		err := Config{URL: url}.Validate()
		if e := config.As(err); e == nil || e.Field != "Cache.Redis.URL" {
			t.Errorf("%q: %v, want an error about Cache.Redis.URL", url, err)
		} else if strings.Contains(err.Error(), "planted") {
			t.Errorf("%q is quoted: %v", url, err)
		}
		if s, err := New(Config{URL: url}); err == nil {
			s.Close()
			t.Errorf("%q: New accepts it", url)
		}
	}
	for _, url := range []string{
		"redis://host", "redis://host:6379", "redis://host:6379/", "redis://host:6379/1", "redis://user@host:6379", "rediss://host:6379",
		"redis://[::1]:6379", "redis://[::1]", "redis://a:1?addr=b:1&addr=[::1]:2", "redis://a:1?master_set=main",
		"redis://a:1/2?addr=b:1&master_set=main", "valkey://host", "valkeys://host", "unix:///run/redis.sock",
	} {
		if err := (Config{URL: url}).Validate(); err != nil {
			t.Errorf("%q: %v", url, err)
		}
	}
}
