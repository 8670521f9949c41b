package testutil

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
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

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// Async runs a call in the background.
func Async(ctx context.Context, c Caller, op Operation, headers ...string) <-chan Outcome {
	done := make(chan Outcome, 1)
	go func() { done <- c.Call(ctx, op, headers...) }()
	return done
}

// Operation is one of the two RPCs, by its REST verb.
type Operation string

// The two operations.
const (
	Create Operation = http.MethodPost
	Delete Operation = http.MethodDelete
)

// Outcome is the result of one call, in the same terms for both transports.
type Outcome struct {
	Code     codes.Code
	HTTP     int // 0 over gRPC
	Reason   string
	Metadata map[string]string
	Message  string
	Retry    time.Duration
	Token    string
	Header   map[string][]string // keys in lower case; over gRPC, trailers included
	Early    map[string][]string // gRPC only: headers that preceded the status
	Body     string              // REST only
	Verb     string              // REST only, of the request; so is Path
	Path     string
}

// Get returns the first value of a response header.
func (o Outcome) Get(name string) string {
	if v := o.Header[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Caller calls the service over one transport.
type Caller interface {
	// Call makes one call; headers is in pairs.
	Call(ctx context.Context, op Operation, headers ...string) Outcome
}

// Callers returns a client of each transport.
func (s *Service) Callers(t testing.TB) map[string]Caller {
	t.Helper()
	return map[string]Caller{"gRPC": s.GRPCCaller(t), "REST": s.RESTCaller(t)}
}

// GRPCCaller calls over gRPC.
type GRPCCaller struct {
	ephemeraltokenv1.EphemeralTokenServiceClient
}

// NewGRPCCaller returns a caller that uses conn.
func NewGRPCCaller(conn grpc.ClientConnInterface) GRPCCaller {
	return GRPCCaller{ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)}
}

// ClientTLS returns the TLS configuration of the default callers, nil for plaintext.
func (s *Service) ClientTLS() *tls.Config {
	if s.Mode == Plaintext {
		return nil
	}
	return s.Certs.ClientConfig(s.Mode)
}

// ClientTLSWith returns a configuration with this client certificate, or without one if it is nil.
func (s *Service) ClientTLSWith(cert *tls.Certificate) *tls.Config {
	cfg := s.Certs.ClientConfig(ServerTLS)
	// From Certificates, a client would not send one of a CA that the server does not name.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return &tls.Certificate{}, nil
		}
		return cert, nil
	}
	return cfg
}

// CallersAs returns callers with this client certificate, or without one if it is nil.
func (s *Service) CallersAs(t testing.TB, cert *tls.Certificate) map[string]Caller {
	t.Helper()
	cfg := s.ClientTLSWith(cert)
	return map[string]Caller{
		"gRPC": NewGRPCCaller(s.GRPCConnWith(t, cfg)),
		"REST": s.RESTCallerWith(t, cfg),
	}
}

// GRPCConn returns a connection like those of the default callers.
func (s *Service) GRPCConn(t testing.TB) *grpc.ClientConn {
	t.Helper()
	return s.GRPCConnWith(t, s.ClientTLS())
}

// GRPCConnWith returns a connection with this TLS configuration, in plaintext if it is nil.
func (s *Service) GRPCConnWith(t testing.TB, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if cfg != nil {
		creds = credentials.NewTLS(cfg)
	}
	conn, err := grpc.NewClient(s.GRPCAddr().String(), grpc.WithTransportCredentials(creds), s.DialOption())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// DialOption makes a client connect over the service's network.
func (s *Service) DialOption() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return s.DialContext(ctx, "tcp", addr) })
}

// GRPCCaller returns a caller with its own connection.
func (s *Service) GRPCCaller(t testing.TB) GRPCCaller {
	t.Helper()
	return NewGRPCCaller(s.GRPCConn(t))
}

// Call implements Caller.
func (c GRPCCaller) Call(ctx context.Context, op Operation, headers ...string) Outcome {
	ctx = metadata.AppendToOutgoingContext(ctx, headers...)
	var (
		out             Outcome
		err             error
		header, trailer metadata.MD
	)
	if op == Create {
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

// RESTExtra is how long a REST caller waits for a response after the deadline that it sends.
const RESTExtra = 30 * time.Second

// RESTCaller calls over REST.
type RESTCaller struct {
	Base   string
	Client *http.Client
}

// RESTCaller returns a caller with its own connections.
func (s *Service) RESTCaller(t testing.TB) RESTCaller {
	t.Helper()
	return s.RESTCallerWith(t, s.ClientTLS())
}

// RESTCallerWith is RESTCaller with this TLS configuration, plaintext if it is nil.
func (s *Service) RESTCallerWith(t testing.TB, cfg *tls.Config) RESTCaller {
	t.Helper()
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: cfg, DialContext: s.DialContext}
	c := RESTCaller{Base: "http://" + s.HTTPAddr().String(), Client: &http.Client{Transport: transport}}
	if cfg != nil {
		c.Base = "https://" + s.HTTPAddr().String()
	}
	t.Cleanup(transport.CloseIdleConnections)
	return c
}

// Call implements Caller.
func (c RESTCaller) Call(ctx context.Context, op Operation, headers ...string) Outcome {
	return c.Do(ctx, string(op), "/v1/ephemeral-token", nil, headers...)
}

// Do makes one request.
func (c RESTCaller) Do(ctx context.Context, verb, path string, body io.Reader, headers ...string) Outcome {
	req, err := http.NewRequestWithContext(ctx, verb, c.Base+path, body)
	if err != nil {
		return Outcome{Code: codes.Unknown, Message: "test: " + err.Error()}
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	if deadline, ok := ctx.Deadline(); ok && req.Header.Get("Grpc-Timeout") == "" {
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(time.Until(deadline).Milliseconds(), 10)+"m")
		// The test looks at the response, so the client waits longer than the deadline.
		longer, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Until(deadline)+RESTExtra)
		defer cancel()
		req = req.WithContext(longer)
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		return Outcome{Code: codes.Unknown, Message: "test: " + err.Error()}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return Outcome{Code: codes.Unknown, Message: "test: " + err.Error()}
	}
	out := Outcome{HTTP: resp.StatusCode, Body: string(data), Verb: verb, Path: path, Header: map[string][]string{}}
	for name, values := range resp.Header {
		out.Header[string(bytes.ToLower([]byte(name)))] = values
	}
	if resp.Close { // the client removes the header
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

func (o *Outcome) setStatus(st *status.Status) {
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

// GoodCalls makes calls over both transports, one after another, until stop. Each must succeed.
func (s *Service) GoodCalls(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for name, c := range s.Callers(t) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if got := c.Call(Context(t), Create, Credential(s.Atlas)...); got.Token == "" {
					t.Errorf("%s: a call failed: %v %s %s", name, got.Code, got.Reason, got.Message)
					return
				}
				select {
				case <-time.After(50 * time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}
