package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// processors are those who may work at a time.
var processors = make(chan struct{}, runtime.GOMAXPROCS(0))

// parallelWork is t.Parallel for a test that works rather than waits: no more of these run at a time than there are processors, so
// that each has the time which its deadlines give it.
func parallelWork(t *testing.T) {
	t.Helper()
	t.Parallel()
	processors <- struct{}{}
	t.Cleanup(func() { <-processors })
}

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
	Header   map[string][]string // keys in lower case; over gRPC, trailers are among them
	Early    map[string][]string // gRPC only: what came in headers, ahead of the status
	Body     string              // REST only
	Verb     string              // REST only, of the request, as is
	Path     string
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

	resilient *resilient.Client // nil if a test brings its own Atlas
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
		cfg.Metrics = prometheus.NewRegistry()
		s.certs.watch(t, &cfg, mode)
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
		s.resilient = newResilient(t, client)
		cfg.Atlas = s.resilient
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

// clientTLS is the configuration of the default callers, nil for plaintext.
func (s *service) clientTLS() *tls.Config {
	if s.mode == plaintext {
		return nil
	}
	return s.certs.clientConfig(s.mode)
}

// clientTLSWith shows this certificate, or none if it is nil.
func (s *service) clientTLSWith(cert *tls.Certificate) *tls.Config {
	cfg := s.certs.clientConfig(serverTLS)
	// By Certificates, a client would keep back one of an authority that the server does not name.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return &tls.Certificate{}, nil
		}
		return cert, nil
	}
	return cfg
}

// callersAs are clients of every transport that show this certificate, or none if it is nil.
func (s *service) callersAs(t testing.TB, cert *tls.Certificate) map[string]caller {
	t.Helper()
	cfg := s.clientTLSWith(cert)
	return map[string]caller{
		"gRPC": grpcCaller{ephemeraltokenv1.NewEphemeralTokenServiceClient(s.grpcConnWith(t, cfg))},
		"REST": s.restCallerWith(t, cfg),
	}
}

func (s *service) grpcConn(t testing.TB) *grpc.ClientConn {
	t.Helper()
	return s.grpcConnWith(t, s.clientTLS())
}

func (s *service) grpcConnWith(t testing.TB, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if cfg != nil {
		creds = credentials.NewTLS(cfg)
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
	out.Header, out.Early = metadata.Join(header, trailer), header
	out.setStatus(status.Convert(err))
	return out
}

type restCaller struct {
	base   string
	client *http.Client
}

func (s *service) restCaller(t testing.TB) restCaller {
	t.Helper()
	return s.restCallerWith(t, s.clientTLS())
}

func (s *service) restCallerWith(t testing.TB, cfg *tls.Config) restCaller {
	t.Helper()
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: cfg}
	c := restCaller{base: "http://" + s.HTTPAddr().String(), client: &http.Client{Transport: transport}}
	if cfg != nil {
		c.base = "https://" + s.HTTPAddr().String()
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
	out := outcome{HTTP: resp.StatusCode, Body: string(data), Verb: verb, Path: path, Header: map[string][]string{}}
	for name, values := range resp.Header {
		out.Header[string(bytes.ToLower([]byte(name)))] = values
	}
	if resp.Close { // the client keeps the header back
		out.Header["connection"] = []string{"close"}
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
