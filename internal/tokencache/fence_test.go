package tokencache

import (
	"context"
	"fmt"
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

// A fence that nothing is behind goes once no call can be left that began before it moved, and not sooner.
func TestFencesAreSwept(t *testing.T) {
	cfg := Config{TTL: 2 * time.Second, CallTimeout: 30 * time.Second, SettleTime: 5 * time.Second}
	bubble(t, cfg, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		s := newSteppedCall()
		created := begin(func() { _, _ = d.Create(t.Context(), own(jwt), false, s.ask(d.world.ask(jwt))) })
		close(s.effect)
		synctest.Wait()
		d.delete(newJWT(orgA, "other", time.Time{}))
		for i := range 1000 {
			d.delete(newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}))
		}
		after(29 * time.Second)
		close(s.answer)
		<-created
		if n := d.kept(); n != 0 {
			t.Errorf("%d tokens are kept: an old one was put", n)
		}
		after(time.Minute)
		if n := d.fences(); n != 0 {
			t.Errorf("%d fences are kept", n)
		}
	})
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
