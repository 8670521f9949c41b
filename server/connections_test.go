package server_test

import (
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// TestFault51AdminConnections checks that admin connections are bounded as well.
func TestFault51AdminConnections(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.SetDescriptors(64) }) // 4 of them for admin
		defer s.GoodCalls(t)()
		for range 20 {
			v.Dial(t, s.AdminAddr())
		}
		testutil.Eventually(t, func() bool { code, _ := s.Get(t, "/healthz"); return code == 200 }, "silent connections are not closed")
		if _, metrics := s.Get(t, "/metrics"); !strings.Contains(metrics, `tokend_connections_refused_total{limit="listener",listener="admin"}`) {
			t.Error("no connection was refused")
		}
	})
}
