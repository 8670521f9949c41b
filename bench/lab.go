package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// lab is where servers are measured: their programs, certificates and the Atlas that they ask.
type lab struct {
	dir string // temporary
	bin string // what was built
	// The program of tokend, which serves profiles of itself if profiling is set.
	tokend    string
	profiling bool
	certs     *certificates
	atlas     *process
	url       string // of Atlas, without /v1
	asks      *http.Client
}

// newLab builds everything and starts Atlas. It has to be closed.
func newLab(ctx context.Context, profiling bool) (*lab, error) {
	dir, err := os.MkdirTemp("", "tokend-bench-")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, bin: filepath.Join(dir, "bin"), profiling: profiling}
	l.tokend = l.program("tokend")
	if err := l.open(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) open(ctx context.Context) error {
	// tokend as in its image; see the Dockerfile.
	if err := build(ctx, "..", l.bin, "-tags", "grpcnotrace", "./cmd/tokend"); err != nil {
		return err
	}
	if err := build(ctx, ".", l.bin, "-tags", "grpcnotrace", "./peers/atlas", "./peers/echo", "./peers/facade"); err != nil {
		return err
	}
	var err error
	if l.certs, err = newCertificates(l.dir); err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	l.url = "https://" + addr
	l.asks = &http.Client{Transport: &http.Transport{TLSClientConfig: l.certs.clients[0]}, Timeout: 10 * time.Second}
	l.atlas, err = startProcess(ctx, l.dir, l.program("atlas"), "-addr", addr, "-tls-cert-file", l.certs.certFile, "-tls-key-file", l.certs.keyFile)
	if err != nil {
		return err
	}
	return l.atlas.await(ctx, func(ctx context.Context) error {
		_, err := l.calls(ctx)
		return err
	})
}

// build compiles programs of the module in dir.
func build(ctx context.Context, dir, to string, args ...string) error {
	command := exec.CommandContext(ctx, "go", append([]string{"build", "-C", dir, "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", to + "/"}, args...)...) //nolint:gosec // our own packages
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build in %s: %w\n%s", dir, err, out)
	}
	return nil
}

func (l *lab) program(name string) string { return filepath.Join(l.bin, name) }

func (l *lab) close() {
	l.atlas.stop()
	_ = os.RemoveAll(l.dir) // the system clears what is left
}

// calls is how many creates have reached Atlas.
func (l *lab) calls(ctx context.Context) (int, error) { return l.number(ctx, "/calls") }

// most is how many creates Atlas has had in progress at a time since the last look.
func (l *lab) most(ctx context.Context) (int, error) { return l.number(ctx, "/most") }

func (l *lab) number(ctx context.Context, path string) (int, error) {
	body, err := l.ask(ctx, http.MethodGet, path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(body)
}

// setLatency has Atlas take so long for each create.
func (l *lab) setLatency(ctx context.Context, d time.Duration) error {
	_, err := l.ask(ctx, http.MethodPost, "/latency?is="+d.String())
	return err
}

func (l *lab) ask(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, l.url+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := l.asks.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("Atlas answers %s to %s", resp.Status, path) //nolint:staticcheck // a name
	}
	return string(body), err
}
