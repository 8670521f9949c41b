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
)

// devCommand is serve with an Atlas of its own. It has no setting of Atlas or TLS and is for this machine only, so it
// cannot be mistaken for the real thing.
type devCommand struct{ listenFlags }

// devJWTLifetime spares whoever tries it from a JWT that has expired over lunch.
const devJWTLifetime = 24 * time.Hour

func (c *devCommand) execute(ctx context.Context, in *invocation) error {
	em, err := emulator.Start(emulator.Config{JWTLifetime: devJWTLifetime})
	if err != nil {
		return err
	}
	defer em.Close()
	client, err := atlas.New(atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool(), UserAgent: userAgent()})
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	cfg, errs := c.config(in.stderr)
	cfg.Atlas = client
	errs = append(errs, c.checkLocal()...)
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
	fmt.Fprint(in.stdout, devGuide(srv, em))
	return srv.Run(ctx)
}

// checkLocal reports addresses beyond loopback. server.Config refuses the first two as well, but with advice that does
// not apply here, and lets the third be where it is told to.
func (c *devCommand) checkLocal() []error {
	var errs []error
	for _, l := range []struct{ flag, addr string }{{"grpc-addr", c.GRPCAddr}, {"http-addr", c.HTTPAddr}, {"admin-addr", c.AdminAddr}} {
		if l.addr != "" && !server.IsLocal(l.addr) {
			errs = append(errs, fmt.Errorf("--%s: tokend dev listens on loopback only, not on %s", l.flag, l.addr))
		}
	}
	return errs
}

// devGuide is what to paste into another terminal.
func devGuide(srv *server.Server, em *emulator.Emulator) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("NOTHING HERE IS REAL: Atlas is an emulator in this process, and its tokens work nowhere else.")
	line("Ctrl-C ends it. Paste into another terminal, in the same directory:")
	line("")
	line("export ATLAS_JWT=%s", em.Org(0).JWT())
	if addr := srv.HTTPAddr(); addr != nil {
		url := "http://" + addr.String() + "/v1/ephemeral-token"
		line("")
		line("# over REST: get the token, delete it")
		line(`curl -i -X POST -H "Authorization: JWT $ATLAS_JWT" %s`, url)
		line(`curl -i -X DELETE -H "Authorization: JWT $ATLAS_JWT" %s`, url)
	}
	if addr := srv.GRPCAddr(); addr != nil {
		service := ephemeraltokenv1.EphemeralTokenService_ServiceDesc.ServiceName
		grpcurl := "go tool -modfile=tools/go.mod grpcurl -plaintext"
		line("")
		line("# over gRPC: the same two (where grpcurl is installed, `grpcurl` alone does for `go tool … grpcurl`)")
		line(`%s -H "authorization: JWT $ATLAS_JWT" %s %s/CreateToken`, grpcurl, grpcTarget(addr), service)
		line(`%s -H "authorization: JWT $ATLAS_JWT" %s %s/DeleteToken`, grpcurl, grpcTarget(addr), service)
	}
	if addr := srv.AdminAddr(); addr != nil {
		line("")
		line("# is it alive and ready?")
		line("curl http://%s/readyz", addr)
	}
	line("")
	return b.String()
}

// grpcTarget is how grpcurl names the address.
func grpcTarget(addr net.Addr) string {
	if addr.Network() == "unix" {
		return "-unix " + addr.String()
	}
	return addr.String()
}
