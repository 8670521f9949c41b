package proof

import (
	"sync"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Broken keys of profiles, each of which gives one org's caller another org's token.

// forgetful is an identity that forgets its secret when a login is refused, although its JWT is
// still valid, so the next refreshed JWT has no secret.
type forgetful struct {
	mu    sync.Mutex
	knows map[string]bool // guarded by mu; by profile
	tells map[string]bool // guarded by mu; whether its credential has the secret
}

func newForgetful() *forgetful {
	return &forgetful{knows: map[string]bool{}, tells: map[string]bool{}}
}

func (f *forgetful) heard(profile string, e atlas.IdentityEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case e.Op == atlas.OpLogIn && e.Err == nil:
		f.knows[profile], f.tells[profile] = true, true
	case e.Op == atlas.OpLogIn && howEnded(e) == "refused":
		f.knows[profile] = false
	case e.Op == atlas.OpRefresh && e.Err == nil:
		f.tells[profile] = f.knows[profile]
	}
}

// bySecret keys by the secret alone, as the identity has it.
func (f *forgetful) bySecret(cred atlas.Credential) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case cred.Profile == "":
		return string(cred.JWT)
	case !f.tells[cred.Profile]:
		return ""
	}
	return string(cred.Secret)
}

// byProfile keys by the profile's name alone.
func byProfile(cred atlas.Credential) string {
	if cred.Profile == "" {
		return string(cred.JWT)
	}
	return cred.Profile
}

// profileMutant is a broken key, and the profiles with which it is rejected.
type profileMutant struct {
	name     string
	profiles profileKind
	make     func() (tokens func(tokencache.Atlas) server.Tokens, heard func(string, atlas.IdentityEvent))
}

var profileMutants = []profileMutant{
	{"calls shared by the secret alone, which the identity forgets", fixedProfiles, func() (func(tokencache.Atlas) server.Tokens, func(string, atlas.IdentityEvent)) {
		f := newForgetful()
		return func(a tokencache.Atlas) server.Tokens {
			return &history.SingleFlight{Upstream: history.Upstream{Atlas: a}, Key: f.bySecret}
		}, f.heard
	}},
	{"a cache keyed by the secret alone, which the identity forgets", fixedProfiles, func() (func(tokencache.Atlas) server.Tokens, func(string, atlas.IdentityEvent)) {
		f := newForgetful()
		return func(a tokencache.Atlas) server.Tokens { return history.NewUnfenced(a, f.bySecret) }, f.heard
	}},
	{"a cache keyed by the profile alone, which changes its org", movingProfiles, func() (func(tokencache.Atlas) server.Tokens, func(string, atlas.IdentityEvent)) {
		return func(a tokencache.Atlas) server.Tokens { return history.NewUnfenced(a, byProfile) }, nil
	}},
}

// TestProofRejectsOtherOrgs checks that every broken key is rejected for returning another org's
// token. There are no deletes, without which the keys have no other fault.
func TestProofRejectsOtherOrgs(t *testing.T) {
	for _, mutant := range testutil.Some(profileMutants, 1) {
		t.Run(mutant.name, func(t *testing.T) {
			testutil.ParallelWork(t)
			const most = 20
			operations := 0
			for range most {
				s := setup{replicas: 1, orgs: sideBySide, profiles: mutant.profiles}
				s.tokens, s.heard = mutant.make()
				w := newWorld(t, s)
				stopFaults, stopTrouble := w.injectFaults(slowAnswers...), refusals(w)
				h := w.run(t, traffic{operations: leastOfProfiles, clients: 16, fresh: .1})
				stopTrouble()
				stopFaults()
				operations += len(h.Events)
				if n := h.Strangers(); n > 0 {
					t.Logf("rejected after %d operations: %d callers got another org's token", operations, n)
					return
				}
			}
			t.Errorf("not rejected in %d operations", operations)
		})
	}
}
