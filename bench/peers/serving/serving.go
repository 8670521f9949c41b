// Package serving has the flags, TLS and listeners of the peers in Go.
package serving

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Settings are the flags of a peer. With a certificate it requires client certificates; without one
// it serves in plaintext.
type Settings struct {
	GRPCAddr, HTTPAddr          string // empty: off
	certFile, keyFile, clientCA string
}

// Declare defines the flags.
func (s *Settings) Declare() {
	flag.StringVar(&s.GRPCAddr, "grpc-addr", "", "where to serve gRPC")
	flag.StringVar(&s.HTTPAddr, "http-addr", "", "where to serve REST")
	flag.StringVar(&s.certFile, "tls-cert-file", "", "certificate, PEM")
	flag.StringVar(&s.keyFile, "tls-key-file", "", "its key, PEM")
	flag.StringVar(&s.clientCA, "tls-client-ca-file", "", "who signs the certificates of clients, PEM")
}

// Roots reads trusted certificates.
func Roots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", file)
	}
	return pool, nil
}

// tls returns the configuration of servers and clients, nil for plaintext.
func (s *Settings) tls() (*tls.Config, error) {
	if s.certFile == "" {
		return nil, nil //nolint:nilnil // no TLS, and no mistake
	}
	cert, err := tls.LoadX509KeyPair(s.certFile, s.keyFile)
	if err != nil {
		return nil, err
	}
	roots, err := Roots(s.clientCA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, RootCAs: roots,
	}, nil
}

// NewGRPCServer returns a grpc-go server with its defaults.
func (s *Settings) NewGRPCServer() (*grpc.Server, error) {
	cfg, err := s.tls()
	if err != nil || cfg == nil {
		return grpc.NewServer(), err
	}
	return grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg))), nil
}

// DialItself returns the dial options for the server's own gRPC address.
func (s *Settings) DialItself() ([]grpc.DialOption, error) {
	cfg, err := s.tls()
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		return []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(cfg))}, nil
}

// Run serves on the addresses that are set until a server fails.
func (s *Settings) Run(calls *grpc.Server, rest http.Handler) error {
	failed := make(chan error, 2)
	if s.GRPCAddr != "" {
		l, err := net.Listen("tcp", s.GRPCAddr)
		if err != nil {
			return err
		}
		go func() { failed <- calls.Serve(l) }()
	}
	if s.HTTPAddr != "" {
		go func() { failed <- s.runHTTP(rest) }()
	}
	return <-failed
}

func (s *Settings) runHTTP(rest http.Handler) error {
	cfg, err := s.tls()
	if err != nil {
		return err
	}
	server := &http.Server{Addr: s.HTTPAddr, Handler: rest, TLSConfig: cfg, ReadHeaderTimeout: 10 * time.Second}
	if cfg != nil {
		return server.ListenAndServeTLS("", "")
	}
	return server.ListenAndServe()
}

// Exit prints the error and ends the process.
func Exit(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
