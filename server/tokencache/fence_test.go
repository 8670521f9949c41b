package tokencache

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Somebody has deleted the token at Atlas itself.
func TestAContradictionForgetsBoth(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *desk) {
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

func TestIdleFencesAreBounded(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, MaxTokens: 10}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Time{})
		s := newSlowly()
		created := begin(func() { _, _ = d.Create(t.Context(), CallersJWT(jwt), false, s.ask(d.world.ask(jwt))) })
		close(s.effect)
		synctest.Wait()
		d.accept(jwt)
		d.delete(jwt)
		for i := range 1000 { // the fence of orgA gives way to theirs
			d.delete(newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}))
		}
		m := d.memory()
		if n := len(m.orgs); n > 10 || n != m.idle.Len() {
			t.Errorf("%d fences, %d of them idle; want at most 10", n, m.idle.Len())
		}
		close(s.answer)
		<-created
		if n := d.kept(); n != 0 {
			t.Errorf("%d tokens are kept: an old one was filled", n)
		}
		d.want(jwt, miss)
		d.want(jwt, miss) // the answer that came late spoke against this one
		d.want(jwt, hit(3600))
	})
}

// A fence that is held gives way as well, and holds on in that of every org.
func TestAHeldFenceThatGivesWayHoldsAll(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, MaxTokens: 2, SettleTime: 20 * time.Second}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.accept(jwt)
		_ = d.Delete(t.Context(), CallersJWT(jwt), d.world.sendAnd(jwt, statusError(atlas.OpDelete, 504)))
		for i := range 5 {
			d.delete(newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}))
		}
		d.want(jwt, miss)
		d.want(jwt, miss)
		after(20 * time.Second)
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

// What nobody has verified does not take up more memory the longer it is.
func TestALongOrgIsKeptShort(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *desk) {
		jwt := newJWT(string(make([]byte, 8000)), "u", time.Time{})
		d.delete(jwt)
		for name, f := range d.memory().orgs {
			if len(name) > 100 || len(f.name) > 100 {
				t.Errorf("a fence has a name of %d bytes", len(name))
			}
		}
	})
}
