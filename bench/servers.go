package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"time"
)

// server is something that is measured. To add one, write a function that returns it, and name it
// in cases.go.
type server struct {
	name    string
	needs   string // a program that has to be installed; its Debian package has that name
	callers int    // in place of the case's, if not 0
	start   func(ctx context.Context, l *lab, mtls bool) (*running, error)
}

// running is a started server.
type running struct {
	*process
	grpc, rest string   // addresses; empty where it has none
	admin      string   // address of tokend's metrics and profiles
	redis      *process // which it remembers in
	ready      time.Duration
}

func (r *running) stop() {
	r.process.stop()
	r.redis.stop()
}

// with is s under another name, called by another number of callers.
func (s server) with(name string, callers int) server {
	s.name, s.callers = name, callers
	return s
}

// before is another build of tokend, to be measured beside this one.
func (s server) before(program string) server {
	s.name = "tokend before"
	start := s.start
	s.start = func(ctx context.Context, l *lab, mtls bool) (*running, error) {
		other := *l
		other.tokend = program
		return start(ctx, &other, mtls)
	}
	return s
}

// missing says what has to be installed first, or is empty.
func (s server) missing() string {
	if s.needs == "" {
		return ""
	}
	if _, err := find(s.needs); err != nil {
		return s.needs + " is not installed: on Debian, apt-get install " + s.needs
	}
	return ""
}

// find looks where Debian installs servers, too.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if errors.Is(err, exec.ErrNotFound) {
		return exec.LookPath("/usr/sbin/" + program)
	}
	return path, err
}

// launch starts a program that listens on the given addresses, and waits until it is ready.
func launch(ctx context.Context, l *lab, r *running, ready func(context.Context) error, name string, args ...string) (*running, error) {
	dir, err := os.MkdirTemp(l.dir, "run-")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if r.process, err = startProcess(ctx, dir, name, args...); err != nil {
		r.redis.stop()
		return nil, err
	}
	if err := r.await(ctx, ready); err != nil {
		r.stop()
		return nil, err
	}
	r.ready = time.Since(start)
	return r, nil
}

// addresses chooses where a server listens.
func addresses() (grpc, rest, admin string, err error) {
	var errs [3]error
	grpc, errs[0] = freeAddr()
	rest, errs[1] = freeAddr()
	admin, errs[2] = freeAddr()
	return grpc, rest, admin, errors.Join(errs[:]...)
}

// tlsFlags are the same for tokend and for the peers in Go.
func (l *lab) tlsFlags(dash string, mtls bool) []string {
	if !mtls {
		return nil
	}
	return []string{dash + "tls-cert-file", l.certs.certFile, dash + "tls-key-file", l.certs.keyFile, dash + "tls-client-ca-file", l.certs.caFile}
}

// tokend is this service, as `tokend serve` runs it, with further flags.
func tokend(flags ...string) server {
	return server{name: "tokend", start: func(ctx context.Context, l *lab, mtls bool) (*running, error) {
		return startTokend(ctx, l, mtls, nil, flags)
	}}
}

// tokendWithRedis remembers in a Redis of its own.
func tokendWithRedis() server {
	return server{name: "tokend", needs: "redis-server", start: func(ctx context.Context, l *lab, mtls bool) (*running, error) {
		redis, addr, err := startRedis(ctx, l)
		if err != nil {
			return nil, err
		}
		return startTokend(ctx, l, mtls, redis, []string{"--cache-ttl", "1h", "--cache-redis-url", "redis://" + addr})
	}}
}

func startTokend(ctx context.Context, l *lab, mtls bool, redis *process, flags []string) (*running, error) {
	grpc, rest, admin, err := addresses()
	if err != nil {
		redis.stop()
		return nil, err
	}
	args := []string{"serve", "--grpc-addr", grpc, "--http-addr", rest, "--admin-addr", admin, "--atlas-url", l.url + "/v1", "--atlas-ca-file", l.certs.caFile}
	if l.profiling {
		args = append(args, "--debug-pprof")
	}
	r := &running{grpc: grpc, rest: rest, admin: admin, redis: redis}
	return launch(ctx, l, r, answers("http://"+admin+"/readyz"), l.tokend, slices.Concat(args, flags, l.tlsFlags("--", mtls))...)
}

func startRedis(ctx context.Context, l *lab) (*process, string, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, "", err
	}
	program, err := find("redis-server")
	if err != nil {
		return nil, "", err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", err
	}
	r, err := launch(ctx, l, &running{}, accepts(addr), program, "--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no")
	if err != nil {
		return nil, "", err
	}
	return r.process, addr, nil
}

// echo is the least that a server of this API can do.
func echo(name string) server { return goPeer(name, "echo", false) }

// facade is the service as it is commonly written.
func facade(name string, flags ...string) server { return goPeer(name, "facade", true, flags...) }

func goPeer(name, program string, asksAtlas bool, flags ...string) server {
	return server{name: name, start: func(ctx context.Context, l *lab, mtls bool) (*running, error) {
		grpc, rest, _, err := addresses()
		if err != nil {
			return nil, err
		}
		args := []string{"-grpc-addr", grpc, "-http-addr", rest}
		if asksAtlas {
			args = append(args, "-atlas-url", l.url+"/v1", "-atlas-ca-file", l.certs.caFile)
		}
		ready := func(ctx context.Context) error {
			if err := accepts(grpc)(ctx); err != nil {
				return err
			}
			return accepts(rest)(ctx)
		}
		return launch(ctx, l, &running{grpc: grpc, rest: rest}, ready, l.program(program), slices.Concat(args, flags, l.tlsFlags("-", mtls))...)
	}}
}
