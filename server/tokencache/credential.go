package tokencache

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Credential is what a call is made with: all calls with the same one may share an answer, and no others.
type Credential struct {
	kind   string
	secret string
	// Org is the org that the credential says it is of: a UUID, or "" if it does not say. It decides which fence a call
	// stands behind and nothing else: what is remembered is found by the secret, and only after Atlas has accepted it.
	Org string
}

// CallersJWT is a caller's own Atlas JWT.
func CallersJWT(jwt atlas.JWT) Credential {
	return Credential{kind: "jwt", secret: string(jwt), Org: jwt.UnverifiedClaims().OrgID}
}

// Identity is an Atlas identity of the service, by its userauthtoken, which all replicas have in common; jwt is the
// present JWT that it was traded for.
func Identity(secret atlas.UserAuthToken, jwt atlas.JWT) Credential {
	return Credential{kind: "userauthtoken", secret: string(secret), Org: jwt.UnverifiedClaims().OrgID}
}

// key stands for a credential in this process.
type key [sha256.Size]byte

func (c Credential) key(hashKey []byte) (k key) {
	mac := hmac.New(sha256.New, hashKey)
	mac.Write([]byte(c.kind))
	mac.Write([]byte{0})
	mac.Write([]byte(c.secret))
	mac.Sum(k[:0])
	return k
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
