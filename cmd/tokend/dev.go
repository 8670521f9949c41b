package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/server"
	"github.com/ForstaLabs/ephemeral-token-service/server/listen"
)

// devCommand is serve with an Atlas of its own. It has no setting of Atlas or TLS and is for this machine only, so it
// cannot be mistaken for the real thing.
type devCommand struct {
	listenFlags

	ServiceIdentity bool
}

func (c *devCommand) declare(flags flags) {
	c.listenFlags.declare(flags)
	flags.boolean(&c.ServiceIdentity, "service-identity", "Hold the identity of an emulated org, for a caller that has a client certificate and no Atlas secret. The certificates are made for the occasion.")
}

// devJWTLifetime spares whoever tries it from a JWT that has expired over lunch.
const devJWTLifetime = 24 * time.Hour

func (c *devCommand) execute(ctx context.Context, in *invocation) error {
	em, err := emulator.Start(emulator.Config{JWTLifetime: devJWTLifetime})
	if err != nil {
		return err
	}
	defer em.Close()
	if c.ServiceIdentity {
		return c.serveIdentity(ctx, in, em)
	}
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool(), UserAgent: userAgent()})
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	cfg := c.config(in.stderr)
	cfg.Atlas = client
	errs := c.checkLocal()
	for _, err := range flatten(cfg.Validate()) {
		if !errors.Is(err, server.ErrExposed) { // checkLocal has said it
			errs = append(errs, nameFlag(err))
		}
	}
	if err := in.check(errs...); err != nil {
		return err
	}
	routeGRPCLog(cfg.Logger)
	srv, err := server.New(cfg)
	if err != nil {
		return err
	}
	fmt.Fprint(in.stdout, devGuide(srv, devAccess{
		intro:   "export ATLAS_JWT=" + em.Org(0).JWT() + "\n",
		scheme:  "http",
		curl:    `-H "Authorization: JWT $ATLAS_JWT" `,
		grpcurl: `-plaintext -H "authorization: JWT $ATLAS_JWT" `,
	}))
	return srv.Run(ctx)
}

// checkLocal reports addresses beyond loopback. server.Config refuses the first two as well, but with advice that does
// not apply here, and lets the third be where it is told to.
func (c *devCommand) checkLocal() []error {
	var errs []error
	for _, l := range []struct{ flag, addr string }{{"grpc-addr", c.GRPCAddr}, {"http-addr", c.HTTPAddr}, {"admin-addr", c.AdminAddr}} {
		if l.addr != "" && !listen.IsLocal(l.addr) {
			errs = append(errs, fmt.Errorf("--%s: tokend dev listens on loopback only, not on %s", l.flag, l.addr))
		}
	}
	return errs
}

// devAccess is how whoever tries it gets in.
type devAccess struct {
	intro         string // what to read, and to paste first
	scheme        string // of REST
	curl, grpcurl string // arguments, with a space after them
	refused       *devAccess
}

// rest is a line for curl.
func (a devAccess) rest(addr net.Addr, verb string) string {
	return fmt.Sprintf("curl -i -X %s %s%s://%s/v1/ephemeral-token", verb, a.curl, a.scheme, addr)
}

// rpc is a line for grpcurl.
func (a devAccess) rpc(addr net.Addr, method string) string {
	service := ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName
	return fmt.Sprintf("go tool -modfile=tools/go.mod grpcurl %s%s %s/%s", a.grpcurl, grpcTarget(addr), service, method)
}

// devGuide is what to paste into another terminal.
func devGuide(srv *server.Server, access devAccess) string {
	lines := []string{
		"NOTHING HERE IS REAL: Atlas is an emulator in this process, and its tokens work nowhere else.",
		"Ctrl-C ends it. Paste into another terminal, in the same directory:",
		"",
		strings.TrimSuffix(access.intro, "\n"),
	}
	if addr := srv.HTTPAddr(); addr != nil {
		lines = append(lines, "", "# over REST: get the token, delete it", access.rest(addr, "POST"), access.rest(addr, "DELETE"))
	}
	if addr := srv.GRPCAddr(); addr != nil {
		lines = append(lines, "", "# over gRPC: the same two (where grpcurl is installed, `grpcurl` alone does for `go tool … grpcurl`)",
			access.rpc(addr, "CreateToken"), access.rpc(addr, "DeleteToken"))
	}
	if access.refused != nil {
		lines = append(lines, "", "# without the client certificate there is no connection")
		if addr := srv.HTTPAddr(); addr != nil {
			lines = append(lines, access.refused.rest(addr, "POST"))
		} else {
			lines = append(lines, access.refused.rpc(srv.GRPCAddr(), "CreateToken"))
		}
	}
	if addr := srv.AdminAddr(); addr != nil {
		lines = append(lines, "", "# is it alive and ready?", fmt.Sprintf("curl http://%s/readyz", addr))
	}
	return strings.Join(lines, "\n") + "\n\n"
}

// grpcTarget is how grpcurl names the address.
func grpcTarget(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "-unix " + addr.String()
	}
	return addr.String()
}
