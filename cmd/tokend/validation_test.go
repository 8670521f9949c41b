//go:build unix

package main_test

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mayPass are the cases about what settings name, which may be right later.
var mayPass = map[string]bool{
	"no Atlas CA": true, "empty Atlas CA": true, "no certificate": true, "another's key": true, "empty key": true, "encrypted key": true,
	"old encrypted key": true, "blank client CA": true, "no client CA": true, "empty client CA": true, "config without an agent": true,
	"no Atlas certificate": true, "no secret": true, "no policy": true, "no password of Redis": true, "not valid yet": true,
	"not valid yet, for Atlas": true, "expired": true, "a client's certificate": true, "a leaf as client CA": true,
	"an issuer that is not there": true, "audit into a pipe": true,
}

// Everything that is wrong with the settings is reported at once, a line each, and nothing starts.
func TestValidation(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	noCertificate := writeFile(t, "ca.pem", []byte("nothing\n"))
	empty := writeFile(t, "empty.pem", nil)
	bad := makeBadCertificates(t, certs)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	serverTLS := []string{"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey}

	for name, test := range map[string]struct {
		args, env []string
		want      []string // what each line has in it, in any order
	}{
		"unknown variable":     {[]string{"serve"}, []string{"TOKEND_GRPC_ADRR=127.0.0.1:0"}, []string{"TOKEND_GRPC_ADRR: there is no such setting; see tokend serve --help"}},
		"another's variable":   {[]string{"serve"}, []string{"TOKEND_FOO=1"}, []string{"TOKEND_FOO: there is no such setting; see tokend serve --help"}},
		"variable of dev":      {[]string{"dev"}, []string{"TOKEND_GRPC_ADRR=127.0.0.1:0"}, []string{"see tokend dev --help"}},
		"variable not a bool":  {[]string{"serve"}, []string{"TOKEND_PLAINTEXT=perhaps"}, []string{`TOKEND_PLAINTEXT: "perhaps": `}},
		"endless":              {[]string{"serve", "--drain-timeout=999999h", "--cache-ttl=8761h"}, nil, []string{`--drain-timeout: 999999h0m0s: must be no more than a year`, `--cache-ttl: 8761h0m0s: must be no more than a year`}},
		"no time":              {[]string{"serve"}, []string{"TOKEND_DRAIN_TIMEOUT=0s", "TOKEND_ATLAS_TIMEOUT="}, []string{`--drain-timeout: 0s: must be above zero`, `TOKEND_ATLAS_TIMEOUT: ""`}},
		"log":                  {[]string{"serve", "--log-level=trace", "--log-format=xml"}, nil, []string{"debug info warn error", "auto text json"}},
		"plain-http Atlas":     {[]string{"serve", "--atlas-url=http://atlas.forsta.io/v1"}, nil, []string{"--atlas-url: "}},
		"no Atlas":             {[]string{"serve", "--atlas-url="}, nil, []string{"--atlas-url: "}},
		"no Atlas CA":          {[]string{"serve", "--atlas-ca-file=/does/not/exist.pem"}, nil, []string{"--atlas-ca-file: "}},
		"empty Atlas CA":       {[]string{"serve", "--atlas-ca-file=" + noCertificate}, nil, []string{"--atlas-ca-file: "}},
		"no certificate":       {[]string{"serve", "--tls-cert-file=/does/not/cert.pem", "--tls-key-file=/does/not/key.pem"}, nil, []string{"/does/not/cert.pem: no such file", "/does/not/key.pem: no such file"}},
		"no key":               {[]string{"serve", serverTLS[0]}, nil, []string{"--tls-key-file"}},
		"another's key":        {[]string{"serve", serverTLS[0], "--tls-key-file=" + makeCertificates(t).serverKey}, nil, []string{"key.pem: tls: private key does not match"}},
		"empty key":            {[]string{"serve", serverTLS[0], "--tls-key-file=" + empty}, nil, []string{"empty.pem: the file is empty"}},
		"encrypted key":        {[]string{"serve", serverTLS[0], "--tls-key-file=" + writeFile(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}))}, nil, []string{"key.pem: the key is encrypted: store it without a passphrase"}},
		"old encrypted key":    {[]string{"serve", serverTLS[0], "--tls-key-file=" + writeFile(t, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")}))}, nil, []string{"key.pem: the key is encrypted"}},
		"blank client CA":      {slices.Concat([]string{"serve", "--tls-client-ca-file=" + empty}, serverTLS), nil, []string{"empty.pem: the file is empty"}},
		"no client CA":         {slices.Concat([]string{"serve", "--tls-client-ca-file=/does/not/exist.pem"}, serverTLS), nil, []string{"/does/not/exist.pem: no such file"}},
		"empty client CA":      {slices.Concat([]string{"serve", "--tls-client-ca-file=" + noCertificate}, serverTLS), nil, []string{noCertificate + ": no certificate in it"}},
		"client CA alone":      {[]string{"serve", "--tls-client-ca-file=" + certs.caFile}, nil, []string{"--tls-client-ca-file: there is no TLS without --tls-cert-file and --tls-key-file"}},
		"plaintext and TLS":    {slices.Concat([]string{"serve", "--plaintext"}, serverTLS), nil, []string{"--plaintext: "}},
		"unused profiles":      {[]string{"serve", "--debug-pprof", "--admin-addr="}, nil, []string{"--debug-pprof: it would be ignored without --admin-addr"}},
		"gRPC beyond loopback": {[]string{"serve", "--grpc-addr=0.0.0.0:0"}, nil, []string{"--grpc-addr: 0.0.0.0:0: other machines can reach it without TLS"}},
		"REST beyond loopback": {[]string{"serve", "--http-addr=:0"}, nil, []string{":0: other machines can reach it without TLS"}},
		"nothing to call":      {[]string{"serve", "--grpc-addr=", "--http-addr="}, nil, []string{"nothing to call"}},
		"addresses":            {[]string{"serve", "--grpc-addr=9090", "--http-addr=unix:/tmp/http.sock", "--admin-addr=127.0.0.1:admin"}, nil, []string{"host:port", "host:port", "port must be a number"}},
		"all at once": {
			[]string{"serve", "--atlas-url=http://x", "--log-format=xml", "--tls-cert-file=/does/not/cert.pem", "--plaintext"},
			[]string{"TOKEND_ATLASURL=https://x", "TOKEND_ATLAS_TIMEOUT=soon"},
			[]string{"TOKEND_ATLASURL", "TOKEND_ATLAS_TIMEOUT", "--atlas-url", "--log-format", "--tls-key-file", "--plaintext"},
		},
		"SPIFFE and files": {
			slices.Concat([]string{"serve", "--spiffe-socket=unix:///run/spire/agent.sock", "--tls-client-ca-file=" + certs.caFile}, serverTLS), nil,
			[]string{"--spiffe-socket and --tls-cert-file: choose one", "--spiffe-socket and --tls-key-file: choose one", "--spiffe-socket and --tls-client-ca-file: choose one"},
		},
		"long path of an agent":      {[]string{"config", "--spiffe-socket=unix:///" + strings.Repeat("a", 120)}, nil, []string{"--spiffe-socket: the path of a socket file may have"}},
		"long path of Redis":         {[]string{"config", "--cache-ttl=1s", "--cache-redis-url=unix:///" + strings.Repeat("a", 120)}, nil, []string{"--cache-redis-url: the path of a socket file may have"}},
		"abstract socket":            {[]string{"serve", "--grpc-addr=unix:@tokend"}, nil, []string{"every user could connect"}},
		"SPIFFE and plaintext":       {[]string{"serve", "--spiffe-socket=unix:///run/spire/agent.sock", "--plaintext"}, nil, []string{"--plaintext: it contradicts TLS"}},
		"SPIFFE over TCP":            {[]string{"serve", "--spiffe-socket=tcp://127.0.0.1:8081", "--grpc-addr=:9090"}, nil, []string{"--spiffe-socket: must be unix:// and the absolute path"}},
		"SPIFFE and no SPIFFE":       {[]string{"config", "--spiffe-socket=unix:///run/spire/agent.sock", "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers: [{dns_san: a.b, allow: [CreateToken], profile: passthrough}]\n"))}, nil, []string{"--policy-file: it has callers by dns_san, and with --spiffe-socket"}},
		"config without an agent":    {[]string{"config", "--spiffe-socket=unix:///does/not/exist.sock"}, nil, []string{"connect: no such file or directory\". Start the agent"}},
		"page nowhere":               {[]string{"serve", "--docs", "--http-addr="}, nil, []string{"--docs: the API page is served on the HTTP listener, which is off"}},
		"origin nowhere":             {[]string{"serve", "--cors-origin=https://app.example.com", "--http-addr="}, nil, []string{"--cors-origin: browsers call the HTTP listener, which is off"}},
		"no origin":                  {[]string{"serve", "--cors-origin=*", "--cors-origin=https://app.example.com/,http://app.example.com"}, nil, []string{`--cors-origin: "*" is not an origin that can be allowed: there are no wildcards; name each origin`, `--cors-origin: "https://app.example.com/" is not an origin that can be allowed: browsers send https://app.example.com`, `--cors-origin: "http://app.example.com" is not an origin that can be allowed: pages over http`}},
		"no origin by variable":      {[]string{"dev"}, []string{"TOKEND_CORS_ORIGIN=https://app.example.com, null"}, []string{`--cors-origin: "null" is not an origin that can be allowed: every sandboxed page and every local file has it`}},
		"origin, no certificate":     {slices.Concat([]string{"serve", "--cors-origin=https://app.example.com", "--tls-client-ca-file=" + certs.caFile}, serverTLS), nil, []string{"--cors-origin: every caller needs a client certificate"}},
		"Atlas certificate alone":    {[]string{"serve", "--atlas-cert-file=" + certs.clientCert}, nil, []string{"--atlas-cert-file and --atlas-key-file"}},
		"no Atlas certificate":       {[]string{"serve", "--atlas-cert-file=/does/not/cert.pem", "--atlas-key-file=/does/not/key.pem"}, nil, []string{"/does/not/cert.pem: no such file", "/does/not/key.pem: no such file"}},
		"identity for anybody":       {[]string{"serve", "--atlas-userauthtoken-file=" + noCertificate}, nil, []string{"--atlas-userauthtoken-file: any client could use this Atlas identity"}},
		"no secret":                  {slices.Concat([]string{"serve", "--atlas-userauthtoken-file=/does/not/exist", "--tls-client-ca-file=" + certs.caFile}, serverTLS), nil, []string{"--atlas-userauthtoken-file: "}},
		"identity and policy":        {[]string{"serve", "--atlas-userauthtoken-file=" + noCertificate, "--policy-file=" + noCertificate}, nil, []string{"choose one"}},
		"a secret for its file":      {slices.Concat([]string{"serve", "--atlas-userauthtoken-file=hunter2", "--tls-client-ca-file=" + certs.caFile, "--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-password-file=hunter3"}, serverTLS), nil, []string{"--atlas-userauthtoken-file: there is no such file: give the path", "--cache-redis-password-file: there is no such file: give the path"}},
		"no policy":                  {[]string{"serve", "--policy-file=/does/not/exist"}, nil, []string{"--policy-file: "}},
		"a wrong policy":             {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers:\n  - {dns_san: a.b, allow: [Create], profile: acme}\n"))}, nil, []string{"policy.yaml:2: ", "policy.yaml:2: "}},
		"an unknown key in a policy": {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers: []\nunknown: 1\n"))}, nil, []string{"policy.yaml:2: field unknown not found"}},
		"certificates not asked for": {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers: [{dns_san: a.b, allow: [CreateToken], profile: passthrough}]\n"))}, nil, []string{"set --tls-client-ca-file"}},
		"no secret for a profile": {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("profiles:\n  a: {userauthtoken_file: /does/not/exist}\n  b: {userauthtoken_file: "+noCertificate+"}\n"+
			"callers:\n  - {dns_san: a.b, allow: [CreateToken], profile: a}\n  - {dns_san: b.b, allow: [CreateToken], profile: b}\n"))}, nil, []string{"policy.yaml:2: profile a: ", "set --tls-client-ca-file"}},
		"OIDC CA without a policy": {[]string{"serve", "--oidc-ca-file=" + certs.caFile}, nil, []string{"--oidc-ca-file: it would be ignored without a --policy-file"}},
		"OIDC CA without OIDC":     {[]string{"serve", "--oidc-ca-file=" + certs.caFile, "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers: [{atlas_jwt: true, allow: [CreateToken], profile: passthrough}]\n"))}, nil, []string{"--policy-file: it has no callers with OIDC tokens, so --oidc-ca-file would be ignored"}},
		"no OIDC CA":               {[]string{"serve", "--oidc-ca-file=/does/not/exist.pem"}, nil, []string{"--oidc-ca-file: stat /does/not/exist.pem: ", "--oidc-ca-file: it would be ignored without a --policy-file"}},
		"cache, all wrong":         {[]string{"serve", "--cache-ttl=-2s", "--cache-stale-if-error=-1s", "--cache-redis-ca-file=" + certs.caFile, "--cache-redis-password-file=" + noCertificate}, nil, []string{"--cache-ttl: -2s", "--cache-stale-if-error: -1s", "--cache-redis-ca-file: it would be ignored without", "--cache-redis-password-file: it would be ignored without"}},
		"negative numbers": {
			[]string{"serve", "--atlas-timeout=-1s", "--atlas-max-calls=-1", "--max-connections=-1", "--caller-rate=-1", "--drain-delay=-1s", "--drain-timeout=-1s", "--cache-stale-if-error=-1s"}, nil,
			[]string{"--atlas-timeout: -1s", "--atlas-max-calls: -1", "--max-connections: -1", "--caller-rate: -1", "--drain-delay: -1s", "--drain-timeout: -1s", "--cache-stale-if-error: -1s: must not be negative"},
		},
		"endless Atlas":               {[]string{"serve", "--atlas-timeout=2562047h"}, nil, []string{"--atlas-timeout: 2562047h0m0s: must be no more than a year"}},
		"cache with a wrong TTL":      {[]string{"serve", "--cache-ttl=-2s", "--cache-stale-if-error=1m", "--cache-redis-url=redis://127.0.0.1:1"}, nil, []string{"--cache-ttl: -2s"}},
		"cache without a TTL":         {[]string{"serve", "--cache-redis-url=redis://127.0.0.1:1", "--cache-stale-if-error=1m"}, nil, []string{"--cache-redis-url: nothing would be cached", "--cache-stale-if-error: nothing would be cached"}},
		"a password in Redis's URL":   {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=redis://u:hunter2@127.0.0.1:1"}, nil, []string{"--cache-redis-url: it contains a password"}},
		"Redis over HTTP":             {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=http://127.0.0.1:1"}, nil, []string{"--cache-redis-url: it is not one of redis://"}},
		"a CA without TLS":            {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-ca-file=" + certs.caFile}, nil, []string{"--cache-redis-ca-file: it would be ignored"}},
		"no password of Redis":        {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-password-file=/does/not/exist"}, nil, []string{"--cache-redis-password-file: "}},
		"not valid yet":               {[]string{"serve", "--tls-cert-file=" + bad["early"] + ".pem", "--tls-key-file=" + bad["early"] + ".key"}, nil, []string{"--tls-cert-file and --tls-key-file: " + bad["early"] + ".pem with " + bad["early"] + ".key: the certificate is not valid before 2"}},
		"not valid yet, for Atlas":    {[]string{"config", "--atlas-cert-file=" + bad["early"] + ".pem", "--atlas-key-file=" + bad["early"] + ".key"}, nil, []string{"--atlas-cert-file and --atlas-key-file: "}},
		"expired":                     {[]string{"config", "--tls-cert-file=" + bad["late"] + ".pem", "--tls-key-file=" + bad["late"] + ".key"}, nil, []string{"--tls-cert-file and --tls-key-file: the certificate expired at 2"}},
		"a client's certificate":      {[]string{"serve", "--tls-cert-file=" + certs.clientCert, "--tls-key-file=" + certs.clientKey}, nil, []string{"the certificate is not for servers: its extended key usage lacks serverAuth"}},
		"a leaf as client CA":         {slices.Concat([]string{"serve", "--tls-client-ca-file=" + certs.clientCert}, serverTLS), nil, []string{"--tls-client-ca-file: " + certs.clientCert + ": certificate 1 (CN=Test client) is no authority"}},
		"a route for Atlas":           {[]string{"serve", "--atlas-url=https://atlas.example/v1/ephemeral-token/"}, nil, []string{"--atlas-url: it is Atlas's base URL"}},
		"an issuer that is not there": {[]string{"config", "--policy-file=" + writeFile(t, "policy.yaml", []byte("profiles: {acme: {userauthtoken_file: "+noCertificate+"}}\ncallers: [{oidc: {issuer: \"https://127.0.0.1:1\", audience: a, subject: s}, allow: [CreateToken], profile: acme}]\n"))}, nil, []string{"issuer https://127.0.0.1:1: "}},
		"socket mode":                 {[]string{"serve", "--grpc-addr=unix:/tmp/s", "--grpc-socket-mode=0755"}, nil, []string{`--grpc-socket-mode: "0755": must be octal`}},
		"socket mode in words":        {[]string{"serve"}, []string{"TOKEND_GRPC_SOCKET_MODE=rw"}, []string{`--grpc-socket-mode: "rw": must be octal`}},
		"socket without an owner":     {[]string{"serve", "--grpc-addr=unix:/tmp/s", "--grpc-socket-mode=0066"}, nil, []string{`--grpc-socket-mode: "0066": must be octal`}},
		"socket flags for a port":     {[]string{"serve", "--grpc-socket-mode=0660"}, nil, []string{"--grpc-socket-mode: it would be ignored"}},
		"audit into a pipe":           {[]string{"serve", "--audit-file=" + pipe}, nil, []string{"--audit-file: open " + pipe + ": no such device or address: the pipe has no reader"}},
		"config":                      {[]string{"config", "--atlas-url=http://x", "--log-level=loud"}, nil, []string{"--atlas-url", "--log-level"}},
		"healthcheck":                 {[]string{"healthcheck", "--admin-addr=9091"}, nil, []string{"--admin-addr"}},
		"dev, gRPC beyond loopback":   {[]string{"dev", "--grpc-addr=0.0.0.0:0"}, nil, []string{"--grpc-addr: tokend dev listens on loopback only, not on 0.0.0.0:0"}},
		"dev, all beyond loopback":    {[]string{"dev", "--grpc-addr=[::]:0", "--http-addr=:0", "--admin-addr=0.0.0.0:0"}, nil, []string{"--grpc-addr", "--http-addr", "--admin-addr"}},
		"dev's setting, serve":        {[]string{"serve"}, []string{"TOKEND_SERVICE_IDENTITY=true"}, []string{"TOKEND_SERVICE_IDENTITY: tokend serve would ignore it"}},
		"dev's setting, config":       {[]string{"config"}, []string{"TOKEND_SERVICE_IDENTITY=true"}, []string{"TOKEND_SERVICE_IDENTITY: tokend config would ignore it"}},
		"identity beyond loopback":    {[]string{"dev", "--service-identity", "--grpc-addr=[::]:0", "--http-addr=:0", "--admin-addr=0.0.0.0:0", "--log-level=loud"}, nil, []string{"--grpc-addr", "--http-addr", "--admin-addr", "--log-level"}},
		"dev with an Atlas":           {[]string{"dev", "--http-addr=", "--admin-addr="}, []string{"TOKEND_ATLAS_URL=https://atlas.forsta.io/v1"}, []string{"TOKEND_ATLAS_URL: tokend dev would ignore it"}},
		"dev with TLS":                {[]string{"dev"}, []string{"TOKEND_TLS_CERT_FILE=" + certs.serverCert}, []string{"TOKEND_TLS_CERT_FILE: tokend dev would ignore it"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := invocation{args: test.args, env: test.env}.run(t)
			code := 64
			if mayPass[name] {
				code = 1
			}
			if got.code != code || got.stdout != "" {
				t.Errorf("exit status %d, want %d, standard output:\n%s", got.code, code, got.stdout)
			}
			lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
			if !strings.HasPrefix(lines[0], "tokend: ") {
				t.Errorf("it begins with %s", lines[0])
			}
			if len(test.want) > 1 {
				lines = lines[1:]
			}
			if strings.Contains(got.stderr, "hunter") {
				t.Errorf("a secret is repeated:\n%s", got.stderr)
			}
			if len(lines) != len(test.want) {
				t.Errorf("want %d errors:\n%s", len(test.want), got.stderr)
			}
			for _, want := range test.want {
				i := slices.IndexFunc(lines, func(line string) bool { return strings.Contains(line, want) })
				if i < 0 {
					t.Errorf("no line has %s:\n%s", want, got.stderr)
					continue
				}
				lines = slices.Delete(lines, i, i+1)
			}
		})
	}
}

// makeBadCertificates makes servers' certificates that are out of their time, "early" and "late":
// NAME.pem and NAME.key.
func makeBadCertificates(t *testing.T, certs certificates) map[string]string {
	t.Helper()
	made := map[string]string{}
	for name, from := range map[string]time.Time{"early": time.Now().Add(time.Hour), "late": time.Now().Add(-2 * time.Hour)} {
		base := filepath.Join(t.TempDir(), name)
		certs.issue(t, base+".pem", base+".key", func(cert *x509.Certificate) {
			cert.DNSNames, cert.NotBefore, cert.NotAfter = []string{"localhost"}, from, from.Add(time.Hour)
		})
		made[name] = base
	}
	return made
}

// What may be meant is said, in the log of serve and at the end of config, and does not keep it
// from starting.
func TestWarnings(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	expired := makeBadCertificates(t, certs)["late"]
	public := func(content string) string {
		file := writeFile(t, "public", []byte(content))
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	secret, password, key := public("secret"), public("hunter2"), public(readFile(t, certs.serverKey))
	policy := writeFile(t, "policy.yaml", []byte("profiles: {acme: {userauthtoken_file: "+secret+"}}\ncallers: [{dns_san: a.b, allow: [CreateToken], profile: acme}]\n"))
	for name, test := range map[string]struct {
		args   []string
		says   []string
		config int // exit status
	}{
		"readable key":      {[]string{"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + key}, []string{"every user of this machine can read the secret", "--tls-key-file", key}, 0},
		"readable password": {[]string{"--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-password-file=" + password}, []string{"can read the secret", "--cache-redis-password-file", password}, 0},
		"readable profile":  {[]string{"--policy-file=" + policy, "--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey, "--tls-client-ca-file=" + certs.caFile}, []string{"can read the secret", "profile acme", secret}, 0},
		"another path":      {[]string{"--atlas-url=https://atlas.example/api"}, []string{"Atlas's base URL usually ends in /v1"}, 0},
		"open socket":       {[]string{"--grpc-addr=unix:" + socketPath(t), "--grpc-socket-mode=0666"}, []string{"every user of this machine can connect to gRPC's socket", "-rw-rw-rw-"}, 0},
		"expired":           {[]string{"--tls-cert-file=" + expired + ".pem", "--tls-key-file=" + expired + ".key"}, []string{"a certificate in use has expired"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := invocation{args: slices.Concat([]string{"serve", "--drain-delay=0s"}, freePorts, atlasFlags(t, em), test.args)}.awaitServing(t, em)
			config := tokend(t, append([]string{"config"}, test.args...)...)
			if config.code != test.config {
				t.Errorf("config ends with %d\n%s", config.code, config.stderr)
			}
			for _, says := range test.says {
				if !strings.Contains(s.stderr.String(), says) {
					t.Errorf("serve does not say %q", says)
				}
				if test.config == 0 && !strings.Contains(config.stdout, says) {
					t.Errorf("config does not say %q:\n%s", says, config.stdout)
				}
			}
			if strings.Contains(config.stdout+config.stderr+s.stderr.String(), "hunter") {
				t.Error("a secret is repeated")
			}
		})
	}
	if got := tokend(t, "config", "--tls-cert-file="+certs.serverCert, "--tls-key-file="+certs.serverKey); strings.Contains(got.stdout, "warning") {
		t.Errorf("it warns of what is right:\n%s", got.stdout)
	}
}

// serviceLinks are what Kubernetes puts into every pod of a namespace with Services named tokend
// and tokend-redis-7.
var serviceLinks = []string{
	"TOKEND_SERVICE_HOST=10.0.0.1", "TOKEND_SERVICE_PORT=9090", "TOKEND_SERVICE_PORT_GRPC=9090", "TOKEND_SERVICE_PORT_HTTP_2=8080",
	"TOKEND_PORT=tcp://10.0.0.1:9090", "TOKEND_PORT_9090_TCP=tcp://10.0.0.1:9090", "TOKEND_PORT_9090_TCP_PROTO=tcp",
	"TOKEND_PORT_9090_TCP_PORT=9090", "TOKEND_PORT_9090_TCP_ADDR=10.0.0.1",
	"TOKEND_REDIS_7_SERVICE_HOST=fd00::7", "TOKEND_REDIS_7_SERVICE_PORT=53", "TOKEND_REDIS_7_SERVICE_PORT_DNS=53",
	"TOKEND_REDIS_7_PORT=udp://[fd00::7]:53", "TOKEND_REDIS_7_PORT_53_UDP=udp://[fd00::7]:53", "TOKEND_REDIS_7_PORT_53_UDP_PROTO=udp",
	"TOKEND_REDIS_7_PORT_53_UDP_PORT=53", "TOKEND_REDIS_7_PORT_53_UDP_ADDR=fd00::7",
	"TOKEND_REDIS_7_PORT_99_SCTP=sctp://[fd00::7]:99", "TOKEND_REDIS_7_PORT_99_SCTP_PROTO=sctp", "TOKEND_REDIS_7_PORT_99_SCTP_PORT=99",
	"TOKEND_REDIS_7_PORT_99_SCTP_ADDR=fd00::7",
}

// Every subcommand starts beside Services of its own name, and takes no setting from them.
func TestServiceLinks(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"config"}, {"version"}} {
		got, want := invocation{args: args, env: serviceLinks}.run(t), tokend(t, args...)
		if got != want || got.code != 0 {
			t.Errorf("%s: exit status %d, standard error\n%s\nstandard output\n%s\nwant\n%s", args, got.code, got.stderr, got.stdout, want.stdout)
		}
	}
	s := invocation{env: serviceLinks}.startServe(t, startAtlas(t))
	if got := (invocation{args: []string{"healthcheck", "--admin-addr=" + s.admin}, env: serviceLinks}).run(t); got != (result{0, "healthy\n", ""}) {
		t.Errorf("healthcheck: %+v", got)
	}
}

// A misspelt setting does not pass for a service link.
func TestNoServiceLinks(t *testing.T) {
	t.Parallel()
	variables := []string{
		"TOKEND_ATLAS_ULR=https://atlas.forsta.io/v1", "TOKEND_GRPC_PORT=9090", "TOKEND_PORT=8080", "TOKEND_SERVICE_HOST=localhost",
		"TOKEND_SERVICE_PORT=http", "TOKEND_GRPC_SERVICE_PORT=:9090", "TOKEND_PORT_9090_TCP=9090", "TOKEND_PORT_HTTP_TCP=tcp://10.0.0.1:80",
		"TOKEND_PORT_9090_TCP_ADDR=:9090", "TOKEND_PORT_9090_TCP_PROTO=http", "TOKEND_HTTP_PORT=https://10.0.0.1:8080", "TOKENDX_PORT=tcp://10.0.0.1:1",
		"TOKEND_SERVICE_ADDR=10.0.0.1", "TOKEND_TCP_ADDR=10.0.0.1", "TOKEND__PORT=9",
	}
	got := invocation{args: []string{"config"}, env: variables}.run(t)
	if got.code != 64 {
		t.Errorf("exit status %d", got.code)
	}
	for _, variable := range variables {
		name, _, _ := strings.Cut(variable, "=")
		ours := strings.HasPrefix(name, "TOKEND_")
		if strings.Contains(got.stderr, "  "+name+": there is no such setting") != ours {
			t.Errorf("%s, with our prefix: %v:\n%s", variable, ours, got.stderr)
		}
	}
}

// A taken port gives one line that says which and what to do, and leaves nothing behind.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = busy.Close() })
	em := startAtlas(t)
	for _, command := range [][]string{{"dev"}, append([]string{"serve"}, atlasFlags(t, em)...)} {
		for i, flag := range []string{"--grpc-addr", "--http-addr", "--admin-addr"} {
			addresses := slices.Clone(freePorts)
			addresses[i] = flag + "=" + busy.Addr().String()
			got := tokend(t, slices.Concat(command, addresses)...)
			want := "tokend: " + flag + ": " + busy.Addr().String() + ": the address is in use"
			if got.code != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, want) || strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("%s %s: exit status %d\n%s%s", command[0], flag, got.code, got.stdout, got.stderr)
			}
		}
	}
	taken := busy.Addr().String()
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	got := tokend(t, "dev", "--grpc-addr="+taken, "--http-addr="+other.Addr().String(), "--admin-addr=127.0.0.1:0")
	if got.code != 1 || strings.Count(got.stderr, "\n  --") != 2 || strings.Count(got.stderr, "\n") != 3 {
		t.Errorf("two taken ports: exit status %d\n%s", got.code, got.stderr)
	}
}
