package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// operation is one of the two RPCs, by its REST verb.
type operation string

const (
	create operation = http.MethodPost
	remove operation = http.MethodDelete
)

// outcome is what a caller sees of one call, in the same terms on both transports.
type outcome struct {
	Code     codes.Code
	HTTP     int // 0 over gRPC
	Reason   string
	Metadata map[string]string
	Message  string
	Retry    time.Duration
	Token    string
	Header   map[string][]string // keys in lower case
	Body     string              // REST only
}

// header is the first value of a response header.
func (o outcome) header(name string) string {
	if v := o.Header[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// caller calls the service over one transport.
type caller interface {
	// call makes one call with the given header values; headers is in pairs.
	call(ctx context.Context, op operation, headers ...string) outcome
}

// security is how the listeners are protected.
type security string

const (
	plaintext security = "plaintext"
	serverTLS security = "TLS"
	mutualTLS security = "mTLS"
)

// service is a running server with its Atlas.
type service struct {
	*server.Server
	atlas *emulator.Emulator
	log   *lockedBuffer
	certs certificates
	mode  security
	stop  func() error
}

// lockedBuffer collects what the server logs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startService runs a server against an emulator of its own until the test ends. Changes are made to its configuration.
func startService(t testing.TB, mode security, changes ...func(*server.Config, *atlas.Config)) *service {
	t.Helper()
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return startServiceWith(t, mode, em, changes...)
}

func startServiceWith(t testing.TB, mode security, em *emulator.Emulator, changes ...func(*server.Config, *atlas.Config)) *service {
	t.Helper()
	s := &service{atlas: em, log: &lockedBuffer{}, mode: mode}
	cfg := server.Config{
		GRPCAddr:  "127.0.0.1:0",
		HTTPAddr:  "127.0.0.1:0",
		AdminAddr: "127.0.0.1:0",
		Logger:    slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if mode != plaintext {
		s.certs = makeCertificates(t)
		cfg.TLS = server.TLSFiles{CertFile: s.certs.certFile, KeyFile: s.certs.keyFile}
		if mode == mutualTLS {
			cfg.TLS.ClientCAFile = s.certs.caFile
		}
	}
	atlasCfg := atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()}
	for _, change := range changes {
		change(&cfg, &atlasCfg)
	}
	if cfg.Atlas == nil {
		client, err := atlas.New(atlasCfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.CloseIdleConnections)
		cfg.Atlas = client
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = srv
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

// callers are clients of every transport.
func (s *service) callers(t testing.TB) map[string]caller {
	t.Helper()
	return map[string]caller{"gRPC": s.grpcCaller(t), "REST": s.restCaller(t)}
}

type grpcCaller struct {
	ephemeraltokenv1.EphemeralTokenServiceClient
}

func (s *service) grpcConn(t testing.TB) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if s.mode != plaintext {
		creds = credentials.NewTLS(s.certs.clientConfig(s.mode))
	}
	conn, err := grpc.NewClient(s.GRPCAddr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *service) grpcCaller(t testing.TB) grpcCaller {
	t.Helper()
	return grpcCaller{ephemeraltokenv1.NewEphemeralTokenServiceClient(s.grpcConn(t))}
}

func (c grpcCaller) call(ctx context.Context, op operation, headers ...string) outcome {
	ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	var (
		out             outcome
		err             error
		header, trailer metadata.MD
	)
	if op == create {
		var resp *ephemeraltokenv1.CreateTokenResponse
		resp, err = c.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
		out.Token = resp.GetToken()
	} else {
		_, err = c.DeleteToken(ctx, &ephemeraltokenv1.DeleteTokenRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
	}
	out.Header = metadata.Join(header, trailer)
	out.setStatus(status.Convert(err))
	return out
}

type restCaller struct {
	base   string
	client *http.Client
}

func (s *service) restCaller(t testing.TB) restCaller {
	t.Helper()
	transport := &http.Transport{ForceAttemptHTTP2: true}
	c := restCaller{base: "http://" + s.HTTPAddr().String(), client: &http.Client{Transport: transport}}
	if s.mode != plaintext {
		c.base = "https://" + s.HTTPAddr().String()
		transport.TLSClientConfig = s.certs.clientConfig(s.mode)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

func (c restCaller) call(ctx context.Context, op operation, headers ...string) outcome {
	return c.do(ctx, string(op), "/v1/ephemeral-token", nil, headers...)
}

func (c restCaller) do(ctx context.Context, verb, path string, body io.Reader, headers ...string) outcome {
	req, err := http.NewRequestWithContext(ctx, verb, c.base+path, body)
	if err != nil {
		return outcome{Code: codes.Unknown, Message: "test: " + err.Error()}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	if deadline, ok := ctx.Deadline(); ok && req.Header.Get("Grpc-Timeout") == "" {
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(time.Until(deadline).Milliseconds(), 10)+"m")
		// The answer is what is looked at, so the client itself waits a little longer.
		longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Until(deadline)+5*time.Second)
		defer cancel()
		req = req.WithContext(longer)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return outcome{Code: codes.Unknown, Message: "test: " + err.Error()}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return outcome{Code: codes.Unknown, Message: "test: " + err.Error()}
	}
	out := outcome{HTTP: resp.StatusCode, Body: string(data), Header: map[string][]string{}}
	for name, values := range resp.Header {
		out.Header[string(bytes.ToLower([]byte(name)))] = values
	}
	if resp.StatusCode >= 400 {
		var st rpcstatus.Status
		if err := protojson.Unmarshal(data, &st); err != nil {
			out.Code, out.Message = codes.Unknown, "test: not a google.rpc.Status: "+string(data)
			return out
		}
		out.setStatus(status.FromProto(&st))
		return out
	}
	if len(data) > 0 {
		var token struct {
			Token string `json:"token"`
		}
		if err := json.Unmarshal(data, &token); err != nil {
			out.Code, out.Message = codes.Unknown, "test: "+err.Error()
		}
		out.Token = token.Token
	}
	return out
}

func (o *outcome) setStatus(st *status.Status) {
	o.Code, o.Message = st.Code(), st.Message()
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			o.Reason, o.Metadata = d.GetReason(), d.GetMetadata()
			if d.GetDomain() != "ephemeraltoken.forsta.io" {
				o.Reason = "wrong domain " + d.GetDomain()
			}
		case *errdetails.RetryInfo:
			o.Retry = d.GetRetryDelay().AsDuration()
		}
	}
}

// certificates are a test's own authority, and what it signed.
type certificates struct {
	caFile, certFile, keyFile string
	ca                        authority
	pool                      *x509.CertPool
	client                    tls.Certificate
	stranger                  tls.Certificate // signed by another authority
}

func makeCertificates(t testing.TB) certificates {
	t.Helper()
	dir := t.TempDir()
	ca := newAuthority(t)
	other := newAuthority(t)
	c := certificates{
		caFile:   filepath.Join(dir, "ca.pem"),
		certFile: filepath.Join(dir, "server.pem"),
		keyFile:  filepath.Join(dir, "server.key"),
		ca:       ca,
		pool:     x509.NewCertPool(),
		client:   ca.issue(t, "client.test"),
		stranger: other.issue(t, "client.test"),
	}
	c.pool.AddCert(ca.cert)
	writePEM(t, c.caFile, "CERTIFICATE", ca.cert.Raw)
	leaf := ca.issue(t, "localhost")
	writePEM(t, c.certFile, "CERTIFICATE", leaf.Certificate[0])
	writePEM(t, c.keyFile, "PRIVATE KEY", marshalKey(t, leaf))
	return c
}

func (c certificates) clientConfig(mode security) *tls.Config {
	cfg := &tls.Config{RootCAs: c.pool, MinVersion: tls.VersionTLS12}
	if mode == mutualTLS {
		cfg.Certificates = []tls.Certificate{c.client}
	}
	return cfg
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	return newAuthorityUntil(t, time.Now().Add(time.Hour))
}

func newAuthorityUntil(t testing.TB, notAfter time.Time) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) issue(t testing.TB, name string) tls.Certificate {
	t.Helper()
	return a.issueUntil(t, name, time.Now().Add(time.Hour))
}

func (a authority) issueUntil(t testing.TB, name string, notAfter time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func marshalKey(t testing.TB, cert tls.Certificate) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, encodePEM(kind, der), 0o600); err != nil {
		t.Fatal(err)
	}
}
