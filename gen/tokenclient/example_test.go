package tokenclient_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/gen/tokenclient"
)

// The examples read their files in dir and call the service at target, such as
// dns:///tokend.internal:9090.
var dir, target string

// Pass-through: the service calls Atlas with your own Atlas JWT.
func Example_passThrough() {
	serverCAs, err := readCAs(filepath.Join(dir, "ca.pem"))
	if err != nil {
		log.Fatal(err)
	}
	atlasJWT := func(context.Context) (string, error) {
		jwt, err := os.ReadFile(filepath.Join(dir, "atlas.jwt"))
		return string(jwt), err
	}
	conn, err := grpc.NewClient(target, append(tokenclient.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: serverCAs, MinVersion: tls.VersionTLS12})),
		grpc.WithPerRPCCredentials(tokenclient.JWT{Source: atlasJWT}))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	tokens := ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
	resp, err := tokens.CreateToken(context.Background(), &ephemeraltokenv1.CreateTokenRequest{})
	if err != nil {
		fmt.Println("no token:", tokenclient.Reason(err))
		return
	}
	fmt.Println(resp.GetToken())
	// Output: the-token
}

// Client certificate: the service holds the Atlas identity, and your certificate identifies you.
func Example_clientCertificate() {
	serverCAs, err := readCAs(filepath.Join(dir, "ca.pem"))
	if err != nil {
		log.Fatal(err)
	}
	config := &tls.Config{
		RootCAs: serverCAs, MinVersion: tls.VersionTLS12,
		// Read for each connection, so that a renewed certificate is used.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "client.pem"), filepath.Join(dir, "client-key.pem"))
			return &cert, err
		},
	}
	conn, err := grpc.NewClient(target, append(tokenclient.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(config)))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	tokens := ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
	resp, err := tokens.CreateToken(context.Background(), &ephemeraltokenv1.CreateTokenRequest{})
	if err != nil {
		fmt.Println("no token:", tokenclient.Reason(err))
		return
	}
	fmt.Println(resp.GetToken())
	// Output: the-token
}

// OIDC: the service holds the Atlas identity, and a token of your issuer identifies you. Source is
// where a token source such as golang.org/x/oauth2's goes; here it is a file that Kubernetes
// renews.
func Example_oidc() {
	serverCAs, err := readCAs(filepath.Join(dir, "ca.pem"))
	if err != nil {
		log.Fatal(err)
	}
	oidcToken := func(context.Context) (string, error) {
		token, err := os.ReadFile(filepath.Join(dir, "oidc.jwt"))
		return string(token), err
	}
	conn, err := grpc.NewClient(target, append(tokenclient.DialOptions(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: serverCAs, MinVersion: tls.VersionTLS12})),
		grpc.WithPerRPCCredentials(tokenclient.JWT{Source: oidcToken}))...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	tokens := ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
	_, err = tokens.CreateToken(context.Background(), &ephemeraltokenv1.CreateTokenRequest{})
	if delay, ok := tokenclient.RetryDelay(err); ok {
		fmt.Println("try again in", delay)
		return
	}
	fmt.Println(tokenclient.Reason(err))
	// Output: ERROR_REASON_CALLER_REJECTED
}

func readCAs(name string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New(name + " has no certificate")
	}
	return pool, nil
}
