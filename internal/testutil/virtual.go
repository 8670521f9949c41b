package testutil

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/network"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Virtual starts services whose time is virtual and whose network is in memory. What takes seconds
// is over at once, and no machine is too busy for it.
type Virtual struct {
	network  *network.Network
	link     *network.Link
	services int
}

// RunVirtual runs test in virtual time.
func RunVirtual(t *testing.T, test func(t *testing.T, v *Virtual)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		v := &Virtual{network: network.New()}
		v.link = v.network.NewLink(rand.New(rand.NewPCG(1, 1)))
		test(t, v)
	})
}

// Start is [Start] for virtual time.
func (v *Virtual) Start(t testing.TB, mode Security, changes ...func(*server.Config, *atlas.Config)) *Service {
	t.Helper()
	v.services++
	addr := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port+v.services) }
	listener, err := v.network.Listen(addr(443))
	if err != nil {
		t.Fatal(err)
	}
	em, err := emulator.Start(emulator.Config{Listener: listener})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	s := &Service{Atlas: em, Mode: mode, DialContext: v.link.Dial}
	inMemory := func(c *server.Config, a *atlas.Config) {
		c.GRPCAddr, c.HTTPAddr, c.AdminAddr = addr(9000), addr(8000), addr(7000)
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
