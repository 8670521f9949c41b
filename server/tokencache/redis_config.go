package tokencache

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// RedisConfig says which Redis or Valkey replicas share.
type RedisConfig struct {
	// URL is redis://HOST:PORT, rediss:// for TLS, or unix:///PATH. It may have a user name, a database as /N, more
	// addresses of a cluster as ?addr=HOST:PORT, and the name of Sentinel's master as ?master_set=NAME. Then the addresses
	// are those of the sentinels. Required.
	URL string
	// Password returns the present password. If nil, there is none. It is never a part of the URL. User name and password
	// are for the nodes and for the sentinels: one that wants none takes any password, but no user that it does not know.
	Password func() string
	// RootCAs returns the authorities to believe for rediss. If nil, they are the system's. A node or a sentinel that is
	// connected to by a name must have that in its certificate; by an address, the host of URL.
	RootCAs func() *x509.CertPool
	// Budget is how long a call waits for Redis before it goes on without, a second at most. Default 50 ms.
	Budget time.Duration
}

// RedisURLError is what is wrong with the URL of a RedisConfig. It never quotes it.
type RedisURLError struct{ reason string }

func (e *RedisURLError) Error() string { return e.reason }

// options is what the client library makes of c.
func (c *RedisConfig) options() (rueidis.ClientOption, error) {
	wrong := func(reason string) (rueidis.ClientOption, error) {
		return rueidis.ClientOption{}, &RedisURLError{reason}
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return wrong("it is not a URL: give one such as redis://HOST:6379, or rediss:// for TLS")
	}
	if _, has := u.User.Password(); has {
		return wrong("it has a password in it, for everybody to see who lists processes: give the password in a file")
	}
	if reason := wrongParameters(u); reason != "" {
		return wrong(reason)
	}
	opt, err := rueidis.ParseURL(c.URL)
	wellFormed := isHostPort(u.Host, true)
	if u.Scheme == "unix" {
		wellFormed = u.Host == "" && u.Path != "" && u.RawQuery == ""
	}
	if err != nil || u.Fragment != "" || !wellFormed {
		return wrong("it is not one of redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
	}
	opt.DisableCache = true    // a copy in our memory would be read apart from its fence
	opt.DisableRetry = true    // a call that waits goes to Atlas instead
	opt.PipelineMultiplex = -1 // one connection, so that the moves of a delete arrive in their order
	opt.ClientName = "tokend"
	opt.Dialer = net.Dialer{Timeout: redisTimeout, KeepAlive: 5 * time.Second}
	opt.ConnWriteTimeout = redisTimeout
	if c.Password != nil {
		user := opt.Username
		opt.AuthCredentialsFn = func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			return rueidis.AuthCredentials{Username: user, Password: c.Password()}, nil
		}
	}
	opt.DialCtxFn = guarded(c.dialer(u.Scheme, opt.TLSConfig != nil), opt.Sentinel.MasterSet != "")
	// What is not repeated here does not hold for the sentinels, not even TLS.
	opt.Sentinel.TLSConfig, opt.Sentinel.Dialer, opt.Sentinel.ClientName = opt.TLSConfig, opt.Dialer, opt.ClientName
	// A sentinel's word of another primary can be lost, and then nothing else would ever tell.
	opt.Sentinel.TopologyRefreshInterval = 5 * time.Second
	return opt, nil
}

type dialFunc = func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error)

// dialer returns how to connect by a URL of that scheme.
func (c *RedisConfig) dialer(scheme string, overTLS bool) dialFunc {
	if overTLS {
		return c.dialTLS
	}
	network := "tcp"
	if scheme == "unix" {
		network = "unix"
	}
	return func(ctx context.Context, addr string, dialer *net.Dialer, _ *tls.Config) (net.Conn, error) {
		return dialer.DialContext(ctx, network, addr)
	}
}

func guarded(dial dialFunc, publishes bool) dialFunc {
	return func(ctx context.Context, addr string, dialer *net.Dialer, cfg *tls.Config) (net.Conn, error) {
		conn, err := dial(ctx, addr, dialer, cfg)
		if err != nil {
			return nil, err
		}
		return &guardedConn{Conn: conn, publishes: publishes}, nil
	}
}

// dialTLS connects to a node or a sentinel; cfg has the host of the URL as its name.
func (c *RedisConfig) dialTLS(ctx context.Context, addr string, dialer *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	cfg = cfg.Clone()
	if host, _, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host) == nil {
		cfg.ServerName = host
	}
	if c.RootCAs != nil {
		cfg.RootCAs = c.RootCAs() // as they are now
	}
	return (&tls.Dialer{NetDialer: dialer, Config: cfg}).DialContext(ctx, "tcp", addr)
}

// wrongParameters returns what is wrong with the parameters of a URL. The client library passes over some mistakes.
func wrongParameters(u *url.URL) string {
	parameters, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "its parameters are malformed"
	}
	for name, values := range parameters {
		switch name {
		case "addr":
			for _, addr := range values {
				if !isHostPort(addr, false) {
					return "its parameter addr is not HOST:PORT"
				}
			}
		case "master_set":
			if len(values) != 1 || values[0] == "" {
				return "its parameter master_set is not one name"
			}
		default:
			return "it has a parameter that is not addr or master_set"
		}
	}
	return ""
}

func isHostPort(s string, portMayLack bool) bool {
	u := url.URL{Host: s}
	if portMayLack && u.Port() == "" {
		return u.Hostname() != ""
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && host != ""
}
