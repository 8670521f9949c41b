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

	"github.com/ForstaLabs/ephemeral-token-service/gen/tokenclient"
)

// options says where tokend is and who is calling.
type options struct {
	Addr, CAFile, CertFile, KeyFile, JWTFile string
	Plaintext                                bool
	Timeout                                  time.Duration
	JWT                                      string // of the environment
}

// connect checks the options. grpc-go connects when the first call is made.
func (o options) connect() (*grpc.ClientConn, error) {
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	jwt, err := o.jwt()
	if err != nil {
		return nil, err
	}
	if o.Timeout <= 0 {
		return nil, errors.New("--timeout: must be above zero, such as 10s")
	}
	opts := append(tokenclient.DialOptions(),
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("tokend-cli"),
	)
	if jwt != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(tokenclient.JWT{
			Source:         func(context.Context) (string, error) { return jwt, nil },
			AllowPlaintext: o.Plaintext,
		}))
	}
	conn, err := grpc.NewClient(o.target(), opts...)
	if err != nil {
		return nil, fmt.Errorf("--addr: %w", err)
	}
	return conn, nil
}

func (o options) target() string {
	if strings.HasPrefix(o.Addr, "unix:") || strings.Contains(o.Addr, ":///") {
		return o.Addr
	}
	return "dns:///" + o.Addr
}

// transport returns TLS, or plaintext if that is asked for.
func (o options) transport() (credentials.TransportCredentials, error) {
	if o.Plaintext {
		if o.CAFile != "" || o.CertFile != "" || o.KeyFile != "" {
			return nil, errors.New("--plaintext: without TLS there are no certificates; leave it out, or --ca-file, --cert-file and --key-file")
		}
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--ca-file: %s has no certificate in PEM", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("--cert-file and --key-file: give both or neither")
	}
	if o.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("--cert-file and --key-file: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return credentials.NewTLS(config), nil
}

// jwt returns the JWT to send, if any. No error quotes it.
func (o options) jwt() (string, error) {
	if o.JWTFile == "" {
		return o.JWT, nil
	}
	if o.JWT != "" {
		return "", errors.New("--jwt-file: $ATLAS_JWT is set as well; unset it")
	}
	content, err := os.ReadFile(o.JWTFile)
	if err != nil {
		return "", fmt.Errorf("--jwt-file: %w", err)
	}
	const byteOrderMark = "\ufeff"
	jwt := strings.TrimSpace(strings.TrimPrefix(string(content), byteOrderMark))
	if jwt == "" {
		return "", fmt.Errorf("--jwt-file: %s is empty", o.JWTFile)
	}
	return jwt, nil
}
