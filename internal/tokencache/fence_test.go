package tokencache

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// TestContradictionRemovesBoth caches neither of two different tokens: another client of Atlas has
// deleted one of them.
func TestContradictionRemovesBoth(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
		far := newJWT(orgB, "u", time.Time{})
		d.want(far, miss)
		d.want(jwt, miss)
		d.world.replace(orgA)
		d.want(other, miss)
		if n := d.readable(); n != 1 {
			t.Errorf("%d tokens are kept, want 1, the other org's", n)
		}
		d.want(jwt, miss)
		d.want(other, miss)
		d.want(jwt, hit(3600))
		d.want(other, hit(3600))
	})
}

// TestFencesAreKeptWhileInUse keeps a fence while a call is in flight that began before it moved.
func TestFencesAreKeptWhileInUse(t *testing.T) {
	bubble(t, Config{TTL: 2 * time.Second}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		s := newSteppedCall()
		created := begin(func() { _, _ = d.Create(t.Context(), own(jwt), false, s.ask(d.world.ask(jwt))) })
		close(s.effect)
		synctest.Wait()
		d.delete(newJWT(orgA, "other", time.Time{}))
		for i := range 1000 {
			d.delete(newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}))
		}
		if n := d.fences(); n != 1 {
			t.Errorf("%d fences are kept, want 1", n)
		}
		close(s.answer)
		<-created
		if n := d.readable() + d.fences(); n != 0 {
			t.Errorf("%d tokens and fences are kept: an old token was put", n)
		}
	})
}

// TestFencesAreBounded bounds the fences by the number of tokens.
func TestFencesAreBounded(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		d.memory.maxTokens = 10
		for i := range 1000 {
			d.want(newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}), miss)
		}
		if n := d.fences(); n != 10 {
			t.Errorf("%d fences are kept, want 10", n)
		}
	})
}

func TestOrgIgnoresCase(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(_ *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(strings.ToUpper(orgA), "other", time.Time{})
		d.want(jwt, miss)
		d.delete(other)
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

// TestElapsedUsesBothClocks uses the wall clock as well, because the monotonic clock stops while a
// virtual machine is suspended.
func TestElapsedUsesBothClocks(t *testing.T) {
	since := time.Now()
	suspended := since.Round(0).Add(time.Hour) // without a monotonic reading
	if got := elapsed(since, suspended); got != time.Hour {
		t.Errorf("after an hour's suspension: %v, want 1h", got)
	}
	if got := elapsed(since, since.Add(time.Minute)); got != time.Minute {
		t.Errorf("got %v, want 1m", got)
	}
	if got := elapsed(since, since.Round(0).Add(-time.Hour)); got != 0 {
		t.Errorf("with the wall clock set back: %v, want 0", got)
	}
}

// TestForgedOrgsAreNotKept keeps no fence of an org that Atlas has not confirmed.
func TestForgedOrgsAreNotKept(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		d.world.failing(statusError(atlas.OpCreate, 401))
		for i := range 1000 {
			jwt := newJWT(fmt.Sprintf("org %d", i), "u", time.Time{})
			_, _ = d.create(jwt)
			_ = d.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) { return jwt, statusError(atlas.OpDelete, 401) })
		}
		if n := d.fences() + d.held(); n != 0 {
			t.Errorf("%d things are kept", n)
		}
	})
}
