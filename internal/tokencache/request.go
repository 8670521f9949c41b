package tokencache

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// request is one call for a credential.
type request struct {
	cred    atlas.Credential
	key     key
	claims  atlas.Claims    // of the JWT; a caller's own is not to be trusted before Atlas has accepted it
	noCache bool            // do not use a cached token
	caller  context.Context // of a delete that may outlive it: until it is sent, it ends with its caller
}

// identity distinguishes a credential from every other, in the same way in all replicas: by a
// secret, and by what the secret is for.
type identity struct{ kind, profile, org, secret string }

func identityOf(cred atlas.Credential) identity {
	if cred.Profile == "" {
		return identity{kind: "jwt", secret: string(cred.JWT)}
	}
	return identity{"userauthtoken", cred.Profile, cred.Claims().OrgID, string(cred.Secret)}
}

// appendPurpose appends what the secret is for.
func (i identity) appendPurpose(to []byte) []byte {
	return appendPart(appendPart(appendPart(to, i.kind), i.profile), i.org)
}

// appendPart keeps "ab", "c" apart from "a", "bc".
func appendPart(to []byte, part string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(part))), part...)
}

// key identifies a credential in this process.
type key [sha256.Size]byte

// key returns the key of a credential: SHA-256 of a random secret and the credential, so that the
// keys in a map say nothing about the credentials. No key leaves the process, so an HMAC would add
// nothing, and costs three times as much.
func (c *Cache) key(cred atlas.Credential) key {
	i := identityOf(cred)
	text := make([]byte, 0, 512) // on the stack, which would grow for a larger one
	text = i.appendPurpose(append(text, c.secret[:]...))
	return sha256.Sum256(appendPart(text, i.secret))
}

// derive derives n bytes from a credential for one purpose (HKDF, RFC 5869). They cannot be
// computed without the credential, and the credential cannot be computed from them.
func derive(cred atlas.Credential, use string, n int) []byte {
	i := identityOf(cred)
	info := i.appendPurpose(appendPart([]byte("ephemeral-token-service "), use))
	derived, err := hkdf.Key(sha256.New, []byte(i.secret), nil, string(info), n)
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
