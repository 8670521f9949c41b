package tokencache

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Credential is what a call is made with: all calls with the same one may share an answer, and no others.
type Credential struct {
	kind   string
	secret string
	jwt    atlas.JWT // which says the org
	org    string    // once it is known
}

const (
	kindJWT           = "jwt"
	kindUserAuthToken = "userauthtoken"
)

// CallersJWT is a caller's own Atlas JWT.
func CallersJWT(jwt atlas.JWT) Credential {
	return Credential{kind: kindJWT, secret: string(jwt), jwt: jwt}
}

// Identity is the Atlas identity of a profile, by its userauthtoken, which all replicas have in common. Profile and org are
// part of what is shared and remembered by, so that two identities never hang on their secrets alone to be told apart.
func Identity(profile string, cred atlas.Credential) Credential {
	org := cred.Claims().OrgID
	return Credential{kind: kindUserAuthToken, secret: profile + "\x00" + org + "\x00" + string(cred.Secret), org: org}
}

// Org is the org that the credential says it is of: a UUID, or "" if it does not say. It decides which fence a call stands
// behind and nothing else: what is remembered is found by the secret, and only after Atlas has accepted it.
func (c Credential) Org() string {
	if c.org != "" {
		return c.org
	}
	return c.jwt.UnverifiedClaims().OrgID
}

// read is c with its org read, which costs more than all the rest of a hit. So it is done when it is needed.
func (c Credential) read() Credential {
	c.org, c.jwt = c.Org(), ""
	return c
}

// Format writes "[redacted]" whatever the verb.
func (Credential) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "[redacted]") }

// isOf reports whether c is of the org under which it is remembered. The same JWT always is; a secret may have been given
// a JWT of another org since.
func (c Credential) isOf(org string) bool { return c.kind == kindJWT || c.Org() == org }

// key stands for a credential in this process.
type key [sha256.Size]byte

// hasher makes keys. It is safe for concurrent use.
type hasher struct{ idle sync.Pool }

// keyedHash is one at work, with room for what it hashes.
type keyedHash struct {
	mac  hash.Hash
	room []byte
	sum  key
}

// newHasher returns one with a key of its own, so that nobody can tell a credential from what is in a map.
func newHasher() *hasher {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	return &hasher{sync.Pool{New: func() any { return &keyedHash{mac: hmac.New(sha256.New, secret)} }}}
}

func (h *hasher) key(c Credential) key {
	k := h.idle.Get().(*keyedHash)
	defer h.idle.Put(k)
	k.room = append(append(append(k.room[:0], c.kind...), 0), c.secret...)
	k.mac.Reset()
	k.mac.Write(k.room)
	clear(k.room) // a credential stays nowhere
	k.mac.Sum(k.sum[:0])
	return k.sum
}

// derive makes n bytes of the credential for one purpose: whoever does not have the credential cannot, and from them
// nobody gets back to it (RFC 5869).
func (c Credential) derive(purpose string, n int) []byte {
	b, err := hkdf.Key(sha256.New, []byte(c.secret), nil, "ephemeral-token-service "+c.kind+" "+purpose, n)
	if err != nil {
		panic(err) // cannot happen: n is far below the limit
	}
	return b
}

// publicID is a name for s that does not tell it, of fixed length whatever s is.
func publicID(purpose, s string) string {
	sum := sha256.Sum256([]byte(purpose + "\x00" + s))
	return hex.EncodeToString(sum[:16])
}
