package tokencache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

func throttled(op atlas.Operation, wait time.Duration) error {
	return &atlas.Error{Op: op, Kind: atlas.KindStatus, StatusCode: 429, RetryAfter: wait, Sent: true, Err: errors.New("throttled")}
}

// wantHeld checks that Atlas is not called, and the error.
func (d *testCache) wantHeld(cred atlas.Credential, left time.Duration) {
	d.t.Helper()
	_, err := d.Cache.Create(d.t.Context(), cred, false)
	d.wantHeldError(err, atlas.OpCreate, left)
	_, err = d.Cache.Create(d.t.Context(), cred, true)
	d.wantHeldError(err, atlas.OpCreate, left)
	_, err = d.Cache.Delete(d.t.Context(), cred)
	d.wantHeldError(err, atlas.OpDelete, left)
}

func (d *testCache) wantHeldError(err error, op atlas.Operation, left time.Duration) {
	d.t.Helper()
	var e *atlas.Error
	if !errors.As(err, &e) || e.Kind != atlas.KindStatus || e.StatusCode != 429 || e.Op != op || e.Sent || e.RetryAfter != left || !errors.Is(err, errHeldOff) {
		d.t.Errorf("%s: got %+v, want 429 for another %v, without a call", op, err, left)
	}
}

func TestHoldOff(t *testing.T) {
	for _, cfg := range []Config{{}, {TTL: time.Millisecond}} {
		t.Run(fmt.Sprintf("TTL %v", cfg.TTL), func(t *testing.T) {
			bubble(t, cfg, func(t *testing.T, d *testCache) {
				jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
				d.world.failing(throttled(atlas.OpCreate, 7*time.Second))
				if _, err := d.create(jwt); err == nil || errors.Is(err, errHeldOff) {
					t.Fatalf("got %v, want Atlas's error", err)
				}
				d.world.failing(nil)
				d.wantHeld(own(jwt), 7*time.Second)
				d.want(other, miss)
				d.delete(other)
				after(7*time.Second - 1)
				d.wantHeld(own(jwt), 1)
				after(1)
				d.want(jwt, miss)

				err := d.Delete(t.Context(), own(jwt), d.world.sendAnd(jwt, throttled(atlas.OpDelete, 0)))
				if err == nil {
					t.Fatal("no error")
				}
				after(time.Millisecond) // until nothing is cached
				d.wantHeld(own(jwt), defaultHoldOff-time.Millisecond)
				after(defaultHoldOff)
				d.delete(jwt)
			})
		})
	}
}

// TestHoldOffOfProfile holds a profile off across JWTs, and ignores throttled logins.
func TestHoldOffOfProfile(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, d *testCache) {
		first, second := newJWT(orgA, "bot", time.Unix(1e9, 0)), newJWT(orgA, "bot", time.Unix(2e9, 0))
		d.world.failing(throttled(atlas.OpLogIn, time.Minute))
		if _, err := d.Cache.Create(t.Context(), profile("secret", first), false); err == nil {
			t.Fatal("no error")
		}
		d.world.failing(throttled(atlas.OpCreate, time.Minute))
		if _, err := d.Cache.Create(t.Context(), profile("secret", first), false); err == nil || errors.Is(err, errHeldOff) {
			t.Fatalf("got %v, want Atlas's error: the login was another matter", err)
		}
		d.world.failing(nil)
		d.wantHeld(profile("secret", second), time.Minute)
		if _, err := d.Cache.Create(t.Context(), profile("another secret", first), false); err != nil {
			t.Error(err)
		}
	})
}

// TestHoldOffIsNotShortened uses the longer of two waits.
func TestHoldOffIsNotShortened(t *testing.T) {
	bubble(t, Config{}, func(_ *testing.T, d *testCache) {
		u := newUpstream(d.world)
		u.note(key{1}, throttled(atlas.OpCreate, time.Minute))
		u.note(key{1}, throttled(atlas.OpDelete, time.Second))
		after(30 * time.Second)
		d.wantHeldError(u.throttled(key{1}, atlas.OpDelete), atlas.OpDelete, 30*time.Second)
	})
}

// TestRecentIsBounded keeps the values that were added last, of throttled credentials and others.
func TestRecentIsBounded(t *testing.T) {
	r := newRecent[int](100)
	for i := range 1000 {
		r.add(key{byte(i), byte(i >> 8)}, i)
		for j := max(0, i-99); j <= i; j++ {
			if v, ok := r.get(key{byte(j), byte(j >> 8)}); !ok || v != j {
				t.Fatalf("after %d: value %d is %d, %t", i, j, v, ok)
			}
		}
		if n := len(r.young) + len(r.aged); n >= 200 {
			t.Fatalf("%d values are kept, want less than 200", n)
		}
	}
}

// tenantAtlas is an Atlas that notes the tenants of its calls.
type tenantAtlas struct {
	*fakeAtlas
	tenants []atlas.Tenant
}

func (a *tenantAtlas) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	a.tenants = append(a.tenants, atlas.TenantOf(ctx))
	return a.fakeAtlas.CreateEphemeralToken(ctx, jwt)
}

func (a *tenantAtlas) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	a.tenants = append(a.tenants, atlas.TenantOf(ctx))
	return a.fakeAtlas.DeleteEphemeralToken(ctx, jwt)
}

// TestTenant checks that a call is of the org of its JWT once Atlas has accepted that, whatever
// JWTs it refuses.
func TestTenant(t *testing.T) {
	for _, ttl := range []time.Duration{0, time.Nanosecond} {
		a := &tenantAtlas{fakeAtlas: newFakeAtlas()}
		c, err := New(a, Config{TTL: ttl})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		create := func(jwt atlas.JWT) { _, _ = c.Create(t.Context(), own(jwt), false) }
		jwt, none := newJWT(orgA, "u", time.Time{}), newJWT("", "u", time.Time{})
		create(jwt)
		create(none)
		a.failing(statusError(atlas.OpCreate, 401))
		for i := range 100 {
			create(newJWT(orgB, fmt.Sprint(i), time.Time{}))
		}
		u, _ := c.calls.next.(*upstream)
		if c.caching != nil {
			u = c.caching.next
		}
		if n := len(u.accepted.young); n != 2 {
			t.Errorf("%d JWTs are remembered, want the 2 that Atlas has accepted", n)
		}
		a.failing(nil)
		for _, tenant := range a.tenants {
			if tenant != (atlas.Tenant{}) {
				t.Fatalf("a JWT that Atlas has not accepted is of %q", tenant)
			}
		}
		a.tenants = nil
		create(jwt)
		if _, err := c.Delete(t.Context(), own(jwt)); err != nil {
			t.Fatal(err)
		}
		a.failing(statusError(atlas.OpCreate, 401))
		create(jwt)
		create(jwt)
		a.failing(nil)
		create(none)
		want := []atlas.Tenant{{Org: orgA}, {Org: orgA}, {Org: orgA}, {Org: orgA}}
		if n := len(a.tenants) - 1; !slices.Equal(a.tenants[:n], want) || a.tenants[n].Org == "" || a.tenants[n].Org == orgA {
			t.Errorf("the calls were of %q, want %q and a tenant of its own", a.tenants, want)
		}
	}
}
