//go:build !race

package tokencache

import (
	"testing"
	"time"
)

// TestAllocations bounds the allocations of a hit in memory and of a call to Atlas. The race
// detector allocates by itself.
func TestAllocations(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  Config
		most float64
	}{
		{"hit", Config{TTL: time.Hour}, 0},
		{"miss", Config{}, 10}, // one more than it does
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, jwt := newInstant(t, tc.cfg), newJWT(orgA, "u", time.Time{})
			create := func() {
				if _, err := c.Create(t.Context(), own(jwt), false); err != nil {
					t.Fatal(err)
				}
			}
			create()
			if got := testing.AllocsPerRun(1000, create); got > tc.most {
				t.Errorf("%.0f allocations, want at most %.0f", got, tc.most)
			}
		})
	}
}
