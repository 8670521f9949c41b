package main

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// server is a server to measure. To add one, write a function that returns it, and use it in
// cases.go.
type server struct {
	name    string
	needs   string // a program that must be installed, and its Debian package
	callers int    // overrides the case's, unless 0
	start   func(ctx context.Context, l *lab, mtls bool) (*running, error)
}

// running is a started server.
type running struct {
	*process
	grpc, rest string   // addresses; empty if it has none
	admin      string   // address of tokend's metrics and profiles
	redis      *process // of its cache, if any
	ready      time.Duration
}

func (r *running) stop() {
	r.process.stop()
	r.redis.stop()
}

// with returns s with another name and number of callers.
func (s server) with(name string, callers int) server {
	s.name, s.callers = name, callers
	return s
}

// before returns s with another build of tokend.
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

// missing returns what must be installed first, or "".
func (s server) missing() string {
	if s.needs == "" {
		return ""
	}
	if _, err := find(s.needs); err != nil {
		return s.needs + " is not installed: on Debian, apt-get install " + s.needs
	}
	return ""
}

// find is exec.LookPath, also in /usr/sbin.
func find(program string) (string, error) {
	path, err := exec.LookPath(program)
	if errors.Is(err, exec.ErrNotFound) {
		return exec.LookPath("/usr/sbin/" + program)
	}
	return path, err
}

// launch starts a program and waits until it is ready.
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

// addresses returns unused addresses for a server.
func addresses() (grpc, rest, admin string, err error) {
	var errs [3]error
	grpc, errs[0] = freeAddr()
	rest, errs[1] = freeAddr()
	admin, errs[2] = freeAddr()
	return grpc, rest, admin, errors.Join(errs[:]...)
}

// tlsFlags returns the TLS flags of tokend and of the peers in Go.
func (l *lab) tlsFlags(dash string, mtls bool) []string {
	if !mtls {
		return nil
	}
	return []string{dash + "tls-cert-file", l.certs.certFile, dash + "tls-key-file", l.certs.keyFile, dash + "tls-client-ca-file", l.certs.caFile}
}

// tokend runs `tokend serve` with further flags.
func tokend(flags ...string) server {
	return server{name: "tokend", start: func(ctx context.Context, l *lab, mtls bool) (*running, error) {
		return startTokend(ctx, l, mtls, nil, flags)
	}}
}

// tokendWithRedis runs tokend with a Redis cache.
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

// echo is a minimal server of this API.
func echo(name string) server { return goPeer(name, "echo", false) }

// facade is a plain implementation of the service.
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

// nginxConfig forwards the route to Atlas over persistent HTTP/1.1 connections. By default nginx
// opens a connection for every call, and closes it after a thousand.
const nginxConfig = `
daemon off;
user USER;
worker_processes auto;
error_log stderr warn;
pid nginx.pid;
events { worker_connections 4096; }
http {
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  proxy_cache_path cache keys_zone=tokens:10m;
  upstream atlas {
    server ATLAS;
    keepalive 512;
    keepalive_requests 100000000;
  }
  server {
    listen ADDR;
    keepalive_requests 100000000;
    location /v1/ {
      proxy_pass https://atlas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_ssl_trusted_certificate CA;
      proxy_ssl_verify on;
      proxy_ssl_name localhost;
      CACHE
    }
  }
}
`

// nginxCache caches the response to each credential for an hour.
const nginxCache = `
      proxy_cache tokens;
      proxy_cache_methods POST;
      proxy_cache_key $request_method$uri$http_authorization;
      proxy_cache_valid 201 1h;`

const caddyConfig = `
{
  admin off
  auto_https off
  log {
    level WARN
  }
}
http://ADDR {
  reverse_proxy https://ATLAS {
    transport http {
      tls_trusted_ca_certs CA
      tls_server_name localhost
    }
  }
}
`

// nginx forwards calls, or caches them.
func nginx(name, cache string) server {
	return proxy(name, "nginx", strings.ReplaceAll(nginxConfig, "CACHE", cache), "-p", "DIR", "-c", "FILE", "-e", "stderr")
}

func caddy() server {
	return proxy("Caddy reverse_proxy", "caddy", caddyConfig, "run", "--adapter", "caddyfile", "--config", "FILE")
}

// proxy runs an installed program with a configuration, whose words in capitals are replaced.
func proxy(name, program, configuration string, args ...string) server {
	return server{name: name, needs: program, start: func(ctx context.Context, l *lab, mtls bool) (*running, error) {
		if mtls {
			return nil, errors.New("it has no configuration for mTLS here")
		}
		path, err := find(program)
		if err != nil {
			return nil, err
		}
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		me, err := user.Current()
		if err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp(l.dir, program+"-")
		if err != nil {
			return nil, err
		}
		file := filepath.Join(dir, "configuration")
		words := strings.NewReplacer("ADDR", addr, "ATLAS", strings.TrimPrefix(l.url, "https://"), "CA", l.certs.caFile, "USER", me.Username, "DIR", dir, "FILE", file)
		if err := os.WriteFile(file, []byte(words.Replace(configuration)), 0o600); err != nil {
			return nil, err
		}
		filled := make([]string, len(args))
		for i, arg := range args {
			filled[i] = words.Replace(arg)
		}
		return launch(ctx, l, &running{rest: addr}, accepts(addr), path, filled...)
	}}
}
