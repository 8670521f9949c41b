package tokencache

import (
	"strconv"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// TestMemo: what comes all the time is computed once, whatever else comes, and not much is kept.
func TestMemo(t *testing.T) {
	const most = 100
	m, computed := newMemo[int](most), map[int]int{}
	of := func(n int) int {
		return *m.of(key{byte(n), byte(n >> 8)}, func() int {
			computed[n]++
			return n
		})
	}
	for range 2 {
		for n := range 3 * most {
			if of(n) != n || of(0) != 0 {
				t.Fatalf("another's value at %d", n)
			}
		}
	}
	if computed[0] != 1 || computed[1] != 2 {
		t.Errorf("computed %d times what came all the time, and %d times what came twice", computed[0], computed[1])
	}
	if n := len(m.young) + len(m.aged); n >= 2*most {
		t.Errorf("%d are kept", n)
	}
}

// TestClaimsOfProfile: the JWTs of a profile come one after the other, and its key stays.
func TestClaimsOfProfile(t *testing.T) {
	c := newInstant(t, Config{})
	for _, org := range []string{orgA, orgB, orgA} {
		for _, cred := range []atlas.Credential{profile("secret", newJWT(org, "u", time.Time{})), own(newJWT(org, "u", time.Time{}))} {
			r, err := c.request(cred, false)
			if err != nil {
				t.Fatal(err)
			}
			r.key = key{} // at the worst
			if cred.Profile == "" {
				r.key = c.keys.key(cred)
			}
			if got := c.withClaims(r).org(); got != org {
				t.Errorf("the claims have org %s, want %s", got, org)
			}
		}
	}
}

// BenchmarkClaims compares claims that are kept with those that have to be parsed.
func BenchmarkClaims(b *testing.B) {
	c := newInstant(b, Config{})
	r, err := c.request(own(newJWT(orgA, "u", time.Now().Add(time.Hour))), false)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("kept", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.withClaims(r)
		}
	})
	b.Run("parsed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.cred.Claims()
		}
	})
}

// BenchmarkDerived compares what is kept of a credential for Redis with what has to be derived.
func BenchmarkDerived(b *testing.B) {
	r := request{cred: own(newJWT(orgA, strconv.Itoa(1), time.Time{})).WithClaims(), key: key{1}}
	m := newMemo[derived](maxDerived)
	b.Run("kept", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.of(r.key, r.derive)
		}
	})
	b.Run("derived", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r.derive()
		}
	})
}
