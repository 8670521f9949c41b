//go:build !race

package server

import (
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// TestAllocations: no change makes calls dearer unnoticed. Allocations are the part of a call's
// price that is the same on every machine. A bound is a twentieth above what is counted, in which
// gRPC has the client's part, and REST that of the made-up request and its answer. If a change
// makes a call cheaper, lower it; if one has a reason to cost more, raise it, and say why in the
// commit. (The race detector allocates by itself.)
func TestAllocations(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cache tokencache.Config
		most  map[string]float64
	}{
		{"remembered", tokencache.Config{TTL: time.Hour}, map[string]float64{"gRPC": 208, "REST": 89}},
		{"unshared", tokencache.Config{}, map[string]float64{"gRPC": 228, "REST": 115}},
	} {
		for transport, call := range benchCalls(t, tc.cache) {
			t.Run(tc.name+"/"+transport, func(t *testing.T) {
				call() // connects, and is remembered
				got := testing.AllocsPerRun(1000, call)
				t.Logf("%.0f allocations", got)
				if most := tc.most[transport]; got > most {
					t.Errorf("a call costs %.0f allocations, want at most %.0f", got, most)
				}
			})
		}
	}
}
