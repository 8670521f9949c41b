package emulator

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"
)

// atlas is what Atlas knows: orgs, users, tokens and its signing key.
type atlas struct {
	now           func() time.Time
	key           []byte
	lifetime      time.Duration
	refreshWindow time.Duration
	orgs          []*Org

	mu      sync.Mutex
	tick    uint64          // guarded by mu; the logical clock
	lastJWT int             // guarded by mu; the latest jti
	revoked map[int]bool    // guarded by mu; by jti
	users   map[string]user // guarded by mu; by id
	minted  []Token         // guarded by mu; every ephemeral token ever
}

// user is somebody a JWT can belong to.
type user struct {
	id                                string
	org                               *Org
	ephemeral                         bool
	firstName, lastName, email, phone string
}

// Org is one org, with the one bot user that logs in for it.
type Org struct {
	ID     string // a UUID
	Name   string
	Slug   string
	UserID string // the bot's, a UUID

	atlas          *atlas
	userAuthToken  string // guarded by atlas.mu
	ephemeralToken string // guarded by atlas.mu; "" if there is none
	revokedUpTo    int    // guarded by atlas.mu; JWTs up to this jti are revoked
}

// Token is the life of one ephemeral token. Its times are ticks of a logical
// clock: of two events in the emulator, the later has the higher tick.
type Token struct {
	OrgID   string `json:"org_id"`
	Value   string `json:"token"`
	Minted  uint64 `json:"minted"`
	Deleted uint64 `json:"deleted"` // 0 while it lives
}

func newAtlas(config Config) *atlas {
	a := &atlas{
		now:           config.Now,
		key:           randomBytes(32),
		lifetime:      config.JWTLifetime,
		refreshWindow: config.RefreshWindow,
		revoked:       map[int]bool{},
		users:         map[string]user{},
	}
	for i := range config.Orgs {
		org := &Org{
			ID:            newUUID(),
			Name:          fmt.Sprintf("Emulated Org %d", i),
			Slug:          fmt.Sprintf("emulated-org-%d", i),
			UserID:        newUUID(),
			atlas:         a,
			userAuthToken: newSecret(),
		}
		a.orgs = append(a.orgs, org)
		a.users[org.UserID] = user{
			id: org.UserID, org: org, firstName: "Emulated", lastName: "Bot", email: "bot@" + org.Slug + ".invalid",
		}
	}
	return a
}

// Org is the org with the given number, from 0 to Config.Orgs-1. It panics for
// another number.
func (em *Emulator) Org(i int) *Org { return em.atlas.orgs[i] }

// Orgs are all orgs.
func (em *Emulator) Orgs() []*Org { return slices.Clone(em.atlas.orgs) }

// UserAuthToken is the secret that the org's bot logs in with.
func (o *Org) UserAuthToken() string {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	return o.userAuthToken
}

// RotateUserAuthToken replaces the bot's secret, and returns the new one. JWTs
// that were had with the old one live on.
func (o *Org) RotateUserAuthToken() string {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	o.userAuthToken = newSecret()
	return o.userAuthToken
}

// EphemeralToken is the org's current ephemeral token, or "" if it has none.
// Looking does not make one.
func (o *Org) EphemeralToken() string {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	return o.ephemeralToken
}

// Tokens are all ephemeral tokens ever minted, oldest first.
func (em *Emulator) Tokens() []Token {
	em.atlas.mu.Lock()
	defer em.atlas.mu.Unlock()
	return slices.Clone(em.atlas.minted)
}

// Minted is the number of ephemeral tokens ever minted.
func (em *Emulator) Minted() int {
	em.atlas.mu.Lock()
	defer em.atlas.mu.Unlock()
	return len(em.atlas.minted)
}

// Tick moves the logical clock on and returns it. A checker uses it to put its
// own events in order with those of Token: what was minted before the call has
// a lower tick, what is minted after it a higher one.
func (em *Emulator) Tick() uint64 {
	em.atlas.mu.Lock()
	defer em.atlas.mu.Unlock()
	em.atlas.tick++
	return em.atlas.tick
}

// currentToken is the org's ephemeral token, made if there is none.
func (a *atlas) currentToken(o *Org) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.ephemeralToken == "" {
		a.tick++
		o.ephemeralToken = newSecret()
		a.minted = append(a.minted, Token{OrgID: o.ID, Value: o.ephemeralToken, Minted: a.tick})
	}
	return o.ephemeralToken
}

// deleteToken leaves the org without an ephemeral token.
func (a *atlas) deleteToken(o *Org) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if o.ephemeralToken == "" {
		return
	}
	a.tick++
	for i := range slices.Backward(a.minted) {
		if a.minted[i].Value == o.ephemeralToken {
			a.minted[i].Deleted = a.tick
			break
		}
	}
	o.ephemeralToken = ""
}

// botOf is the user whose secret this is.
func (a *atlas) botOf(userAuthToken string) (user, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.orgs {
		if o.userAuthToken == userAuthToken {
			return a.users[o.UserID], true
		}
	}
	return user{}, false
}

// addEphemeralUser adds u to the org whose live ephemeral token this is.
func (a *atlas) addEphemeralUser(token string, u user) (user, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.orgs, func(o *Org) bool { return token != "" && o.ephemeralToken == token })
	if i < 0 {
		return user{}, false
	}
	u.id, u.org, u.ephemeral = newUUID(), a.orgs[i], true
	a.users[u.id] = u
	return u, true
}

func newSecret() string { return hex.EncodeToString(randomBytes(20)) }

// newUUID makes a random (version 4) UUID; RFC 9562, 5.4.
func newUUID() string {
	b := randomBytes(16)
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
