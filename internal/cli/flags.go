// Package cli declares the flags of tokend, sets them from the command line and the environment,
// and reports errors.
package cli

import (
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// ServeFlags declares all settings of serve.
func ServeFlags(cmd *cobra.Command, set *setup.Settings) {
	fs := cmd.Flags()
	listenerFlags(fs, set)
	tlsFlags(fs, set)
	atlasFlags(fs, set)
	callerFlags(fs, set)
	browserFlags(fs, set, false)
	cacheFlags(fs, set)
	fs.IntVar(&set.MaxConnections, "max-connections", 0, "Connections that gRPC and REST may each have open, half of them from one\naddress; 0 is as many as open files and memory allow, up to 10000.")
	fs.IntVar(&set.CallerRate, "caller-rate", 2000, "Calls a second that one caller may cause at Atlas; shared and cached ones do not\ncount. 0 is no limit.")
	stopFlags(fs, set, 5*time.Second)
	logFlags(fs, set)
	fs.StringVar(&set.AuditFile, "audit-file", "", "Append one JSON record per call to this `FILE`; - is standard output. SIGHUP opens\nit again. A request refused before it is a call, such as a 404, is only in the log.")
	finish(cmd)
}

// DevFlags declares the settings of dev: none of Atlas, TLS or callers, which it makes up.
func DevFlags(cmd *cobra.Command, set *setup.Settings) {
	fs := cmd.Flags()
	listenerFlags(fs, set)
	browserFlags(fs, set, true)
	fs.DurationVar(&set.CacheTTL, "cache-ttl", 30*time.Second, "Cache a token for this long; 0 caches nothing.")
	stopFlags(fs, set, 0)
	logFlags(fs, set)
	finish(cmd)
}

func listenerFlags(fs *pflag.FlagSet, set *setup.Settings) {
	fs.StringVar(&set.GRPCAddr, "grpc-addr", "127.0.0.1:9090", "Serve gRPC on this `HOST:PORT` or unix:/path; empty turns it off.")
	fs.StringVar(&set.GRPCSocketMode, "grpc-socket-mode", "0600", "`MODE` of gRPC's socket file: 0600 for tokend's own user, 0660 for its group too.\nEvery user who can write to it can connect.")
	fs.StringVar(&set.HTTPAddr, "http-addr", "127.0.0.1:8080", "Serve REST on this `HOST:PORT`; empty turns it off.")
	fs.StringVar(&set.AdminAddr, "admin-addr", "127.0.0.1:9091", "Serve /healthz, /readyz and /metrics on this `HOST:PORT`, in plaintext; empty turns it off.")
	fs.BoolVar(&set.DebugPprof, "debug-pprof", false, "Serve /debug/pprof on the admin address.")
}

func tlsFlags(fs *pflag.FlagSet, set *setup.Settings) {
	fs.StringVar(&set.TLSCertFile, "tls-cert-file", "", "Server certificate for gRPC and REST, PEM `FILE`. A replaced file is picked up, as for\nevery file setting.")
	fs.StringVar(&set.TLSKeyFile, "tls-key-file", "", "Its private key, PEM `FILE`.")
	fs.StringVar(&set.TLSClientCAFile, "tls-client-ca-file", "", "Require client certificates signed by these authorities (mTLS), PEM `FILE`. With a\npolicy that has rules for oidc or atlas_jwt a client may send none; one that is sent\nmust be valid.")
	fs.StringVar(&set.SPIFFESocket, "spiffe-socket", "", "Get certificate, key and client authorities from the SPIFFE agent at this `ADDRESS`\ninstead of from files, such as unix:///run/spire/agent.sock.")
	fs.BoolVar(&set.Plaintext, "plaintext", false, "Serve beyond loopback without TLS, if something in front of tokend encrypts.")
}

func atlasFlags(fs *pflag.FlagSet, set *setup.Settings) {
	fs.StringVar(&set.AtlasURL, "atlas-url", "https://atlas.forsta.io/v1", "Atlas's base `URL`; https only.")
	fs.StringVar(&set.AtlasCAFile, "atlas-ca-file", "", "Authorities to trust for Atlas besides the system's, PEM `FILE`.")
	fs.DurationVar(&set.AtlasTimeout, "atlas-timeout", 10*time.Second, "How long Atlas may take for one operation.")
	fs.IntVar(&set.AtlasMaxCalls, "atlas-max-calls", 256, "Creates and deletes that may be at Atlas at a time. One profile or org can have\nhalf of them.")
	fs.StringVar(&set.AtlasCertFile, "atlas-cert-file", "", "Client certificate for Atlas or a proxy in front of it, PEM `FILE`.")
	fs.StringVar(&set.AtlasKeyFile, "atlas-key-file", "", "Its private key, PEM `FILE`.")
}

func callerFlags(fs *pflag.FlagSet, set *setup.Settings) {
	fs.StringVar(&set.UserauthtokenFile, "atlas-userauthtoken-file", "", "Hold an Atlas identity: the `FILE` with its userauthtoken. Every client with a\ncertificate may use it, so it needs --tls-client-ca-file or --spiffe-socket; for\nanything else, write a policy.")
	fs.StringVar(&set.PolicyFile, "policy-file", "", "Policy, a YAML `FILE`: which callers may call which methods, with which profile.")
	fs.StringVar(&set.OIDCCAFile, "oidc-ca-file", "", "Authorities to trust for the policy's OIDC issuers besides the system's, PEM `FILE`.")
}

func browserFlags(fs *pflag.FlagSet, set *setup.Settings, docs bool) {
	fs.BoolVar(&set.Docs, "docs", docs, "Serve /docs, a page to read the API and try it, and /openapi.json on the REST address.\nThe page asks no other host for anything.")
	fs.StringSliceVar(&set.CORSOrigins, "cors-origin", nil, "`ORIGIN`, such as https://app.example.com, whose pages may call the REST API with an\nauthorization header (CORS). Repeat it, or separate them by commas. No wildcards.")
}

func cacheFlags(fs *pflag.FlagSet, set *setup.Settings) {
	fs.DurationVar(&set.CacheTTL, "cache-ttl", 0, "Cache a token for this long; 0 caches nothing. Without --cache-redis-url that is right\nfor one replica only.")
	fs.DurationVar(&set.CacheStaleIfError, "cache-stale-if-error", 0, "Keep a cached token for this much longer, to serve it when Atlas fails; never across\na delete.")
	fs.StringVar(&set.RedisURL, "cache-redis-url", "", "Redis or Valkey in which replicas share the cache: `URL` redis://HOST:PORT, rediss:// for\nTLS, or unix:///PATH. ?master_set=NAME is for Sentinel, ?addr=HOST:PORT for more\nsentinels or nodes of a cluster.")
	fs.StringVar(&set.RedisCAFile, "cache-redis-ca-file", "", "Authorities to trust for rediss:// besides the system's, PEM `FILE`.")
	fs.StringVar(&set.RedisPasswordFile, "cache-redis-password-file", "", "`FILE` with the password of Redis, which its sentinels are given as well.")
}

func stopFlags(fs *pflag.FlagSet, set *setup.Settings, delay time.Duration) {
	fs.DurationVar(&set.DrainDelay, "drain-delay", delay, "After SIGTERM, keep serving for this long while not ready, until load balancers and\nclients have noticed.")
	fs.DurationVar(&set.DrainTimeout, "drain-timeout", 25*time.Second, "How long calls in progress may then take to finish. A stop may take up to a second\nlonger than both together, or two if it exports traces.")
}

func logFlags(fs *pflag.FlagSet, set *setup.Settings) {
	fs.StringVar(&set.LogLevel, "log-level", "info", "`LEVEL` of the log: debug (every call), info, warn or error.")
	fs.StringVar(&set.LogFormat, "log-format", "auto", "`FORMAT` of the log: text, json or auto, which is text on a terminal and JSON otherwise.")
}

// finish registers the completions of a command's flags. The shell completes file names by itself.
func finish(cmd *cobra.Command) {
	choices := map[string][]string{"log-level": setup.LogLevels, "log-format": setup.LogFormats}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !strings.HasSuffix(f.Name, "-file") {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(choices[f.Name], cobra.ShellCompDirectiveNoFileComp)) // it exists
		}
	})
}
