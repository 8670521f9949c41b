package testutil

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/network"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Virtual starts services in virtual time with an in-memory network. Waiting costs nothing there,
// and timeouts do not depend on how busy the machine is.
type Virtual struct {
	network *network.Network
	link    *network.Link
	ports   int
}

// RunVirtual runs test in virtual time.
func RunVirtual(t *testing.T, test func(t *testing.T, v *Virtual)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := &Virtual{network: network.New()}
		v.link = v.network.NewLink(rand.New(rand.NewPCG(1, 1)))
		t.Cleanup(func() { <-time.After(10 * time.Second) }) // time stops with the test, so let connections close first
		test(t, v)
	})
}

// Matrix runs test in virtual time for each transport, each with its own service. A long run
// repeats it with TLS and with mutual TLS.
func Matrix(t *testing.T, test func(t *testing.T, s *Service, c Caller), changes ...func(*server.Config, *atlas.Config)) {
	t.Helper()
	for _, mode := range Some([]Security{Plaintext, ServerTLS, MutualTLS}, 1) {
		for _, transport := range []string{"gRPC", "REST"} {
			t.Run(string(mode)+"/"+transport, func(t *testing.T) {
				RunVirtual(t, func(t *testing.T, v *Virtual) {
					s := v.Start(t, mode, changes...)
					test(t, s, s.Callers(t)[transport])
				})
			})
		}
	}
}

// RESTMatrix is Matrix for REST alone.
func RESTMatrix(t *testing.T, test func(t *testing.T, s *Service, c RESTCaller)) {
	t.Helper()
	for _, mode := range Some([]Security{Plaintext, ServerTLS, MutualTLS}, 1) {
		t.Run(string(mode)+"/REST", func(t *testing.T) {
			RunVirtual(t, func(t *testing.T, v *Virtual) {
				s := v.Start(t, mode)
				test(t, s, s.RESTCaller(t))
			})
		})
	}
}

// StartAtlas runs an emulated Atlas until the test ends.
func (v *Virtual) StartAtlas(t testing.TB, config emulator.Config) *emulator.Emulator {
	t.Helper()
	config.Listener = v.Listen(t)
	em, err := emulator.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return em
}

// Listen listens on an address of its own.
func (v *Virtual) Listen(t testing.TB) net.Listener {
	t.Helper()
	listener, err := v.network.Listen(v.addr())
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

func (v *Virtual) addr() string {
	v.ports++
	return fmt.Sprintf("127.0.0.1:%d", 8000+v.ports)
}

// Start is [Start] for virtual time.
func (v *Virtual) Start(t testing.TB, mode Security, changes ...func(*server.Config, *atlas.Config)) *Service {
	t.Helper()
	return v.StartWith(t, mode, v.StartAtlas(t, emulator.Config{}), changes...)
}

// StartWith is [StartWith] for virtual time.
func (v *Virtual) StartWith(t testing.TB, mode Security, em *emulator.Emulator, changes ...func(*server.Config, *atlas.Config)) *Service {
	t.Helper()
	s := &Service{Atlas: em, Mode: mode, DialContext: v.link.Dial}
	inMemory := func(c *server.Config, a *atlas.Config) {
		c.GRPCAddr, c.HTTPAddr, c.AdminAddr = v.addr(), v.addr(), v.addr()
		c.Listen = v.network.Listen
		a.DialContext = v.link.Dial
	}
	s.start(t, append([]func(*server.Config, *atlas.Config){inMemory}, changes...)...)
	return s
}

// Dial connects to an address of one of the services.
func (v *Virtual) Dial(t testing.TB, addr net.Addr) net.Conn {
	t.Helper()
	conn, err := v.link.Dial(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}
