package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestMetrics checks that /metrics includes the program's own metrics, and is served on the admin
// listener only.
func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	early := prometheus.NewCounter(prometheus.CounterOpts{Name: "early_total", Help: "Registered before the server is made."})
	registry.MustRegister(early)
	s := testutil.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.Metrics = registry })
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "late", Help: "Registered after."}, func() float64 { return 7 }))
	early.Add(3)
	code, body := s.Get(t, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("/metrics: %d %q", code, body)
	}
	for _, want := range []string{"\nearly_total 3\n", "\nlate 7\n", "\ngo_goroutines ", "\nprocess_start_time_seconds "} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
	if strings.Contains(body, "tokend_certificate") {
		t.Error("there are certificate metrics without certificates")
	}
	testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), http.MethodGet, "/metrics", nil))

	if srv, err := server.New(server.Config{HTTPAddr: "127.0.0.1:0", Atlas: &atlas.Client{}, Metrics: registry}); err == nil {
		srv.Close()
		t.Error("two servers share a registry")
	}
}

// metric returns the value of a series in /metrics, -1 if it is missing.
func metric(t *testing.T, s *testutil.Service, series string) float64 {
	t.Helper()
	_, rest, found := strings.Cut("\n"+s.Metrics(t), "\n"+series+" ")
	if !found {
		return -1
	}
	text, _, _ := strings.Cut(rest, "\n")
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// TestFailedHandshakes checks that each failed handshake is counted and logged with peer and cause,
// on either listener. A probe that only connects is not a failed handshake.
func TestFailedHandshakes(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.MutualTLS)
	for listener, addr := range map[string]net.Addr{"gRPC": s.GRPCAddr(), "HTTP": s.HTTPAddr()} {
		for _, first := range []string{"", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
			conn, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, first); err != nil {
				t.Fatal(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, conn) // until the server has closed it
			_ = conn.Close()
		}
		wantFailedHandshake(t, s, listener, 1, "the client does not use TLS")
	}
	s.CheckNoHandshake(t, nil)
	for _, listener := range []string{"gRPC", "HTTP"} {
		wantFailedHandshake(t, s, listener, 2, "tls: client didn't provide a certificate")
	}
	s.CheckNoHandshake(t, &s.Certs.Untrusted)
	for _, listener := range []string{"gRPC", "HTTP"} {
		wantFailedHandshake(t, s, listener, 3, "tls: failed to verify certificate: x509: certificate signed by unknown authority")
	}
}

// TestRefusedByClient checks the log line when a client refuses the server's certificate. OpenSSL
// sends that alert unencrypted when everything else is encrypted.
func TestRefusedByClient(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.ServerTLS)
	for listener, addr := range map[string]net.Addr{"gRPC": s.GRPCAddr(), "HTTP": s.HTTPAddr()} {
		for i, tc := range []struct {
			wrap func(net.Conn) net.Conn
			want string
		}{
			{func(c net.Conn) net.Conn { return c }, "remote error: tls: bad certificate"},
			{func(c net.Conn) net.Conn { return plainAlerts{c} }, "the client refuses this server's certificate, most likely: tls: bad record MAC"},
		} {
			conn, err := net.Dial("tcp", addr.String())
			if err != nil {
				t.Fatal(err)
			}
			if err := tls.Client(tc.wrap(conn), &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}).Handshake(); err == nil {
				t.Error("the client trusts the server")
			}
			wantFailedHandshake(t, s, listener, float64(i+1), tc.want)
			_ = conn.Close()
		}
	}
}

// plainAlerts sends an alert unencrypted in place of the encrypted records.
type plainAlerts struct{ net.Conn }

func (c plainAlerts) Write(records []byte) (int, error) {
	var sent []byte
	for left := records; len(left) > 0; {
		record := left[:5+int(binary.BigEndian.Uint16(left[3:]))] // RFC 8446 §5.1
		left = left[len(record):]
		if record[0] == 23 { // application data, as all that is encrypted
			record = []byte{21, 3, 3, 0, 2, 2, 48} // a fatal alert: unknown CA
		}
		sent = append(sent, record...)
	}
	_, err := c.Conn.Write(sent)
	return len(records), err
}

func wantFailedHandshake(t *testing.T, s *testutil.Service, listener string, count float64, cause string) {
	t.Helper()
	series := fmt.Sprintf(`tokend_tls_handshake_failures_total{listener=%q}`, listener)
	line := regexp.MustCompile(fmt.Sprintf(`"level":"WARN","msg":"TLS handshake failed","listener":%q,"peer":"127\.0\.0\.1:\d+","cause":"%s`, listener, regexp.QuoteMeta(cause)))
	testutil.Eventually(t, func() bool { return metric(t, s, series) == count && line.MatchString(s.Log.String()) }, fmt.Sprintf("%s is not %v, or no log line has %s", series, count, cause))
}

// TestIdentityMetrics checks a profile's metrics before its first login, when refused, and with a
// JWT.
func TestIdentityMetrics(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	want := func(valid, refused float64, times string) {
		t.Helper()
		if metric(t, s.Service, `tokend_identity_valid{profile="acme"}`) != valid || metric(t, s.Service, `tokend_identity_refused{profile="acme"}`) != refused {
			t.Errorf("want valid %v, refused %v in\n%s", valid, refused, s.Metrics(t))
		}
		for _, name := range []string{"issued", "expiry", "next_renewal", "last_failure"} {
			if there := metric(t, s.Service, "tokend_identity_"+name+`_timestamp_seconds{profile="acme"}`) > 0; there != strings.Contains(times, name) {
				t.Errorf("%s is there: %v", name, there)
			}
		}
	}
	want(0, 0, "")
	s.Atlas.Inject(emulator.Fault{On: emulator.Login, Status: http.StatusBadRequest, Times: 1})
	testutil.WantServiceRejected.CheckRetry(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create), time.Second, time.Minute)
	want(0, 1, "last_failure next_renewal")
	s.Identity.SecretChanged()
	testutil.WantCreated.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create))
	want(1, 0, "last_failure next_renewal issued expiry")
}
