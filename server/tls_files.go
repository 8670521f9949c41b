package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/credentials/tls/certprovider"

	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// reloadInterval is how often the TLS files are looked at. A replaced one is in use after two looks.
const reloadInterval = 250 * time.Millisecond

// tlsFiles has what TLSFiles say at present. It stands in for grpc's pemfile, which writes the private key into the log
// when it does not fit the certificate, as it may not in the middle of a rotation.
type tlsFiles struct {
	pair  *reload.Value[tls.Certificate]
	roots *reload.Value[*x509.CertPool] // nil: no client certificates are asked for

	stop    context.CancelFunc
	working sync.WaitGroup
}

// watch loads the files and keeps looking at them until the provider is closed.
func (f TLSFiles) watch(log *slog.Logger) (certprovider.Provider, error) {
	pair, err := reload.New([]string{f.CertFile, f.KeyFile}, func(contents [][]byte) (tls.Certificate, error) {
		return tls.X509KeyPair(contents[0], contents[1])
	}, func(tls.Certificate) { logReplaced(log, tlsCertificate, f.CertFile) }, logUnusable(log, tlsCertificate, f.CertFile))
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", f.CertFile, f.KeyFile, err)
	}
	t := &tlsFiles{pair: pair}
	if f.ClientCAFile != "" {
		t.roots, err = reload.New([]string{f.ClientCAFile}, parseRoots,
			func(*x509.CertPool) { logReplaced(log, tlsClientCA, f.ClientCAFile) }, logUnusable(log, tlsClientCA, f.ClientCAFile))
		if err != nil {
			return nil, fmt.Errorf("TLS client CA %s: %w", f.ClientCAFile, err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	t.working.Go(func() { _ = t.pair.Run(ctx, reloadInterval) }) // it has no error to return
	if t.roots != nil {
		t.working.Go(func() { _ = t.roots.Run(ctx, reloadInterval) })
	}
	return t, nil
}

func parseRoots(contents [][]byte) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(contents[0]) {
		return nil, errors.New("no PEM certificate in it")
	}
	return roots, nil
}

// KeyMaterial implements certprovider.Provider.
func (t *tlsFiles) KeyMaterial(context.Context) (*certprovider.KeyMaterial, error) {
	material := &certprovider.KeyMaterial{Certs: []tls.Certificate{t.pair.Get()}}
	if t.roots != nil {
		material.Roots = t.roots.Get()
	}
	return material, nil
}

// Close implements certprovider.Provider.
func (t *tlsFiles) Close() {
	t.stop()
	t.working.Wait()
}

// The names of the files in the log.
const (
	tlsCertificate = "TLS certificate"
	tlsClientCA    = "TLS client CA"
)

func logReplaced(log *slog.Logger, what, file string) {
	log.Info("TLS file replaced", slog.String("what", what), slog.String("file", file))
}

func logUnusable(log *slog.Logger, what, file string) func(error) {
	return func(err error) {
		if err != nil {
			log.Error("a replaced file cannot be used; the last good one stays", slog.String("what", what), slog.String("file", file), slog.String("cause", err.Error()))
			return
		}
		log.Info("the file can be used again", slog.String("what", what), slog.String("file", file))
	}
}
