package main

import (
	"context"
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strings"
)

// nginxConfig passes the route on to Atlas over HTTP/1.1 with connections that it keeps, on which
// both ends are as good as they get: nginx's defaults connect anew for every call, and at every
// thousandth.
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

// nginxCache remembers each credential's answer for an hour.
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

// nginx passes calls on, or remembers them.
func nginx(name, cache string) server {
	return proxy(name, "nginx", strings.ReplaceAll(nginxConfig, "CACHE", cache), "-p", "DIR", "-c", "FILE", "-e", "stderr")
}

func caddy() server {
	return proxy("Caddy reverse_proxy", "caddy", caddyConfig, "run", "--adapter", "caddyfile", "--config", "FILE")
}

// proxy is an installed program with a configuration that is written for it. Words in capitals are
// filled in.
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
