package tokencache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// bubble runs a test over a fresh world in synthetic time.
func bubble(t *testing.T, cfg Config, test func(t *testing.T, d *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, newWorld(), cfg)
		test(t, d)
		synctest.Wait()
		if len(d.flights.lines) != 0 {
			t.Errorf("%d lines are left", len(d.flights.lines))
		}
	})
}

func (d *desk) memory() *memory { return d.store.(*memory) }

// kept returns how many tokens are in the maps, however old.
func (d *desk) kept() int {
	d.t.Helper()
	synctest.Wait() // for what expires just now
	m := d.memory()
	m.mu.Lock()
	defer m.mu.Unlock()
	behind := 0
	for _, f := range m.orgs {
		behind += len(f.tokens)
	}
	if n := len(m.tokens); n != m.oldest.Len() || n != behind {
		d.t.Errorf("%d tokens, %d in order, %d behind fences", n, m.oldest.Len(), behind)
	}
	return len(m.tokens)
}

func after(d time.Duration) { <-time.After(d) }

func TestNothingIsRememberedByDefault(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		d.want(jwt, miss)
		d.delete(jwt)
		d.want(jwt, miss)
		if err := d.Check(); err != nil {
			t.Error(err)
		}
	})
}

func TestTTLAndAge(t *testing.T) {
	bubble(t, Config{TTL: 10 * time.Second}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		d.want(jwt, hit(10))
		after(4 * time.Second)
		d.want(jwt, hit(6))
		result, _ := d.create(jwt)
		if result.Status.AgeSeconds() != "4" || result.Org != orgA {
			t.Errorf("age %s of org %s, want 4 of %s", result.Status.AgeSeconds(), result.Org, orgA)
		}
		after(6*time.Second - 1)
		d.want(jwt, hit(0))
		after(1)
		d.want(jwt, miss)
	})
}

// The time that Atlas takes counts: it may have made up its mind at the beginning of the call.
func TestTTLBeginsBeforeAtlasIsAsked(t *testing.T) {
	bubble(t, Config{TTL: 10 * time.Second}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Time{})
		_, err := d.Create(t.Context(), CallersJWT(jwt), false, func(ctx context.Context) (Answer, error) {
			after(7 * time.Second)
			return d.world.ask(jwt)(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
		d.want(jwt, hit(3))
	})
}

func TestExpOfTheJWTShortens(t *testing.T) {
	bubble(t, Config{TTL: 10 * time.Second, StaleIfError: time.Minute}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Now().Add(4*time.Second))
		d.want(jwt, miss)
		d.want(jwt, hit(4))
		after(4 * time.Second)
		d.want(jwt, miss)
		d.world.failing(statusError(atlas.OpCreate, 503))
		if _, err := d.create(jwt); err == nil {
			t.Error("a token was kept beyond the JWT's exp")
		}
		d.world.failing(nil)
		past := newJWT(orgB, "u", time.Now().Add(-time.Second))
		d.want(past, miss)
		d.want(past, miss)
		if n := d.kept(); n != 0 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}

func TestStaleIfError(t *testing.T) {
	failures := map[string]error{
		"500":              statusError(atlas.OpCreate, 500),
		"503":              statusError(atlas.OpCreate, 503),
		"429":              statusError(atlas.OpCreate, 429),
		"unreachable":      kindError(atlas.OpCreate, atlas.KindUnreachable),
		"login":            kindError(atlas.OpLogIn, atlas.KindUnreachable),
		"TLS":              kindError(atlas.OpCreate, atlas.KindTLS),
		"timeout":          kindError(atlas.OpCreate, atlas.KindTimeout),
		"redirect":         kindError(atlas.OpCreate, atlas.KindRedirect),
		"invalid response": kindError(atlas.OpCreate, atlas.KindInvalidResponse),
		"time of the call": &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: context.DeadlineExceeded},
	}
	for name, failure := range failures {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: 10 * time.Second, StaleIfError: 20 * time.Second}, func(t *testing.T, d *desk) {
				jwt := newJWT(orgA, "u", time.Time{})
				d.want(jwt, miss)
				after(10 * time.Second)
				d.world.failing(failure)
				d.want(jwt, stale)
				after(20*time.Second - 1)
				d.want(jwt, stale)
				after(1)
				if _, err := d.create(jwt); !errors.Is(err, failure) {
					t.Errorf("got %v, want Atlas's error", err)
				}
				if n := d.kept(); n != 0 {
					t.Errorf("%d tokens are kept", n)
				}
			})
		})
	}
}

// TestStaleIfAtlasHangs: a caller who has less time than a call to Atlas may take is given the stale token shortly before his
// time is up, and one for whom there is none waits to the end.
func TestStaleIfAtlasHangs(t *testing.T) {
	bubble(t, Config{TTL: time.Second, StaleIfError: time.Hour}, func(t *testing.T, d *desk) {
		jwt, unknown := newJWT(orgA, "u", time.Time{}), newJWT(orgB, "u", time.Time{})
		d.want(jwt, miss)
		after(time.Minute)
		hang := func(ctx context.Context) (Answer, error) {
			<-ctx.Done()
			return Answer{}, &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: ctx.Err()}
		}
		create := func(cred atlas.JWT, fresh bool, patience time.Duration) (Result, time.Duration, error) {
			start := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			result, err := d.Create(ctx, CallersJWT(cred), fresh, hang)
			return result, time.Since(start), err
		}
		for _, patience := range []time.Duration{100 * time.Millisecond, 2 * time.Second, 20 * time.Second} {
			result, took, err := create(jwt, false, patience)
			if got := result.Status.String(); err != nil || got != stale {
				t.Errorf("with %v: %s, %v; want the stale token", patience, got, err)
			}
			if took < patience*3/4 || took >= patience {
				t.Errorf("with %v: after %v, want shortly before", patience, took)
			}
			for cred, fresh := range map[atlas.JWT]bool{unknown: false, jwt: true} {
				if _, took, err := create(cred, fresh, patience); !errors.Is(err, context.DeadlineExceeded) || took != patience {
					t.Errorf("with %v, fresh %v: %v after %v, want the deadline", patience, fresh, err, took)
				}
			}
		}
	})
}

func TestNoStaleTokenForWhoeverIsToBlame(t *testing.T) {
	for name, failure := range map[string]error{
		"400":                statusError(atlas.OpCreate, 400),
		"404":                statusError(atlas.OpCreate, 404),
		"caller gave up":     &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: context.Canceled},
		"invalid credential": kindError(atlas.OpCreate, atlas.KindInvalidCredential),
		"anything else":      errors.New("else"),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: 10 * time.Second, StaleIfError: time.Hour}, func(t *testing.T, d *desk) {
				jwt := newJWT(orgA, "u", time.Time{})
				d.want(jwt, miss)
				after(time.Minute)
				d.world.failing(failure)
				if _, err := d.create(jwt); !errors.Is(err, failure) {
					t.Errorf("got %v, want Atlas's error", err)
				}
			})
		})
	}
}

func TestARefusedCredentialIsForgotten(t *testing.T) {
	for name, refusal := range map[string]error{
		"401":     statusError(atlas.OpCreate, 401),
		"403":     statusError(atlas.OpCreate, 403),
		"service": &atlas.CredentialError{Err: statusError(atlas.OpLogIn, 400)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour, StaleIfError: time.Hour}, func(t *testing.T, d *desk) {
				jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
				d.want(jwt, miss)
				d.want(other, miss)
				d.world.failing(refusal)
				if _, err := d.Create(t.Context(), CallersJWT(jwt), true, d.world.ask(jwt)); !errors.Is(err, refusal) {
					t.Errorf("got %v, want the refusal", err)
				}
				outage := statusError(atlas.OpCreate, 503)
				d.world.failing(outage)
				if _, err := d.create(jwt); !errors.Is(err, outage) {
					t.Errorf("after a refusal: %v, want Atlas's error", err)
				}
				d.want(other, hit(3600))
			})
		})
	}
}

func TestADeleteOfARefusedCredentialForgetsItToo(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *desk) {
		cred := profile("secret", newJWT(orgA, "u", time.Time{}))
		jwt := newJWT(orgA, "u", time.Time{})
		if _, err := d.Create(t.Context(), cred, false, d.world.ask(jwt)); err != nil {
			t.Fatal(err)
		}
		refusal := statusError(atlas.OpDelete, 401)
		err := d.Delete(t.Context(), cred, func(context.Context) (atlas.JWT, error) { return "", refusal })
		if !errors.Is(err, refusal) || d.kept() != 0 {
			t.Errorf("%v, and %d tokens are kept; want a refusal and none", err, d.kept())
		}
	})
}

// What is remembered of one org is not for a credential that is of another now.
func TestAnIdentityThatChangesItsOrg(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *desk) {
		a, b := newJWT(orgA, "u", time.Time{}), newJWT(orgB, "u", time.Time{})
		for _, jwt := range []atlas.JWT{a, b} {
			result, err := d.Create(t.Context(), profile("secret", jwt), false, d.world.ask(jwt))
			if err != nil || result.Token != d.world.token(jwt.UnverifiedClaims().OrgID) {
				t.Errorf("got %q, %v", string(result.Token), err)
			}
		}
		if n := d.kept(); n != 2 {
			t.Errorf("%d tokens are kept, want one for each org", n)
		}
	})
}

// Two identities whose secrets were the same, or both empty, are still told apart by profile and by org.
func TestProfileAndOrgAreInTheKey(t *testing.T) {
	keys, seen := newHasher(), map[key]bool{}
	for _, name := range []string{"acme", "other"} {
		for _, org := range []string{orgA, orgB} {
			for _, secret := range []atlas.UserAuthToken{"", "secret"} {
				cred := atlas.Credential{JWT: newJWT(org, "u", time.Time{}), Profile: name, Secret: secret}
				seen[keys.key(Identity(name, cred))] = true
			}
		}
	}
	if len(seen) != 8 {
		t.Errorf("%d keys for 8 identities", len(seen))
	}
}

// A credential is never printed, whatever the verb and however deep it is.
func TestACredentialDoesNotPrint(t *testing.T) {
	creds := []Credential{profile("planted-secret", newJWT(orgA, "u", time.Time{})), CallersJWT("planted-jwt")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, cred := range creds {
			for _, value := range []any{cred, &cred, []Credential{cred}, map[string]Credential{"": cred}, struct{ C Credential }{cred}} {
				if got := fmt.Sprintf(verb, value); strings.Contains(got, "planted") || strings.Contains(got, "706c616e746564") {
					t.Errorf("%s of a %T prints the secret", verb, value)
				}
			}
		}
	}
}

func TestNoCache(t *testing.T) {
	bubble(t, Config{TTL: time.Minute, StaleIfError: time.Hour}, func(t *testing.T, d *desk) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		after(30 * time.Second)
		result, err := d.Create(t.Context(), CallersJWT(jwt), true, d.world.ask(jwt))
		if got := result.Status.String(); err != nil || got != "tokend; fwd=request" {
			t.Errorf("%s, %v; want fwd=request", got, err)
		}
		d.want(jwt, hit(60)) // filled anew
		d.world.failing(statusError(atlas.OpCreate, 503))
		if _, err := d.Create(t.Context(), CallersJWT(jwt), true, d.world.ask(jwt)); err == nil {
			t.Error("no-cache was answered from memory")
		}
		d.want(jwt, hit(60)) // a failure forgets nothing
	})
}

func TestTheOldestTokenGivesWay(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, MaxTokens: 3}, func(t *testing.T, d *desk) {
		var jwts []atlas.JWT
		for i := range 4 {
			jwts = append(jwts, newJWT(fmt.Sprintf("org %d", i), "u", time.Time{}))
			d.want(jwts[i], miss)
		}
		if n := d.kept(); n != 3 {
			t.Errorf("%d tokens are kept, want 3", n)
		}
		for _, jwt := range jwts[1:] {
			d.want(jwt, hit(3600))
		}
		d.want(jwts[0], miss)
		d.want(jwts[1], miss)
	})
}

// Not even behind one that lives longer.
func TestExpiredTokensAreForgottenUnasked(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, StaleIfError: time.Hour}, func(t *testing.T, d *desk) {
		d.want(newJWT(orgA, "u", time.Time{}), miss)
		d.want(newJWT(orgB, "u", time.Now().Add(time.Minute)), miss)
		if n := d.kept(); n != 2 {
			t.Fatalf("%d tokens are kept, want 2", n)
		}
		after(time.Minute)
		if n := d.kept(); n != 1 {
			t.Errorf("%d tokens are kept, want 1", n)
		}
		after(2 * time.Hour)
		if n := d.kept(); n != 0 {
			t.Errorf("%d tokens are kept, want none", n)
		}
	})
}

func TestCloseForgets(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *desk) {
		d.want(newJWT(orgA, "u", time.Time{}), miss)
		d.Close()
		if n := d.kept(); n != 0 {
			t.Errorf("%d tokens are kept", n)
		}
	})
}
