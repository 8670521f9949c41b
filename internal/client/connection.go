package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/gen/tokenclient"
)

// settings says where tokend is and who is calling.
type settings struct {
	Addr, CAFile, CertFile, KeyFile, JWTFile string
	Plaintext                                bool
	Timeout                                  time.Duration
	JWT                                      string // of the environment
}

// connection is a connection to a tokend and the credential of the calls.
type connection struct {
	*grpc.ClientConn

	settings settings
	tokens   ephemeraltokenv1.EphemeralTokenServiceClient
	trailer  metadata.MD // of the last call
}

// connect checks the settings. grpc-go connects when the first call is made.
func (s settings) connect() (*connection, error) {
	transport, err := s.transport()
	if err != nil {
		return nil, err
	}
	jwt, err := s.jwt()
	if err != nil {
		return nil, err
	}
	if s.Timeout <= 0 {
		return nil, errors.New("--timeout: must be above zero, such as 10s")
	}
	options := append(tokenclient.DialOptions(),
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("tokend-cli"),
	)
	if jwt != "" {
		options = append(options, grpc.WithPerRPCCredentials(tokenclient.JWT{
			Source:         func(context.Context) (string, error) { return jwt, nil },
			AllowPlaintext: s.Plaintext,
		}))
	}
	conn, err := grpc.NewClient(s.target(), options...)
	if err != nil {
		return nil, fmt.Errorf("--addr: %w", err)
	}
	return &connection{ClientConn: conn, settings: s, tokens: ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)}, nil
}

func (s settings) target() string {
	if strings.HasPrefix(s.Addr, "unix:") || strings.Contains(s.Addr, ":///") {
		return s.Addr
	}
	return "dns:///" + s.Addr
}

// transport returns TLS, or plaintext if that is asked for.
func (s settings) transport() (credentials.TransportCredentials, error) {
	if s.Plaintext {
		if s.CAFile != "" || s.CertFile != "" || s.KeyFile != "" {
			return nil, errors.New("--plaintext: without TLS there are no certificates; leave it out, or --ca-file, --cert-file and --key-file")
		}
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca-file: %s has no certificate in PEM", s.CAFile)
		}
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return nil, errors.New("--cert-file and --key-file: give both or neither")
	}
	if s.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(s.CertFile, s.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("--cert-file and --key-file: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(config), nil
}

// jwt returns the JWT to send, if any. No error quotes it.
func (s settings) jwt() (string, error) {
	if s.JWTFile == "" {
		return s.JWT, nil
	}
	if s.JWT != "" {
		return "", errors.New("--jwt-file: $ATLAS_JWT is set as well; unset it")
	}
	content, err := os.ReadFile(s.JWTFile)
	if err != nil {
		return "", fmt.Errorf("--jwt-file: %w", err)
	}
	const byteOrderMark = "\ufeff"
	jwt := strings.TrimSpace(strings.TrimPrefix(string(content), byteOrderMark))
	if jwt == "" {
		return "", fmt.Errorf("--jwt-file: %s is empty", s.JWTFile)
	}
	return jwt, nil
}

// options are those of a call: it fails at once if there is no connection, and notes its metadata.
func (c *connection) options(header *metadata.MD) []grpc.CallOption {
	return []grpc.CallOption{grpc.WaitForReady(false), grpc.Header(header), grpc.Trailer(&c.trailer)}
}
