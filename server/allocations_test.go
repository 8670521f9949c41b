//go:build !race

package server

import (
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// TestAllocations bounds the allocations of a call, which are the same on every machine. A bound is
// 5 % above the measured count, which includes the client's part for gRPC and the request's and
// recorder's for REST. Lower a bound when a call gets cheaper; say why in the commit when one has
// to rise. (The race detector allocates too.)
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
