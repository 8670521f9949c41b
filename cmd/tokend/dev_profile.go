package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// devCaller is who the one client certificate is for.
const devCaller = "spiffe://dev.invalid/web"

// profile holds one, of an emulated org: serve itself, with all the files that it needs made in a private directory that does
// not outlive it.
func (c *devCommand) profile(in *invocation, em *emulator.Emulator) (*setup, devAccess, error) {
	tmp, err := filepath.Abs(os.TempDir()) // as a policy wants it
	if err != nil {
		return nil, devAccess{}, err
	}
	dir, err := os.MkdirTemp(tmp, "tokend-dev-") // nobody else can read it
	if err != nil {
		return nil, devAccess{}, err
	}
	remove := func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintf(in.stderr, "tokend: %v\n", err)
		}
	}
	flags, err := c.profileFlags(dir, em)
	if err != nil {
		remove()
		return nil, devAccess{}, err
	}
	s := flags.open(in, in.stdout, c.logger(in.stderr), false)
	s.close = append(s.close, remove)
	return s, certificateAccess(dir, s.who), nil
}

// profileFlags writes the files into dir and returns the flags with which serve uses them.
func (c *devCommand) profileFlags(dir string, em *emulator.Emulator) (serveFlags, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	if err := makeDevCertificates(dir, c.loopbackIPs()); err != nil {
		return serveFlags{}, fmt.Errorf("make certificates: %w", err)
	}
	policy := fmt.Sprintf(`profiles:
  acme: {userauthtoken_file: %s}
callers:
  - {spiffe_id: %s, allow: [CreateToken, DeleteToken], profile: acme}
`, yamlText(file("userauthtoken")), yamlText(devCaller))
	for name, content := range map[string]string{
		"atlas-ca.pem":  string(em.CAPEM()),
		"userauthtoken": em.Org(0).UserAuthToken() + "\n",
		"policy.yaml":   policy,
	} {
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			return serveFlags{}, err
		}
	}
	return serveFlags{
		listenFlags:  c.listenFlags,
		tlsFlags:     tlsFlags{CertFile: file("server.pem"), KeyFile: file("server-key.pem"), ClientCAFile: file("ca.pem")},
		atlasFlags:   atlasFlags{URL: em.URL(), CAFile: file("atlas-ca.pem"), Timeout: 10 * time.Second},
		authFlags:    authFlags{PolicyFile: file("policy.yaml")},
		browserFlags: c.browserFlags,
	}, nil
}

// loopbackIPs are the addresses that the server's certificate has to be good for.
func (c *devCommand) loopbackIPs() []net.IP {
	ips := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, addr := range []string{c.GRPCAddr, c.HTTPAddr} {
		host, _, _ := net.SplitHostPort(addr) // what is no address is reported elsewhere
		if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
			ips = append(ips, ip)
		}
	}
	return ips
}

// certificateAccess gets in with the client certificate. Without it, nobody does.
func certificateAccess(dir, who string) devAccess {
	const files = `"$DEV_FILES/`
	return devAccess{
		intro: "# The service holds the Atlas identity of an emulated org. Its caller has a client certificate and no Atlas secret.\n" +
			"# " + strings.ReplaceAll(strings.TrimSuffix(who, "\n"), "\n", "\n# ") + "\n\n" +
			"export DEV_FILES=" + shellText(dir) + "\n",
		scheme:  "https",
		curl:    `--cacert ` + files + `ca.pem" --cert ` + files + `client.pem" --key ` + files + `client-key.pem" `,
		grpcurl: `-cacert ` + files + `ca.pem" -cert ` + files + `client.pem" -key ` + files + `client-key.pem" `,
		// Over HTTP/2 curl often writes before it reads, and then reports a reset rather than the reason for it.
		refused: &devAccess{scheme: "https", curl: `--http1.1 --cacert ` + files + `ca.pem" `, grpcurl: `-cacert ` + files + `ca.pem" `},
	}
}

// shellText is text as one word of a shell.
func shellText(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// yamlText is text as a scalar of YAML (1.2.2, 7.3.2).
func yamlText(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
