// Package certificate keeps certificates up to date that are read from PEM files, and says when those in use expire.
//
// The server's own files and those for Atlas are all kept by it. It logs names and dates, and nothing of a key.
package certificate

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// File is a T made of one or more files, the first of which has certificates in it.
type File[T any] struct {
	name  string
	value *reload.Value[inUse[T]]
}

type inUse[T any] struct {
	made  T
	first *x509.Certificate // of those in the file, the one that expires first
}

// Options say what a File is made of.
type Options[T any] struct {
	// Name is what the gauge and the log call it, such as "client_ca".
	Name string
	// Paths are the files. The first has the certificates.
	Paths []string
	// Make gets the certificates and the contents of all files, in the order of Paths. See [Pair] and [Authorities].
	Make func(certs []*x509.Certificate, contents [][]byte) (T, error)
	// OnChange, if set, is called after each change, from Run.
	OnChange func()
	// Logger gets a line for each change, for each file that cannot be used, and for each certificate that is about to expire.
	Logger *slog.Logger
}

// Open reads the files. If they cannot be used, its error names each that is to blame, one or several joined; later, the last
// good ones stay in use instead.
func Open[T any](opts Options[T]) (*File[T], error) {
	log := opts.Logger.With(slog.String("certificate", opts.Name), slog.String("file", opts.Paths[0]))
	parse := func(contents [][]byte) (inUse[T], error) {
		v, err := use(opts, contents)
		if err != nil {
			err = fmt.Errorf("%s: %w", strings.Join(opts.Paths, " with "), err)
		}
		return v, err
	}
	value, err := reload.New(opts.Paths, parse, func(v inUse[T]) {
		log.Info("certificate replaced", slog.Time("expires", v.first.NotAfter))
		warn(log, v.first)
		if opts.OnChange != nil {
			opts.OnChange()
		}
	}, reload.Report(log, "certificate"))
	if err != nil {
		return nil, err
	}
	warn(log, value.Get().first)
	return &File[T]{opts.Name, value}, nil
}

func use[T any](opts Options[T], contents [][]byte) (inUse[T], error) {
	certs, err := Parse(contents[0])
	if err != nil {
		return inUse[T]{}, err
	}
	made, err := opts.Make(certs, contents)
	return inUse[T]{made, firstToExpire(certs)}, err
}

// Get returns what is in use.
func (f *File[T]) Get() T { return f.value.Get().made }

// Run looks at the files every interval until ctx is done, then returns nil.
func (f *File[T]) Run(ctx context.Context, interval time.Duration) error {
	return f.value.Run(ctx, interval)
}

// Expiry is the gauge of when the first certificate expires of all that are in use, in Unix seconds. It is the first one
// because somebody is refused from then on: in a chain everybody, in a bundle of authorities those that this one signed.
func (f *File[T]) Expiry() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "tokend_certificate_expiry_timestamp_seconds",
		Help:        "When the first certificate expires of those in use from a file, in Unix seconds.",
		ConstLabels: prometheus.Labels{"certificate": f.name},
	}, func() float64 { return float64(f.value.Get().first.NotAfter.Unix()) })
}

func firstToExpire(certs []*x509.Certificate) *x509.Certificate {
	return slices.MinFunc(certs, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
}

// warn leaves a line about a certificate that has just been taken into use and will not be of use for long.
func warn(log *slog.Logger, cert *x509.Certificate) {
	// A tenth of its life, for those that live for hours and are replaced by a machine.
	margin := min(24*time.Hour, cert.NotAfter.Sub(cert.NotBefore)/10)
	switch left := time.Until(cert.NotAfter); {
	case left <= 0:
		log.Error("a certificate in use has expired", slog.Time("expires", cert.NotAfter))
	case left < margin:
		log.Warn("a certificate in use expires soon", slog.Time("expires", cert.NotAfter))
	}
}
