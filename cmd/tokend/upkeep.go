package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/certificate"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// upkeep is the work that keeps what was read from files up to date, and what is to be seen of it.
type upkeep struct {
	watch   []func(context.Context) error
	metrics []prometheus.Collector
}

// keep has a value from a file read again and again.
func (u *upkeep) keep(value interface {
	Run(ctx context.Context, interval time.Duration) error
}) {
	u.watch = append(u.watch, func(ctx context.Context) error { return value.Run(ctx, reload.Interval) })
}

// openCAs reads the file of a flag: authorities to trust beside the system's. name is what the gauge and the log call them.
func (u *upkeep) openCAs(flag, name, file string, onChange func(), log *slog.Logger) (*certificate.File[*x509.CertPool], error) {
	roots, err := certificate.Open(certificate.Options[*x509.CertPool]{
		Name: name, Paths: []string{file}, OnChange: onChange, Logger: log,
		Make: func(_ []*x509.Certificate, contents [][]byte) (*x509.CertPool, error) {
			return atlas.ParseCAs(contents[0])
		},
	})
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	u.keep(roots)
	u.metrics = append(u.metrics, roots.Expiry())
	return roots, nil
}
