package emulator

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
)

// atlas is what Atlas knows: orgs, tokens and its signing key.
type atlas struct {
	Config
	key  []byte
	orgs []*Org

	mu      sync.Mutex
	tick    uint64       // guarded by mu; the logical clock
	lastJWT int          // guarded by mu; the latest jti
	revoked map[int]bool // guarded by mu; by jti
	minted  []Token      // guarded by mu; every ephemeral token ever
}

// Org is one org, with the one bot user that logs in for it.
type Org struct {
	ID string // a UUID

	userID         string // the bot's, a UUID
	atlas          *atlas
	userAuthToken  string // guarded by atlas.mu
	ephemeralToken string // guarded by atlas.mu; "" if there is none
	revokedUpTo    int    // guarded by atlas.mu; JWTs up to this jti are revoked
}

// Token is the life of one ephemeral token. Its times are ticks of a logical clock: of two events
// in the emulator, the later has the higher tick.
type Token struct {
	OrgID   string `json:"org_id"`
	Value   string `json:"token"`
	Minted  uint64 `json:"minted"`
	Deleted uint64 `json:"deleted"` // 0 while it lives
}

func newAtlas(config Config) *atlas {
	a := &atlas{Config: config, key: config.bytes("key"), revoked: map[int]bool{}}
	for i := range config.Orgs {
		id, userID := newUUID(config.bytes(fmt.Sprint("org ", i))), newUUID(config.bytes(fmt.Sprint("user ", i)))
		a.orgs = append(a.orgs, &Org{ID: id, userID: userID, atlas: a, userAuthToken: newSecret()})
	}
	return a
}

// Org is the org with the given number, from 0 to Config.Orgs-1. It panics for another number.
func (em *Emulator) Org(i int) *Org { return em.atlas.orgs[i] }

// Orgs are all orgs.
func (em *Emulator) Orgs() []*Org { return slices.Clone(em.atlas.orgs) }

// UserAuthToken is the secret that the org's bot logs in with.
func (o *Org) UserAuthToken() string {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	return o.userAuthToken
}

// RotateUserAuthToken replaces the bot's secret. JWTs from the old one live on.
func (o *Org) RotateUserAuthToken() {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	o.userAuthToken = newSecret()
}

// EphemeralToken is the org's current ephemeral token, or "" if it has none. Looking does not make
// one.
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

// Tick moves the logical clock on and returns it. A checker uses it to put its own events in order
// with those of Token: what was minted before the call has a lower tick, what is minted after it a
// higher one.
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
	i := slices.IndexFunc(a.minted, func(t Token) bool { return t.Value == o.ephemeralToken })
	a.minted[i].Deleted = a.tick
	o.ephemeralToken = ""
}

// orgOfSecret is the org whose bot logs in with the secret, or nil.
func (a *atlas) orgOfSecret(userAuthToken string) *Org {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.orgs {
		if o.userAuthToken == userAuthToken {
			return o
		}
	}
	return nil
}

func newSecret() string { return hex.EncodeToString(randomBytes(20)) }

// bytes returns 32 bytes for a purpose: from the seed, or random without one.
func (c Config) bytes(purpose string) []byte {
	if c.Seed == "" {
		return randomBytes(32)
	}
	sum := sha256.Sum256([]byte(c.Seed + "\x00" + purpose))
	return sum[:]
}

// newUUID makes a version 4 UUID of random bytes; RFC 9562, 5.4.
func newUUID(b []byte) string {
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
