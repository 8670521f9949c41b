package tokencache

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
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

// redisOptions are for the client library. The addresses are those of sentinels if primary says what these call theirs.
type redisOptions struct {
	redis.UniversalOptions

	primary string
}

// options returns the client library's options. Its error never quotes the URL.
func (c *RedisConfig) options() (redisOptions, error) {
	var o redisOptions
	u, err := url.Parse(c.URL)
	if err != nil {
		return o, errors.New("it is not a URL: give one such as redis://HOST:6379, or rediss:// for TLS")
	}
	if _, has := u.User.Password(); has {
		return o, errors.New("it has a password in it, which every user of this machine can see: put it into a file")
	}
	if reason := wrongParameters(u); reason != "" {
		return o, errors.New(reason)
	}
	if !o.locate(u) {
		return o, errors.New("it is not one of redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH")
	}
	if o.IsClusterMode && o.DB != 0 {
		return o, errors.New("it has a database, and a cluster has but one")
	}
	o.Username = u.User.Username()
	if c.Password != nil {
		o.CredentialsProvider = func() (string, string) { return u.User.Username(), c.Password() }
	}
	if u.Scheme == "rediss" || u.Scheme == "valkeys" {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
	}
	o.Dialer = c.dialer(o.TLSConfig)
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = redisTimeout, redisTimeout, redisTimeout, redisTimeout
	o.ContextTimeoutEnabled = true
	// Nothing is done twice: a move that is carried out again after another delete's would bring back what that has forgotten.
	o.MaxRetries, o.MaxRedirects, o.DialerRetries = -1, -1, 1
	o.PipelinePoolSize = -1 // pipelines take what there is
	// What an older server or a narrow ACL may refuse. The name of a connection is set in its HELLO, which nobody refuses.
	o.Protocol, o.DisableIdentity = 2, true
	o.OnConnect = func(ctx context.Context, c *redis.Conn) error { return c.Hello(ctx, 2, "", "", "tokend").Err() }
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return o, nil
}

// locate takes the addresses and the database of u, and reports whether they are well-formed.
func (o *redisOptions) locate(u *url.URL) bool {
	if u.Scheme == "unix" {
		o.Addrs = []string{u.Path}
		return u.Host == "" && strings.HasPrefix(u.Path, "/") && u.RawQuery == "" && u.Fragment == ""
	}
	switch u.Scheme {
	case "redis", "rediss", "valkey", "valkeys":
	default:
		return false
	}
	port := u.Port()
	if port == "" {
		port = "6379"
	}
	o.Addrs = append([]string{net.JoinHostPort(u.Hostname(), port)}, u.Query()["addr"]...)
	o.primary = u.Query().Get("master_set")
	o.IsClusterMode = len(o.Addrs) > 1 && o.primary == ""
	if u.Path != "" && u.Path != "/" {
		n, err := strconv.ParseUint(strings.TrimPrefix(u.Path, "/"), 10, 16)
		if err != nil {
			return false
		}
		o.DB = int(n)
	}
	return isHostPort(o.Addrs[0]) && u.Fragment == ""
}

// wrongParameters returns what is wrong with the parameters of a URL.
func wrongParameters(u *url.URL) string {
	parameters, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "its parameters are malformed"
	}
	for name, values := range parameters {
		switch name {
		case "addr":
			for _, addr := range values {
				if !isHostPort(addr) {
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

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && host != ""
}
