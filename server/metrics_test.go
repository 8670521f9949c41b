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
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestMetrics: /metrics has what the program registers beside the server's own, and is on the admin
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
		t.Error("it tells of certificates, and there are none")
	}
	testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), http.MethodGet, "/metrics", nil))

	if srv, err := server.New(server.Config{HTTPAddr: "127.0.0.1:0", Atlas: &atlas.Client{}, Metrics: registry}); err == nil {
		srv.Close()
		t.Error("two servers share a registry: the second would not be seen")
	}
}

// metric is the value of a series in what /metrics says, -1 if it is not there.
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

// TestCallMetrics: calls over both transports are told apart, and what is refused before it is a
// call has its reason counted and makes no label.
func TestCallMetrics(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	const labels = `{grpc_code=%q,grpc_method="CreateToken",grpc_service="forsta.ephemeraltoken.v1.EphemeralTokenService",grpc_type="unary",transport=%q}`
	for name, c := range s.Callers(t) {
		transport := map[string]string{"gRPC": "grpc", "REST": "rest"}[name]
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(s.Atlas)...))
		testutil.WantMissing.Check(t, c.Call(testutil.Context(t), testutil.Create))
		for series, want := range map[string]float64{
			"grpc_server_handled_total" + fmt.Sprintf(labels, "OK", transport):                            1,
			"grpc_server_handled_total" + fmt.Sprintf(labels, "Unauthenticated", transport):               1,
			fmt.Sprintf(`tokend_calls_failed_total{reason="CREDENTIAL_MISSING",transport=%q}`, transport): 1,
			fmt.Sprintf(`tokend_calls_failed_total{reason="ROUTE_NOT_FOUND",transport=%q}`, transport):    0,
			fmt.Sprintf(`tokend_calls_in_flight{transport=%q}`, transport):                                0,
			"tokend_calls_in_flight_limit":                         4096,
			"tokend_ready":                                         1,
			`tokend_connections_open_limit{listener="admin"}`:      64,
			`tokend_tls_handshake_failures_total{listener="gRPC"}`: 0,
		} {
			testutil.Eventually(t, func() bool { return metric(t, s, series) == want }, series) // an answer may be there before it is counted
		}
	}
	testutil.WantNoRoute.Check(t, s.RESTCaller(t).Do(testutil.Context(t), http.MethodGet, "/planted", nil))
	_ = s.GRPCConn(t).Invoke(testutil.Context(t), "/planted/Planted", &ephemeraltokenv1.CreateTokenRequest{}, &ephemeraltokenv1.CreateTokenResponse{})
	for _, transport := range []string{"grpc", "rest"} {
		series := fmt.Sprintf(`tokend_calls_failed_total{reason="ROUTE_NOT_FOUND",transport=%q}`, transport)
		testutil.Eventually(t, func() bool { return metric(t, s, series) == 1 }, series)
	}
	if strings.Contains(strings.ToLower(s.Metrics(t)), "planted") {
		t.Error("a caller has made a label")
	}
}

// TestFailedHandshakes: each is counted and a line of the log, on either listener, with peer and
// cause: no TLS at all, no certificate, one of a foreign CA. A probe that only connects is not one.
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
		wantFailedHandshake(t, s, listener, 1, "the client speaks no TLS")
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

// TestRefusedByClient: where the client refuses the server's certificate, the line says so, also
// for clients that tell of it as OpenSSL does: without encryption, at a time when everything else
// has it.
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
	testutil.Eventually(t, func() bool { return metric(t, s, series) == count && line.MatchString(s.Log.String()) }, fmt.Sprintf("%s is not %v, or there is no line with %s", series, count, cause))
}

// TestIdentityMetrics: how a profile is, before its first login, with a JWT, and refused.
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
	s.Source.SecretChanged()
	testutil.WantCreated.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), testutil.Create))
	want(1, 0, "last_failure next_renewal issued expiry")
}
