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

// Somebody has deleted the token at Atlas itself.
func TestAContradictionForgetsBoth(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
		far := newJWT(orgB, "u", time.Time{})
		d.want(far, miss)
		d.want(jwt, miss)
		d.world.replace(orgA)
		d.want(other, miss)
		if n := d.kept(); n != 1 {
			t.Errorf("%d tokens are kept, want 1, the other org's", n)
		}
		d.want(jwt, miss)
		d.want(other, miss)
		d.want(jwt, hit(3600))
		d.want(other, hit(3600))
	})
}

// A fence is kept as long as a call is in flight that began before it moved, and no longer.
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
		if n := d.kept() + d.fences(); n != 0 {
			t.Errorf("%d tokens and fences are kept: an old token was put", n)
		}
	})
}

// The number of tokens bounds that of fences.
func TestFencesAreBounded(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, MaxTokens: 10}, func(t *testing.T, d *testCache) {
		for i := range 1000 {
			d.want(newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}), miss)
		}
		if n := d.fences(); n != 10 {
			t.Errorf("%d fences are kept, want 10", n)
		}
	})
}

// The org of a JWT is a UUID, whose case says nothing.
func TestOrgInTwoSpellingsHasOneFence(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(_ *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(strings.ToUpper(orgA), "other", time.Time{})
		d.want(jwt, miss)
		d.delete(other)
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

// The monotonic clock stops while a virtual machine is suspended, so the wall clock counts as well.
func TestLeftIsThatOfTheClockThatSaysLess(t *testing.T) {
	now := time.Now()
	until := now.Add(time.Minute)
	suspended := now.Round(0).Add(time.Hour) // without a monotonic reading
	if got := left(until, suspended); got != -59*time.Minute {
		t.Errorf("after an hour's suspension: %v, want -59m", got)
	}
	if got := left(until, now); got != time.Minute {
		t.Errorf("got %v, want 1m", got)
	}
}

// What nobody has verified takes up no memory at all.
func TestMadeUpOrgsAreNotKept(t *testing.T) {
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
