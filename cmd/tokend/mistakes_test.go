//go:build unix

package main_test

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Whatever is wrong with what the user asked for is reported at once, a line each, and nothing starts.
func TestMistakes(t *testing.T) {
	t.Parallel()
	certs := makeCertificates(t)
	otherCerts := makeCertificates(t)
	noCertificate := writeFile(t, "ca.pem", []byte("nothing\n"))
	mixed := t.TempDir() // one server's certificate, another's key
	copyFile(t, certs.serverCert, filepath.Join(mixed, "cert.pem"))
	copyFile(t, otherCerts.serverKey, filepath.Join(mixed, "key.pem"))
	serverTLS := []string{"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey}

	for name, test := range map[string]struct {
		args, env []string
		want      []string // what each line has in it, in any order
	}{
		"no command":           {nil, nil, []string{`"serve", "dev", "config", "healthcheck", "version"`}},
		"unknown command":      {[]string{"server"}, nil, []string{"server"}},
		"argument":             {[]string{"serve", "now"}, nil, []string{"now"}},
		"unknown flag":         {[]string{"serve", "--grpc-adr", "127.0.0.1:0"}, nil, []string{"--grpc-adr: there is no such flag; see tokend"}},
		"no value":             {[]string{"serve", "--log-level", "--http-addr"}, nil, []string{"--log-level: its value is missing", "--http-addr: its value is missing"}},
		"not a bool":           {[]string{"serve", "--plaintext=perhaps"}, nil, []string{`--plaintext: "perhaps" is neither`}},
		"unknown variable":     {[]string{"serve"}, []string{"TOKEND_GRPC_ADRR=127.0.0.1:0"}, []string{"TOKEND_GRPC_ADRR: there is no such setting"}},
		"variable not a bool":  {[]string{"serve"}, []string{"TOKEND_PLAINTEXT=perhaps"}, []string{`TOKEND_PLAINTEXT: "perhaps" is neither`}},
		"no duration":          {[]string{"serve", "--drain-timeout=10", "--atlas-timeout", "-1s"}, nil, []string{`--drain-timeout: "10" is not a duration`, `--atlas-timeout: "-1s" is not a duration`}},
		"no time":              {[]string{"serve"}, []string{"TOKEND_DRAIN_TIMEOUT=0s", "TOKEND_ATLAS_TIMEOUT="}, []string{`--drain-timeout: "0s"`, `--atlas-timeout: ""`}},
		"log":                  {[]string{"serve", "--log-level=trace", "--log-format=xml"}, nil, []string{"debug, info, warn, error", "json, text"}},
		"plain-http Atlas":     {[]string{"serve", "--atlas-url=http://atlas.forsta.io/v1"}, nil, []string{"--atlas-url: "}},
		"no Atlas":             {[]string{"serve", "--atlas-url="}, nil, []string{"--atlas-url: "}},
		"no Atlas CA":          {[]string{"serve", "--atlas-ca-file=/does/not/exist.pem"}, nil, []string{"--atlas-ca-file: "}},
		"empty Atlas CA":       {[]string{"serve", "--atlas-ca-file=" + noCertificate}, nil, []string{"--atlas-ca-file: "}},
		"no certificate":       {[]string{"serve", "--tls-cert-file=/does/not/cert.pem", "--tls-key-file=/does/not/key.pem"}, nil, []string{"/does/not/cert.pem: no such file", "/does/not/key.pem: no such file"}},
		"no key":               {[]string{"serve", serverTLS[0]}, nil, []string{"--tls-key-file"}},
		"another's key":        {[]string{"serve", "--tls-cert-file=" + filepath.Join(mixed, "cert.pem"), "--tls-key-file=" + filepath.Join(mixed, "key.pem")}, nil, []string{"key.pem: tls: private key does not match"}},
		"no client CA":         {slices.Concat([]string{"serve", "--tls-client-ca-file=/does/not/exist.pem"}, serverTLS), nil, []string{"/does/not/exist.pem: no such file"}},
		"empty client CA":      {slices.Concat([]string{"serve", "--tls-client-ca-file=" + noCertificate}, serverTLS), nil, []string{noCertificate + ": no certificate in it"}},
		"client CA alone":      {[]string{"serve", "--tls-client-ca-file=" + certs.caFile}, nil, []string{"--tls-cert-file and --tls-key-file"}},
		"plaintext and TLS":    {slices.Concat([]string{"serve", "--plaintext"}, serverTLS), nil, []string{"--plaintext: "}},
		"gRPC beyond loopback": {[]string{"serve", "--grpc-addr=0.0.0.0:0"}, nil, []string{"0.0.0.0:0: other machines can reach it, and it has no TLS: give --tls-cert-file and --tls-key-file, or --plaintext"}},
		"REST beyond loopback": {[]string{"serve", "--http-addr=:0"}, nil, []string{":0: other machines can reach it, and it has no TLS: give --tls-cert-file and --tls-key-file, or --plaintext"}},
		"nothing to call":      {[]string{"serve", "--grpc-addr=", "--http-addr="}, nil, []string{"nothing to call"}},
		"addresses":            {[]string{"serve", "--grpc-addr=9090", "--http-addr=unix:/tmp/http.sock", "--admin-addr=127.0.0.1:admin"}, nil, []string{"host:port", "host:port", "port must be a number"}},
		"all at once": {
			[]string{"serve", "--drain-tiemout=1s", "--atlas-url=http://x", "--log-format=xml", "--tls-cert-file=/does/not/cert.pem", "--plaintext"},
			[]string{"TOKEND_ATLASURL=https://x", "TOKEND_ATLAS_TIMEOUT=soon"},
			[]string{"--drain-tiemout", "TOKEND_ATLASURL", "--atlas-timeout", "--atlas-url", "--log-format", "--tls-key-file", "--plaintext"},
		},
		"Atlas certificate alone":    {[]string{"serve", "--atlas-cert-file=" + certs.clientCert}, nil, []string{"--atlas-cert-file and --atlas-key-file"}},
		"no Atlas certificate":       {[]string{"serve", "--atlas-cert-file=/does/not/cert.pem", "--atlas-key-file=/does/not/key.pem"}, nil, []string{"/does/not/cert.pem: no such file", "/does/not/key.pem: no such file"}},
		"identity for anybody":       {[]string{"serve", "--atlas-userauthtoken-file=" + noCertificate}, nil, []string{"--atlas-userauthtoken-file: anybody could use this Atlas identity"}},
		"no secret":                  {slices.Concat([]string{"serve", "--atlas-userauthtoken-file=/does/not/exist", "--tls-client-ca-file=" + certs.caFile}, serverTLS), nil, []string{"--atlas-userauthtoken-file: "}},
		"identity and policy":        {[]string{"serve", "--atlas-userauthtoken-file=" + noCertificate, "--policy-file=" + noCertificate}, nil, []string{"choose one"}},
		"a secret for its file":      {slices.Concat([]string{"serve", "--atlas-userauthtoken-file=hunter2", "--tls-client-ca-file=" + certs.caFile, "--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-password-file=hunter3"}, serverTLS), nil, []string{"--atlas-userauthtoken-file: there is no such file: give the path", "--cache-redis-password-file: there is no such file: give the path"}},
		"no policy":                  {[]string{"serve", "--policy-file=/does/not/exist"}, nil, []string{"--policy-file: "}},
		"a wrong policy":             {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers:\n  - {dns_san: a.b, allow: [Create], profile: acme}\nunknown: 1\n"))}, nil, []string{"policy.yaml:2: ", "policy.yaml:2: ", "policy.yaml:3: "}},
		"certificates not asked for": {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers: [{dns_san: a.b, allow: [CreateToken], profile: passthrough}]\n"))}, nil, []string{"give --tls-client-ca-file"}},
		"no secret for a profile": {[]string{"serve", "--policy-file=" + writeFile(t, "policy.yaml", []byte("profiles:\n  a: {userauthtoken_file: /does/not/exist}\n  b: {userauthtoken_file: "+noCertificate+"}\n"+
			"callers:\n  - {dns_san: a.b, allow: [CreateToken], profile: a}\n  - {dns_san: b.b, allow: [CreateToken], profile: b}\n"))}, nil, []string{"policy.yaml:2: profile a: ", "give --tls-client-ca-file"}},
		"OIDC CA without a policy":   {[]string{"serve", "--oidc-ca-file=" + certs.caFile}, nil, []string{"--oidc-ca-file: without a --policy-file"}},
		"OIDC CA without OIDC":       {[]string{"serve", "--oidc-ca-file=" + certs.caFile, "--policy-file=" + writeFile(t, "policy.yaml", []byte("callers: [{atlas_jwt: true, allow: [CreateToken], profile: passthrough}]\n"))}, nil, []string{"--policy-file: it has no callers with OIDC tokens, so --oidc-ca-file would be ignored"}},
		"no OIDC CA":                 {[]string{"serve", "--oidc-ca-file=/does/not/exist.pem"}, nil, []string{"--oidc-ca-file: stat /does/not/exist.pem: ", "--oidc-ca-file: without a --policy-file"}},
		"cache, all wrong":           {[]string{"serve", "--cache-ttl=long", "--cache-stale-if-error=-1s", "--cache-redis-ca-file=" + certs.caFile, "--cache-redis-password-file=" + noCertificate}, nil, []string{"--cache-ttl: \"long\"", "--cache-stale-if-error: \"-1s\"", "--cache-redis-ca-file: without", "--cache-redis-password-file: without"}},
		"cache with a wrong TTL":     {[]string{"serve", "--cache-ttl=long", "--cache-stale-if-error=1m", "--cache-redis-url=redis://127.0.0.1:1"}, nil, []string{"--cache-ttl: \"long\""}},
		"cache without a TTL":        {[]string{"serve", "--cache-redis-url=redis://127.0.0.1:1", "--cache-stale-if-error=1m"}, nil, []string{"--cache-redis-url: nothing would be remembered", "--cache-stale-if-error: nothing would be kept"}},
		"a password in Redis's URL":  {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=redis://u:hunter2@127.0.0.1:1"}, nil, []string{"--cache-redis-url: it has a password in it"}},
		"Redis over HTTP":            {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=http://127.0.0.1:1"}, nil, []string{"--cache-redis-url: it is not one of redis://"}},
		"a CA without TLS":           {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-ca-file=" + certs.caFile}, nil, []string{"--cache-redis-ca-file: it would be ignored"}},
		"no password of Redis":       {[]string{"serve", "--cache-ttl=1s", "--cache-redis-url=redis://127.0.0.1:1", "--cache-redis-password-file=/does/not/exist"}, nil, []string{"--cache-redis-password-file: "}},
		"config":                     {[]string{"config", "--atlas-url=http://x", "--log-level=loud"}, nil, []string{"--atlas-url", "--log-level"}},
		"healthcheck":                {[]string{"healthcheck", "--admin-addr=9091"}, nil, []string{"--admin-addr"}},
		"dev, gRPC beyond loopback":  {[]string{"dev", "--grpc-addr=0.0.0.0:0"}, nil, []string{"--grpc-addr: tokend dev listens on loopback only, not on 0.0.0.0:0"}},
		"dev, all beyond loopback":   {[]string{"dev", "--grpc-addr=[::]:0", "--http-addr=:0", "--admin-addr=0.0.0.0:0"}, nil, []string{"--grpc-addr", "--http-addr", "--admin-addr"}},
		"dev's setting, serve":       {[]string{"serve"}, []string{"TOKEND_SERVICE_IDENTITY=true"}, []string{"TOKEND_SERVICE_IDENTITY: tokend serve would ignore it"}},
		"dev's setting, config":      {[]string{"config"}, []string{"TOKEND_SERVICE_IDENTITY=true"}, []string{"TOKEND_SERVICE_IDENTITY: tokend config would ignore it"}},
		"identity beyond loopback":   {[]string{"dev", "--service-identity", "--grpc-addr=[::]:0", "--http-addr=:0", "--admin-addr=0.0.0.0:0", "--log-level=loud"}, nil, []string{"--grpc-addr", "--http-addr", "--admin-addr", "--log-level"}},
		"dev with an Atlas":          {[]string{"dev", "--http-addr=", "--admin-addr="}, []string{"TOKEND_ATLAS_URL=https://atlas.forsta.io/v1"}, []string{"TOKEND_ATLAS_URL: tokend dev would ignore it"}},
		"dev with an Atlas, by flag": {[]string{"dev", "--atlas-url=https://atlas.forsta.io/v1"}, nil, []string{"--atlas-url"}},
		"dev with TLS":               {[]string{"dev"}, []string{"TOKEND_TLS_CERT_FILE=" + certs.serverCert}, []string{"TOKEND_TLS_CERT_FILE: tokend dev would ignore it"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := invocation{test.args, test.env}.run(t)
			if got.code != 2 || got.stdout != "" {
				t.Errorf("exit status %d, standard output:\n%s", got.code, got.stdout)
			}
			lines := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
			if len(test.want) > 1 {
				if !strings.Contains(lines[0], "nothing was started") {
					t.Errorf("it begins with %s", lines[0])
				}
				lines = lines[1:]
			} else if !strings.HasPrefix(lines[0], "tokend: ") {
				t.Errorf("it begins with %s", lines[0])
			}
			if strings.Contains(got.stderr, "hunter") {
				t.Errorf("a secret is repeated:\n%s", got.stderr)
			}
			if len(lines) != len(test.want) {
				t.Errorf("want %d mistakes:\n%s", len(test.want), got.stderr)
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
			want := "tokend: " + flag + " " + busy.Addr().String() + ": the address is in use"
			if got.code != 1 || got.stdout != "" || !strings.HasPrefix(got.stderr, want) || strings.Count(got.stderr, "\n") != 1 {
				t.Errorf("%s %s: exit status %d\n%s%s", command[0], flag, got.code, got.stdout, got.stderr)
			}
		}
	}
	taken := busy.Addr().String()
	got := tokend(t, "dev", "--grpc-addr="+taken, "--http-addr="+taken, "--admin-addr=127.0.0.1:0")
	if got.code != 1 || strings.Count(got.stderr, "\ntokend: ") != 1 || strings.Count(got.stderr, "\n") != 2 {
		t.Errorf("two taken ports: exit status %d\n%s", got.code, got.stderr)
	}
}
