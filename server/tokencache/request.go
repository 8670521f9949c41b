package tokencache

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// request is one call for a credential.
type request struct {
	cred  atlas.Credential
	key   key
	fresh bool // nothing remembered is wanted
}

// Errors of a credential that no call can be made with.
var errNoCredential = errors.New("the credential has no JWT, or is of a profile and has no secret")

func (c *Cache) request(cred atlas.Credential, fresh bool) (request, error) {
	if cred.JWT == "" || cred.Profile != "" && cred.Secret == "" {
		return request{}, errNoCredential // what is empty would look like any other that is
	}
	return request{cred: cred, key: c.keys.key(cred), fresh: fresh}, nil
}

// org is the org that the JWT says it is of: a UUID, or "" if it does not say. Of a caller's own it is to be believed once
// Atlas has accepted it.
func (r request) org() string { return r.cred.Claims().OrgID }

// sameCaller reports whether two credentials are one: whoever has the one can have what the other is answered.
func sameCaller(a, b atlas.Credential) bool {
	if a.Profile == "" {
		return b.Profile == "" && a.JWT == b.JWT
	}
	return a.Profile == b.Profile && a.Secret == b.Secret && a.Claims().OrgID == b.Claims().OrgID
}

// identity is what tells a credential from every other, the same in all replicas: a secret, and what it is of.
func identity(cred atlas.Credential) (secret string, of [3]string) {
	if cred.Profile == "" {
		return string(cred.JWT), [3]string{"jwt"}
	}
	return string(cred.Secret), [3]string{"userauthtoken", cred.Profile, cred.Claims().OrgID}
}

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

func (h *hasher) key(cred atlas.Credential) key {
	k := h.idle.Get().(*keyedHash)
	defer h.idle.Put(k)
	secret, of := identity(cred)
	k.room = k.room[:0]
	for _, part := range of {
		k.room = appendPart(k.room, part)
	}
	k.room = appendPart(k.room, secret)
	k.mac.Reset()
	k.mac.Write(k.room)
	clear(k.room) // a credential stays nowhere
	k.mac.Sum(k.sum[:0])
	return k.sum
}

// appendPart keeps "ab", "c" apart from "a", "bc".
func appendPart(to []byte, part string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(part))), part...)
}

// derive makes n bytes of a credential for one purpose: whoever does not have the credential cannot, and from them nobody
// gets back to it (RFC 5869).
func derive(cred atlas.Credential, purpose string, n int) []byte {
	secret, of := identity(cred)
	info := appendPart([]byte("ephemeral-token-service "), purpose)
	for _, part := range of {
		info = appendPart(info, part)
	}
	derived, err := hkdf.Key(sha256.New, []byte(secret), nil, string(info), n)
	if err != nil {
		panic(err) // cannot happen: n is far below the limit
	}
	return derived
}

// publicID is a name for s that does not tell it, of fixed length whatever s is.
func publicID(purpose, s string) string {
	sum := sha256.Sum256([]byte(purpose + "\x00" + s))
	return hex.EncodeToString(sum[:16])
}
