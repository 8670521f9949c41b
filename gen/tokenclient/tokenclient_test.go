package tokenclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/gen/tokenclient"
)

// fake is a service that accepts a client certificate or the JWT a.atlas.c.
type fake struct {
	ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer
	failures atomic.Int32 // how many calls are UNAVAILABLE first
}

func (f *fake) CreateToken(ctx context.Context, _ *ephemeraltokenv1.CreateTokenRequest) (*ephemeraltokenv1.CreateTokenResponse, error) {
	if f.failures.Add(-1) >= 0 {
		return nil, failure(codes.Unavailable, "ATLAS_UNREACHABLE", nil, time.Millisecond)
	}
	ok := &ephemeraltokenv1.CreateTokenResponse{Token: "the-token"}
	if p, _ := peer.FromContext(ctx); p != nil {
		if info, _ := p.AuthInfo.(credentials.TLSInfo); len(info.State.VerifiedChains) > 0 {
			return ok, nil
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	switch strings.Join(md.Get("authorization"), ",") {
	case "Bearer a.atlas.c":
		return ok, nil
	case "":
		return nil, failure(codes.Unauthenticated, "CREDENTIAL_MISSING", nil, 0)
	}
	return nil, failure(codes.Unauthenticated, "CALLER_REJECTED", nil, 0)
}

func (f *fake) DeleteToken(context.Context, *ephemeraltokenv1.DeleteTokenRequest) (*ephemeraltokenv1.DeleteTokenResponse, error) {
	if f.failures.Add(-1) >= 0 {
		return nil, failure(codes.Unavailable, "ATLAS_UNREACHABLE", nil, time.Millisecond)
	}
	return &ephemeraltokenv1.DeleteTokenResponse{}, nil
}

// failure returns an error as the service sends it.
func failure(code codes.Code, reason string, metadata map[string]string, delay time.Duration) error {
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: tokenclient.Domain, Metadata: metadata}}
	if delay > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
	}
	st, err := status.New(code, "a message").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return st.Err()
}

// TestMain starts the service that the examples call.
func TestMain(m *testing.M) {
	code, err := withService(m.Run)
	if err != nil {
		panic(err)
	}
	os.Exit(code)
}

func withService(run func() int) (int, error) {
	var err error
	if dir, err = os.MkdirTemp("", "tokenclient"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	config, err := writeFiles(dir)
	if err != nil {
		return 0, err
	}
	addr, stop, err := serve(&fake{}, grpc.Creds(credentials.NewTLS(config)))
	if err != nil {
		return 0, err
	}
	defer stop()
	target = "dns:///" + addr
	return run(), nil
}

// writeFiles writes the files of a client and returns the configuration of the server.
func writeFiles(dir string) (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{ // the authority, the server and the client at once
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, content := range map[string][]byte{
		"ca.pem": certPEM, "client.pem": certPEM, "client-key.pem": keyPEM,
		"atlas.jwt": []byte("a.atlas.c\n"), "oidc.jwt": []byte("an.expired.one\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, MinVersion: tls.VersionTLS13,
	}, nil
}

func serve(f *fake, options ...grpc.ServerOption) (addr string, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := grpc.NewServer(options...)
	ephemeraltokenv1.RegisterEphemeralTokenServiceServer(server, f)
	serving := health.NewServer()
	serving.SetServingStatus(ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, serving)
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), server.Stop, nil
}

// dialFake connects to a service without TLS.
func dialFake(t *testing.T, f *fake, options ...grpc.DialOption) ephemeraltokenv1.EphemeralTokenServiceClient {
	t.Helper()
	addr, stop, err := serve(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	options = append(options, tokenclient.DialOptions()...)
	conn, err := grpc.NewClient("dns:///"+addr, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
}

func source(jwt string, err error) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return jwt, err }
}

// TestRetries checks that the service config is in use: a create is retried, a delete is not.
func TestRetries(t *testing.T) {
	f := &fake{}
	tokens := dialFake(t, f)
	jwt := grpc.PerRPCCredentials(tokenclient.JWT{Source: source("a.atlas.c", nil), AllowPlaintext: true})

	f.failures.Store(2)
	if _, err := tokens.CreateToken(t.Context(), &ephemeraltokenv1.CreateTokenRequest{}, jwt); err != nil {
		t.Errorf("create: %v", err)
	}
	f.failures.Store(3)
	_, err := tokens.CreateToken(t.Context(), &ephemeraltokenv1.CreateTokenRequest{}, jwt)
	if delay, ok := tokenclient.RetryDelay(err); tokenclient.Reason(err) != ephemeraltokenv1.ErrorReason_ERROR_REASON_ATLAS_UNREACHABLE || !ok {
		t.Errorf("create after three failures: %v, delay %v", err, delay)
	}
	f.failures.Store(1)
	if _, err := tokens.DeleteToken(t.Context(), &ephemeraltokenv1.DeleteTokenRequest{}, jwt); status.Code(err) != codes.Unavailable {
		t.Errorf("delete: %v, want UNAVAILABLE", err)
	}
}

// TestJWT checks that a bad credential fails the call. It is that of the connection, so health
// checks have it as well.
func TestJWT(t *testing.T) {
	for _, tt := range []struct {
		name string
		jwt  tokenclient.JWT
		want string // in the error
	}{
		{"empty", tokenclient.JWT{Source: source("\n", nil), AllowPlaintext: true}, "something else"},
		{"scheme", tokenclient.JWT{Source: source("JWT a.atlas.c", nil), AllowPlaintext: true}, "without a scheme"},
		{"newline", tokenclient.JWT{Source: source("a.at\nlas.c", nil), AllowPlaintext: true}, "something else"},
		{"failed source", tokenclient.JWT{Source: source("", errors.New("login failed")), AllowPlaintext: true}, "login failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tokens := dialFake(t, &fake{}, grpc.WithPerRPCCredentials(tt.jwt))
			_, err := tokens.CreateToken(t.Context(), &ephemeraltokenv1.CreateTokenRequest{})
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "las.c") {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("plaintext", func(t *testing.T) {
		jwt := grpc.PerRPCCredentials(tokenclient.JWT{Source: source("a.atlas.c", nil)})
		_, err := dialFake(t, &fake{}).CreateToken(t.Context(), &ephemeraltokenv1.CreateTokenRequest{}, jwt)
		if err == nil || !strings.Contains(err.Error(), "insecure connection") {
			t.Errorf("error %v, want that the connection is insecure", err)
		}
	})
}

func TestErrors(t *testing.T) {
	other, err := status.New(codes.Internal, "other").WithDetails(&errdetails.ErrorInfo{Reason: "OVERLOADED", Domain: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	const unspecified = ephemeraltokenv1.ErrorReason_ERROR_REASON_UNSPECIFIED
	for _, tt := range []struct {
		name    string
		err     error
		reason  ephemeraltokenv1.ErrorReason
		delay   time.Duration
		deleted bool
	}{
		{name: "nil"},
		{name: "no status", err: errors.New("x")},
		{name: "no details", err: status.Error(codes.Unavailable, "x")},
		{name: "another domain", err: other.Err(), reason: unspecified},
		{name: "unknown reason", err: failure(codes.Internal, "NEW", nil, 0), reason: unspecified},
		{name: "reason", err: failure(codes.Unauthenticated, "CREDENTIAL_MISSING", nil, 0), reason: ephemeraltokenv1.ErrorReason_ERROR_REASON_CREDENTIAL_MISSING},
		{
			name: "delay", err: failure(codes.ResourceExhausted, "OVERLOADED", nil, 1500*time.Millisecond),
			reason: ephemeraltokenv1.ErrorReason_ERROR_REASON_OVERLOADED, delay: 1500 * time.Millisecond,
		},
		{name: "unknown outcome", err: failure(codes.Unknown, "DELETE_OUTCOME_UNKNOWN", nil, 0), reason: ephemeraltokenv1.ErrorReason_ERROR_REASON_DELETE_OUTCOME_UNKNOWN, deleted: true},
		{
			name: "cancelled after it was sent", err: failure(codes.Canceled, "CANCELLED", map[string]string{"outcome": "unknown"}, 0),
			reason: ephemeraltokenv1.ErrorReason_ERROR_REASON_CANCELLED, deleted: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			delay, ok := tokenclient.RetryDelay(tt.err)
			if got := tokenclient.Reason(tt.err); got != tt.reason || delay != tt.delay || ok != (tt.delay > 0) || tokenclient.MayHaveDeleted(tt.err) != tt.deleted {
				t.Errorf("reason %v, delay %v (%v), may have deleted %v", got, delay, ok, tokenclient.MayHaveDeleted(tt.err))
			}
		})
	}
}
