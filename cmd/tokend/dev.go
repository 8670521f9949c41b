package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// devCommand is serve with an Atlas of its own. It has no setting of Atlas or TLS and is for this machine only, so it
// cannot be mistaken for the real thing.
type devCommand struct {
	listenFlags
	browserFlags

	ServiceIdentity bool
}

func (c *devCommand) declare(flags flags) {
	c.listenFlags.declare(flags, "0s") // nobody but its user sends it calls
	c.browserFlags.declare(flags, true)
	flags.boolean(&c.ServiceIdentity, "service-identity", "Hold the identity of an emulated org, for a caller that has a client certificate and no Atlas secret. The certificates are made for the occasion.")
}

// devJWTLifetime spares whoever tries it from a JWT that has expired over lunch.
const devJWTLifetime = 24 * time.Hour

func (c *devCommand) execute(ctx context.Context, in *invocation) error {
	c.Docs = c.Docs && c.HTTPAddr != "" // they are on by themselves, which is no mistake
	em, err := emulator.Start(emulator.Config{JWTLifetime: devJWTLifetime})
	if err != nil {
		return err
	}
	defer em.Close()
	open := c.passthrough
	if c.ServiceIdentity {
		open = c.profile
	}
	s, access, err := open(in, em)
	if err != nil {
		return err
	}
	c.checkLocal(s)
	return s.serve(ctx, in, func(srv *server.Server) { fmt.Fprint(in.stdout, devGuide(srv, access, c.Docs)) })
}

// passthrough serves whoever has the JWT that it prints.
func (c *devCommand) passthrough(in *invocation, em *emulator.Emulator) (*setup, devAccess, error) {
	s := newSetup(&c.listenFlags, c.logger(in.stderr))
	s.openTraces(in.otel)
	_, client, err := s.newAtlas(0, atlas.Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	if err != nil {
		return nil, devAccess{}, err
	}
	s.Atlas, s.Plaintext = client, true // on loopback only, see checkLocal
	c.open(s)
	s.validate(false)
	return s, devAccess{
		intro:   "export ATLAS_JWT=" + em.Org(0).JWT() + "\n",
		scheme:  "http",
		page:    "Authorize wants the JWT from above",
		curl:    `-H "Authorization: JWT $ATLAS_JWT" `,
		grpcurl: `-plaintext -H "authorization: JWT $ATLAS_JWT" `,
	}, nil
}

// checkLocal reports addresses beyond loopback.
func (c *devCommand) checkLocal(s *setup) {
	for _, l := range []struct{ flag, addr string }{{"grpc-addr", c.GRPCAddr}, {"http-addr", c.HTTPAddr}, {"admin-addr", c.AdminAddr}} {
		if l.addr != "" && !listen.IsLocal(l.addr) {
			s.fail("--"+l.flag, fmt.Errorf("tokend dev listens on loopback only, not on %s", l.addr))
		}
	}
}

// devAccess is how whoever tries it gets in.
type devAccess struct {
	intro         string // what to read, and to paste first
	scheme        string // of REST
	page          string // what to do on the API's page; "" if a browser does not get there as it is
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
func devGuide(srv *server.Server, access devAccess, docs bool) string {
	lines := []string{
		"NOTHING HERE IS REAL: Atlas is an emulator in this process, and its tokens work nowhere else.",
		"Ctrl-C ends it. Paste into another terminal, in the same directory:",
		"",
		strings.TrimSuffix(access.intro, "\n"),
	}
	if addr := srv.HTTPAddr(); addr != nil {
		lines = append(lines, "", "# over REST: get the token, delete it", access.rest(addr, "POST"), access.rest(addr, "DELETE"))
		if docs && access.page != "" {
			lines = append(lines, "", fmt.Sprintf("# or in a browser: %s://%s/docs, where %s", access.scheme, addr, access.page))
		}
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
