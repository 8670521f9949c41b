package proof

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth/authtest"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// Profiles in the proof: the service holds the userauthtokens of several orgs. Some callers are
// mapped to these, others have JWTs of the same orgs.

type profileKind int

const (
	noProfiles profileKind = iota
	// fixedProfiles: one profile for each org.
	fixedProfiles
	// movingProfiles: also one for each pair of orgs, whose secret alternates between the two.
	movingProfiles
)

// sideBySide is the number of orgs in use at a time.
const sideBySide = 8

// The lifetime of a profile's JWT and its refresh window, by the clock of Atlas and the service,
// which advances with each call. So the number of refreshes does not depend on the machine.
const (
	profileStep  = 500 * time.Millisecond
	profileLife  = 6 * time.Minute
	profileLogin = 30 * time.Minute
)

func heldConfig(orgs int, clock *testutil.Clock) emulator.Config {
	return emulator.Config{Orgs: orgs, Now: clock.Now, JWTLifetime: profileLife, RefreshWindow: profileLogin}
}

// held is the profiles of a world.
type held struct {
	*world

	clock      *testutil.Clock
	authConfig auth.Config
	bearer     map[string]string // OIDC tokens by profile
	swaps      atomic.Int64      // replacements of the pairs' secrets
	group      atomic.Int64      // the group of orgs in use

	mu         sync.Mutex
	identities []auth.Identities       // guarded by mu; of each replica
	read       map[*atlas.Identity]int // guarded by mu; the org of the secret that a pair's identity read last
	counts     map[string]int          // guarded by mu; logins and refreshes by result
}

func orgProfile(org int) string   { return fmt.Sprintf("org-%d", org) }
func pairProfile(pair int) string { return fmt.Sprintf("pair-%d", pair) }

func newHeld(t *testing.T, w *world, clock *testutil.Clock) *held {
	t.Helper()
	h := &held{world: w, clock: clock, bearer: map[string]string{}, read: map[*atlas.Identity]int{}, counts: map[string]int{}}
	issuer, key := authtest.NewIssuer(t), authtest.NewKey(t)
	issuer.Publish(map[string]crypto.Signer{"ec": key})
	var named, rules strings.Builder
	add := func(profile, allow string) {
		fmt.Fprintf(&named, "  %s: {userauthtoken_file: /run/secrets/%s}\n", profile, profile)
		fmt.Fprintf(&rules, "  - {oidc: {issuer: %q, audience: tokend, subject: %q}, allow: [%s], profile: %s}\n", issuer.URL, profile, allow, profile)
		claims := issuer.Claims(map[string]any{"sub": profile, "exp": time.Now().Add(24 * time.Hour).Unix()})
		h.bearer[profile] = "Bearer " + authtest.Sign(t, jwt.SigningMethodES256, "ec", key, claims)
	}
	for org := range w.orgs {
		add(orgProfile(org), "CreateToken, DeleteToken")
	}
	for pair := range w.orgs / 2 {
		add(pairProfile(pair), "CreateToken") // the org of a delete would be unknown
	}
	policy := "profiles:\n" + named.String() + "callers:\n" + rules.String() + "  - {atlas_jwt: true, allow: [CreateToken, DeleteToken], profile: passthrough}\n"
	h.authConfig = auth.Config{Policy: testutil.MustPolicy(t, policy), RootCAs: issuer.RootCAs}
	return h
}

// join gives a replica its own token identities.
func (h *held) join(t *testing.T, c *server.Config, a atlas.Config) {
	t.Helper()
	client, err := atlas.New(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.CloseIdleConnections)
	identities := auth.Identities{}
	for org := range h.orgs {
		secret := atlas.UserAuthToken(h.atlas.Org(org).UserAuthToken())
		identities[orgProfile(org)] = h.identity(t, client, orgProfile(org), func() atlas.UserAuthToken { return secret })
	}
	for pair := range h.orgs / 2 {
		name := pairProfile(pair)
		identities[name] = h.identity(t, client, name, func() atlas.UserAuthToken {
			h.mu.Lock()
			defer h.mu.Unlock()
			org := h.target(pair, h.swaps.Load())
			h.read[identities[name]] = org
			return atlas.UserAuthToken(h.atlas.Org(org).UserAuthToken())
		})
	}
	cfg := h.authConfig
	cfg.Identities = identities
	authenticator, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(authenticator.Close)
	c.Atlas, c.Auth = client, authenticator
	h.mu.Lock()
	defer h.mu.Unlock()
	h.identities = append(h.identities, identities)
}

func (h *held) identity(t *testing.T, client *atlas.Client, profile string, secret func() atlas.UserAuthToken) *atlas.Identity {
	t.Helper()
	s := atlas.NewIdentity(atlas.IdentityConfig{
		Client: client, Profile: profile, Clock: h.clock.IdentityClock(),
		Secret: secret,
		OnEvent: func(e atlas.IdentityEvent) {
			h.mu.Lock()
			h.counts[string(e.Op)+" "+howEnded(e)]++
			h.mu.Unlock()
			if h.heard != nil {
				h.heard(profile, e)
			}
		},
	})
	t.Cleanup(s.Close)
	return s
}

// howEnded returns whether a login or refresh succeeded, was refused, or failed otherwise.
func howEnded(e atlas.IdentityEvent) string {
	var failed *atlas.Error
	switch {
	case e.Err == nil:
		return "done"
	case errors.As(e.Err, &failed) && (failed.StatusCode == http.StatusBadRequest || failed.StatusCode == http.StatusForbidden):
		return "refused"
	}
	return "failed"
}

func (h *held) count(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[what]
}

// target returns the org whose secret a pair has after some swaps.
func (*held) target(pair int, swaps int64) int { return 2*pair + int(swaps%2) }

// enter returns a random org of a group, and retires the identities of the group before the last.
func (h *held) enter(group int, random *rand.Rand) int {
	if h.group.CompareAndSwap(int64(group)-1, int64(group)) && group > 1 {
		h.each(group-2, func(s *atlas.Identity) { s.Retire() })
	}
	return group*sideBySide + random.IntN(sideBySide)
}

// each calls do for the identities of a group's profiles on every replica.
func (h *held) each(group int, do func(*atlas.Identity)) {
	h.mu.Lock()
	replicas := h.identities
	h.mu.Unlock()
	for _, identities := range replicas {
		for org := group * sideBySide; org < (group+1)*sideBySide; org++ {
			do(identities[orgProfile(org)])
			if h.profiles == movingProfiles && org%2 == 0 {
				do(identities[pairProfile(org/2)])
			}
		}
	}
}

// choose returns the profile of a call's caller, "" for a caller with a JWT.
func (h *held) choose(e *history.Event, random *rand.Rand) (profile string) {
	switch kind := random.IntN(4); {
	case kind < history.FirstProfile:
		return ""
	case kind == history.Pairs && h.profiles == movingProfiles:
		e.JWT = history.Pairs
		return pairProfile(e.Org / 2)
	}
	e.JWT = history.FirstProfile
	return orgProfile(e.Org)
}

// begin records the org of a pair's caller. Until the profile has logged in with the current
// secret, and after the next swap, either org is possible. The caller calls settle when the call
// has returned.
func (h *held) begin(e *history.Event, profile string) (settle func()) {
	pair, swaps := e.Org/2, h.swaps.Load()
	org := h.target(pair, swaps)
	e.Org, e.Either = org, [2]int{2 * pair, 2*pair + 1}
	h.mu.Lock()
	identity := h.identities[e.Replica][profile]
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), proofCeiling)
	defer cancel()
	cred, err := identity.Credential(ctx)
	h.mu.Lock()
	settled := err == nil && cred.Claims().OrgID == h.atlas.Org(org).ID && h.read[identity] == org // no login used the other secret
	h.mu.Unlock()
	return func() {
		if settled && h.swaps.Load() == swaps {
			e.Either = [2]int{}
		}
	}
}

// swap replaces the secret of every pair by that of its other org, and revokes and invalidates the
// old JWTs: the next call logs in, while the cache still has the other org's token.
func (h *held) swap() {
	h.swaps.Add(1)
	h.each(int(h.group.Load()), (*atlas.Identity).SecretChanged)
	h.revoke((*atlas.Identity).Invalidate)
}

// revoke makes Atlas refuse the profiles' current JWTs, and calls tell for the identities unless it
// is nil.
func (h *held) revoke(tell func(*atlas.Identity, atlas.JWT)) {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	h.each(int(h.group.Load()), func(s *atlas.Identity) {
		cred, err := s.Credential(gone)
		if err != nil {
			return
		}
		h.atlas.Revoke(string(cred.JWT))
		if tell != nil {
			tell(s, cred.JWT)
		}
	})
}
