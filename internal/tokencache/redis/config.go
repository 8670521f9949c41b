package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
)

// Config configures the Redis or Valkey that replicas share.
type Config struct {
	// URL is redis://HOST:PORT, rediss:// for TLS, or unix:///PATH. It may have a user name, a
	// database as /N, more addresses of a cluster as ?addr=HOST:PORT, and the name of Sentinel's
	// master as ?master_set=NAME. Then the addresses are those of the sentinels. Required.
	URL string
	// Password returns the current password. If nil, there is none. User name and password are sent
	// to nodes and sentinels: one without authentication accepts any password, but no unknown user.
	Password func() string
	// RootCAs returns the authorities to trust for rediss. If nil, they are the system's. The
	// certificate of a node or sentinel must have the name that is connected to, or the host of URL
	// if that is an address.
	RootCAs func() *x509.CertPool
	// Budget is how long a call waits for Redis before it goes on without it, a second at most.
	// Default 50 ms.
	Budget time.Duration

	// Package tokencache sets the rest from its own Config.

	TTL, StaleIfError       time.Duration
	CallTimeout, SettleTime time.Duration
	Registerer              prometheus.Registerer
	Logger                  *slog.Logger
}

const (
	// defaultBudget is how long a call waits for Redis before it goes straight to Atlas.
	defaultBudget = 50 * time.Millisecond
	// timeout bounds operations that no call waits for, such as connecting and retries.
	timeout = time.Second
	// reloadInterval is how often a cluster is asked for its nodes.
	reloadInterval = 5 * time.Second
)

// Validate reports every mistake in c, each a *config.Error, joined. No error quotes the URL.
func (c Config) Validate() error {
	_, err := options(c)
	if c.Budget < 0 || c.Budget > timeout {
		err = errors.Join(err, config.Wrong("Cache.Redis.Budget", errors.New("not within 0 to 1s")))
	}
	return err
}

// options returns the options of the client library. It is not a method, for the same reason as
// client is not embedded.
func options(c Config) (*goredis.UniversalOptions, error) {
	wrong := func(reason string) (*goredis.UniversalOptions, error) {
		return nil, config.Wrong("Cache.Redis.URL", errors.New(reason))
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return wrong("not a URL: give one such as redis://HOST:6379, or rediss:// for TLS")
	}
	if _, has := u.User.Password(); has {
		return wrong("it contains a password, which every user who lists processes can read: give the password in a file")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return wrong("its parameters are malformed")
	}
	// The library's own parameters stay out: among them are skip_verify and passwords.
	addrs, masters := q["addr"], q["master_set"]
	delete(q, "addr")
	delete(q, "master_set")
	switch {
	case len(q) > 0:
		return wrong("it has a parameter other than addr and master_set")
	case len(masters) > 1 || len(masters) == 1 && masters[0] == "":
		return wrong("its parameter master_set is not one name")
	}
	base := *u
	base.RawQuery, base.Scheme = "", strings.Replace(u.Scheme, "valkey", "redis", 1)
	parsed, err := goredis.ParseURL(base.String())
	valid := err == nil && u.Fragment == "" && parsed.DB >= 0
	if u.Scheme == "unix" {
		valid = valid && u.Host == "" && u.Path != "" && u.RawQuery == ""
	} else {
		valid = valid && u.Hostname() != "" && isHostPort(parsed.Addr) && strings.Count(u.Path, "/") <= 1
	}
	if !valid {
		return wrong("it is not one of redis://HOST:PORT, rediss://HOST:PORT and unix:///PATH")
	}
	for _, addr := range addrs {
		if !isHostPort(addr) {
			return wrong("its parameter addr is not HOST:PORT")
		}
	}
	o := &goredis.UniversalOptions{Addrs: append([]string{parsed.Addr}, addrs...), DB: parsed.DB}
	if masters != nil {
		o.MasterName = masters[0]
	}
	o.IsClusterMode = len(addrs) > 0 && o.MasterName == ""
	if o.IsClusterMode && o.DB != 0 {
		return wrong("it has a database, and a cluster has only one")
	}
	set(o, c, u.User.Username(), parsed.TLSConfig)
	return o, nil
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && host != ""
}

// set sets the options that one Redis, a cluster and sentinels have in common.
func set(o *goredis.UniversalOptions, c Config, user string, secure *tls.Config) {
	credentials := func() (string, string) {
		if c.Password == nil {
			return user, ""
		}
		return user, c.Password()
	}
	o.CredentialsProvider = credentials
	o.Dialer = c.dialer(secure)
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = timeout, timeout, timeout, timeout
	o.ContextTimeoutEnabled = true
	// Nothing is done twice: a move that is carried out again after another delete's would bring
	// back what that has removed.
	o.MaxRetries, o.MaxRedirects, o.DialerRetries = -1, -1, 1
	o.PipelinePoolSize = -1 // pipelines use the same connections
	// Commands that an older server or a narrow ACL may refuse are turned off. HELLO, which no ACL
	// refuses, sets the name of the connection. It also sends the password, because the library
	// does not support a changing password for sentinels.
	o.Protocol, o.DisableIdentity = 2, true
	o.OnConnect = func(ctx context.Context, conn *goredis.Conn) error {
		user, password := credentials()
		return conn.Hello(ctx, 2, user, password, "tokend").Err()
	}
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// dialer returns a function that connects, over TLS if secure is not nil.
func (c Config) dialer(secure *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		conn, err := (&net.Dialer{KeepAlive: 5 * time.Second}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, dialError(err)
		}
		if secure == nil {
			return bounded(conn), nil
		}
		cfg := secure.Clone()
		if host, _, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host) == nil {
			cfg.ServerName = host
		}
		if c.RootCAs != nil {
			cfg.RootCAs = c.RootCAs() // as they are now
		}
		secured := tls.Client(conn, cfg)
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return nil, dialError(err)
		}
		return bounded(secured), nil
	}
}

// dialError returns why a connection could not be made.
func dialError(err error) error {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return ErrNoTLS
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errSlow
	}
	return Error(err.Error())
}

// newServer returns the client for o. It does not connect yet.
func newServer(o *goredis.UniversalOptions) server {
	switch {
	case o.MasterName != "":
		return goredis.NewFailoverClient(o.Failover())
	case o.IsClusterMode:
		cluster := o.Cluster()
		cluster.ClusterStateReloadInterval, cluster.DisableRoutingPolicies = reloadInterval, true
		return goredis.NewClusterClient(cluster)
	}
	return goredis.NewClient(o.Simple())
}
