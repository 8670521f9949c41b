package emulator

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestSeed makes the same JWT in two runs, which both accept; another seed does not.
func TestSeed(t *testing.T) {
	spec, a, b := JWT{Age: time.Hour, Lifetime: time.Hour}, seeded("a"), seeded("a")
	jwt := a.orgs[0].MintJWT(spec)
	if again := b.orgs[0].MintJWT(spec); again != jwt {
		t.Errorf("%s, then %s", jwt, again)
	}
	for want, in := range map[error]*atlas{nil: b, errUndecodable: seeded("b")} {
		if _, _, err := in.verify(jwt); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

func seeded(seed string) *atlas {
	return newAtlas(Config{Seed: seed, Now: func() time.Time { return time.Unix(1e9, 0) }}.withDefaults())
}

// TestFaultFor removes a fault after its time.
func TestFaultFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fs faults
		fs.add(Fault{Status: 503, For: 10 * time.Second})
		time.Sleep(9 * time.Second) //nolint:forbidigo // virtual time
		if got := fs.take(Create, ""); got.Status != 503 {
			t.Errorf("after 9s: %+v", got)
		}
		time.Sleep(time.Second) //nolint:forbidigo // virtual time
		synctest.Wait()
		if len(fs.active) != 0 {
			t.Errorf("after 10s: %+v", fs.active)
		}
	})
}
