package tokencache

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// request is one call for a credential.
type request struct {
	cred    atlas.Credential
	key     key
	noCache bool            // not from the cache
	caller  context.Context // of a delete that may outlive it: until it is sent, it ends with its caller
}

var errNoCredential = errors.New("the credential has no JWT, or is of a profile and has no secret")

func (c *Cache) request(cred atlas.Credential, noCache bool) (request, error) {
	if cred.JWT == "" || cred.Profile != "" && cred.Secret == "" {
		return request{}, errNoCredential // all empty credentials would share one key
	}
	return request{cred: cred, key: c.keys.key(cred), noCache: noCache}, nil
}

// org returns the org in the JWT: a UUID, or "" if it does not name one. A caller's own JWT is not
// to be trusted before Atlas has accepted it.
func (r request) org() string { return r.cred.Claims().OrgID }

// sameCaller reports whether two credentials are the same, so that a caller with one of them may
// get the answer for the other.
func sameCaller(a, b atlas.Credential) bool {
	if a.Profile == "" {
		return b.Profile == "" && a.JWT == b.JWT
	}
	return a.Profile == b.Profile && a.Secret == b.Secret && a.Claims().OrgID == b.Claims().OrgID
}

// identity distinguishes a credential from every other, in the same way in all replicas: by a
// secret, and by what the secret is for (its kind, profile and org).
func identity(cred atlas.Credential) (secret string, purpose [3]string) {
	if cred.Profile == "" {
		return string(cred.JWT), [3]string{"jwt"}
	}
	return string(cred.Secret), [3]string{"userauthtoken", cred.Profile, cred.Claims().OrgID}
}

// key identifies a credential in this process.
type key [sha256.Size]byte

// hasher makes keys: SHA-256 of a random secret and the credential, so that the keys in a map say
// nothing about the credentials. No key leaves the process, so an HMAC would add nothing, and costs
// three times as much.
type hasher struct{ secret [32]byte }

func newHasher() *hasher {
	h := &hasher{}
	_, _ = rand.Read(h.secret[:]) // never fails
	return h
}

func (h *hasher) key(cred atlas.Credential) key {
	secret, purpose := identity(cred)
	text := append(make([]byte, 0, 1024), h.secret[:]...)
	for _, part := range purpose {
		text = appendPart(text, part)
	}
	return sha256.Sum256(appendPart(text, secret))
}

// appendPart keeps "ab", "c" apart from "a", "bc".
func appendPart(to []byte, part string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(part))), part...)
}

// derive derives n bytes from a credential for one purpose (HKDF, RFC 5869). They cannot be
// computed without the credential, and the credential cannot be computed from them.
func derive(cred atlas.Credential, use string, n int) []byte {
	secret, purpose := identity(cred)
	info := appendPart([]byte("ephemeral-token-service "), use)
	for _, part := range purpose {
		info = appendPart(info, part)
	}
	derived, err := hkdf.Key(sha256.New, []byte(secret), nil, string(info), n)
	if err != nil {
		panic(err) // cannot happen: n is far below the limit
	}
	return derived
}

// recent keeps the values that were added last: at least size, and less than twice as many. Callers
// can invent any number of credentials, so what is kept of them is bounded.
type recent[V any] struct {
	size int

	mu          sync.Mutex
	young, aged map[key]V // guarded by mu
}

func newRecent[V any](size int) *recent[V] {
	return &recent[V]{size: size, young: map[key]V{}}
}

func (r *recent[V]) add(k key, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.young[k] = v
	if len(r.young) >= r.size {
		r.young, r.aged = make(map[key]V, r.size), r.young
	}
}

func (r *recent[V]) get(k key) (v V, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v, ok = r.young[k]; !ok {
		v, ok = r.aged[k]
	}
	return v, ok
}

// of returns the value for k, and computes it if there is none.
func (r *recent[V]) of(k key, compute func() V) V {
	v, ok := r.get(k)
	if !ok {
		v = compute() // two callers may do it at the same time
		r.add(k, v)
	}
	return v
}
