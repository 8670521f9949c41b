package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// devCommand serves with an emulated Atlas. It has no setting of Atlas or TLS and listens on
// loopback only, so that it cannot be mistaken for the real service.
func devCommand(environ []string) *cobra.Command {
	var (
		set      setup.Settings
		identity bool
	)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Try it: serve with an emulated Atlas in the same process. Nothing in it is real.",
		Long:  "Try it: serve with an emulated Atlas in the same process. Nothing in it is real." + strings.ReplaceAll(inEnvironment, "atlas-url is TOKEND_ATLAS_URL", "log-level is TOKEND_LOG_LEVEL"),
	}
	cli.DevFlags(cmd, &set)
	cmd.Flags().BoolVar(&identity, "service-identity", false, "Hold the identity of an emulated org, for a client that has a certificate and no Atlas\nsecret. The certificates are made for the occasion.")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		invalid := errors.Join(cli.Environment(cmd, environ, false), checkLoopback(&set))
		if set.HTTPAddr == "" && !cmd.Flags().Changed("docs") {
			set.Docs = false // on by default, which is no mistake
		}
		return dev(cmd.Context(), set, identity, environ, invalid, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// devSeed makes the emulator's signing key. It is public: a JWT of it is good for the emulator of
// tokend dev and nothing else.
const devSeed = "tokend dev (not real)"

func dev(ctx context.Context, set setup.Settings, identity bool, environ []string, invalid error, stdout, stderr io.Writer) error {
	em, err := emulator.Start(emulator.Config{Seed: devSeed})
	if err != nil {
		return err
	}
	defer em.Close()
	tmp, err := filepath.Abs(os.TempDir()) // a policy wants absolute paths
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(tmp, "tokend-dev-") // other users cannot read it
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }() // it is in the folder of temporary files
	use := passThrough
	if identity {
		use = holdIdentity
	}
	access, err := use(&set, dir, em)
	if err != nil {
		return err
	}
	set.Dev = true
	log, out := set.Log(stderr, environ)
	defer out.Close()
	s := setup.Open(set, setup.Options{Build: build(), Environ: environ, Stdout: stdout, Logger: log})
	defer s.Close()
	if err := errors.Join(invalid, s.Err()); err != nil {
		return err
	}
	s.Config.Audit = slog.New(&callLines{log: log})
	access.faults = strings.TrimSuffix(em.URL(), "/v1") + "/_emulator/faults"
	if identity {
		access.intro = "# The service holds the Atlas identity of an emulated org. Its client has a certificate and no Atlas secret.\n" +
			"# " + strings.ReplaceAll(strings.TrimSuffix(s.DescribeCallers(), "\n"), "\n", "\n# ") + "\n\n" + access.intro
	}
	return s.Serve(ctx, nil, func(srv *server.Server) {
		for s.Config.Auth.Starting() && ctx.Err() == nil { // until it has logged in it is not ready
			<-time.After(10 * time.Millisecond)
		}
		fmt.Fprint(stdout, devGuide(srv, access, set.Docs))
	})
}

// checkLoopback reports addresses beyond loopback.
func checkLoopback(set *setup.Settings) error {
	var errs []error
	for _, l := range []struct{ flag, addr string }{{"--grpc-addr", set.GRPCAddr}, {"--http-addr", set.HTTPAddr}, {"--admin-addr", set.AdminAddr}} {
		if l.addr != "" && !listen.IsLocal(l.addr) {
			errs = append(errs, config.Wrong(l.flag, fmt.Errorf("tokend dev listens on loopback only, not on %s", l.addr)))
		}
	}
	return errors.Join(errs...)
}

// devAccess describes how a client connects.
type devAccess struct {
	intro         string // what to read, and to paste first
	scheme        string // of REST
	page          string // what to do on the API page; "" if a browser cannot open it
	client        string // arguments of tokend create
	curl, grpcurl string // arguments, with a space after them
	faults        string // where the emulator takes faults
	refused       *devAccess
}

// rest returns a line for curl.
func (a devAccess) rest(addr net.Addr, verb string) string {
	return fmt.Sprintf("curl -i -X %s %s%s://%s/v1/ephemeral-token", verb, a.curl, a.scheme, addr)
}

// rpc returns a line for grpcurl.
func (a devAccess) rpc(addr net.Addr, method string) string {
	service := ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName
	return fmt.Sprintf("go tool -modfile=tools/go.mod grpcurl %s%s %s/%s", a.grpcurl, grpcTarget(addr), service, method)
}

// tokend returns a line for this program.
func (a devAccess) tokend(addr net.Addr, command string) string {
	line := fmt.Sprintf("go run ./cmd/tokend %s %s", command, a.client)
	switch target := addr.String(); {
	case addr.Network() == "unix":
		return line + " --addr unix:" + target
	case target != "127.0.0.1:9090": // the default
		return line + " --addr " + target
	}
	return line
}

// devGuide returns the commands to paste into another terminal.
func devGuide(srv *server.Server, access devAccess, docs bool) string {
	lines := []string{
		"NOTHING HERE IS REAL: Atlas is an emulator in this process, and its tokens work nowhere else.",
		"Ctrl-C ends it. Paste into another terminal, in the same directory:",
		"",
		strings.TrimSuffix(access.intro, "\n"),
	}
	if addr := srv.GRPCAddr(); addr != nil {
		lines = append(lines, "", "# get the token, delete it", access.tokend(addr, "create"), access.tokend(addr, "delete"))
	}
	if addr := srv.HTTPAddr(); addr != nil {
		lines = append(lines, "", "# over REST: get the token, delete it", access.rest(addr, "POST"), access.rest(addr, "DELETE"))
		if docs && access.page != "" {
			lines = append(lines, "", fmt.Sprintf("# or in a browser: %s://%s/docs, where %s", access.scheme, addr, access.page))
		}
	}
	if addr := srv.GRPCAddr(); addr != nil {
		lines = append(lines, "", "# with grpcurl, which takes a minute to compile the first time", access.rpc(addr, "CreateToken"))
	}
	if access.refused != nil {
		lines = append(lines, "", "# without the client certificate there is no connection")
		if addr := srv.HTTPAddr(); addr != nil {
			lines = append(lines, access.refused.rest(addr, "POST"))
		} else {
			lines = append(lines, access.refused.rpc(srv.GRPCAddr(), "CreateToken"))
		}
	}
	lines = append(lines, "", "# make Atlas fail, be slow, or throttle for 10 s; a cached token is still served")
	for _, fault := range []string{`"status":503`, `"delay":"2s"`, `"status":429`} {
		lines = append(lines, fmt.Sprintf(`curl -k %s -d '{"for":"10s",%s}'`, access.faults, fault))
	}
	if addr := srv.AdminAddr(); addr != nil {
		lines = append(lines, "", "# is it alive and ready?", fmt.Sprintf("curl http://%s/readyz", addr))
	}
	return strings.Join(lines, "\n") + "\n\n"
}

// grpcTarget returns the address as grpcurl names it.
func grpcTarget(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "-unix " + addr.String()
	}
	return addr.String()
}
