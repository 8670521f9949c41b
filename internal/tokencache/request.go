package tokencache

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// request is one call for a credential.
type request struct {
	cred    atlas.Credential
	key     key
	noCache bool            // not from the cache
	caller  context.Context // of a delete that outlives it: it is cancelled with its caller until it is sent
}

// errNoCredential says that no call can be made with the credential.
var errNoCredential = errors.New("the credential has no JWT, or is of a profile and has no secret")

func (c *Cache) request(cred atlas.Credential, noCache bool) (request, error) {
	if cred.JWT == "" || cred.Profile != "" && cred.Secret == "" {
		return request{}, errNoCredential // all empty credentials would share one key
	}
	return request{cred: cred, key: c.keys.key(cred), noCache: noCache}, nil
}

// org is the org in the JWT: a UUID, or "" if it does not name one. If the JWT is the caller's own, do not trust it before
// Atlas has accepted the JWT.
func (r request) org() string { return r.cred.Claims().OrgID }

// sameCaller reports whether two credentials are the same, so that a caller with the one may get the answer for the other.
func sameCaller(a, b atlas.Credential) bool {
	if a.Profile == "" {
		return b.Profile == "" && a.JWT == b.JWT
	}
	return a.Profile == b.Profile && a.Secret == b.Secret && a.Claims().OrgID == b.Claims().OrgID
}

// identity tells a credential from every other, in the same way in all replicas: by a secret, and by what the secret is for
// (its kind, profile and org).
func identity(cred atlas.Credential) (secret string, of [3]string) {
	if cred.Profile == "" {
		return string(cred.JWT), [3]string{"jwt"}
	}
	return string(cred.Secret), [3]string{"userauthtoken", cred.Profile, cred.Claims().OrgID}
}

// key identifies a credential in this process.
type key [sha256.Size]byte

// hasher makes keys. It is safe for concurrent use.
type hasher struct{ idle sync.Pool }

// keyedHash is a hash with its buffers, to be used again.
type keyedHash struct {
	mac  hash.Hash
	room []byte
	sum  key
}

// newHasher returns a hasher with a random key, so that the keys in a map say nothing about the credentials.
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
	clear(k.room) // no credential stays in the pool
	k.mac.Sum(k.sum[:0])
	return k.sum
}

// appendPart keeps "ab", "c" apart from "a", "bc".
func appendPart(to []byte, part string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(part))), part...)
}

// derive derives n bytes from a credential for one purpose (HKDF, RFC 5869). Nobody can compute them without the credential,
// or the credential from them.
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
