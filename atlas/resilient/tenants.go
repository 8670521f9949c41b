package resilient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// maxAccepted is how many JWTs are remembered that Atlas has accepted.
const maxAccepted = 16_384

// unverified is the one tenant of all JWTs that Atlas has not accepted yet: an unverified claim
// identifies no tenant.
const unverified = "unverified"

// tenants tells tenants apart: the profile of a call, or the org of a JWT that Atlas has accepted.
type tenants struct {
	accepted *lru.Cache[[sha256.Size]byte, string] // the tenant, by the hash of the JWT
}

func newTenants() (*tenants, error) {
	accepted, err := lru.New[[sha256.Size]byte, string](maxAccepted)
	return &tenants{accepted}, err
}

// of returns the tenant of a call.
func (t *tenants) of(ctx context.Context, jwt atlas.JWT) string {
	if profile := atlas.ProfileOf(ctx); profile != "" {
		return "profile " + profile
	}
	if tenant, ok := t.accepted.Get(sha256.Sum256([]byte(jwt))); ok {
		return tenant
	}
	return unverified
}

// answered notes how a call with the JWT ended.
func (t *tenants) answered(ctx context.Context, jwt atlas.JWT, tenant string, err error) {
	switch class := atlas.Classify(err); {
	case atlas.ProfileOf(ctx) != "":
	case class == atlas.ClassOK && tenant == unverified:
		hash := sha256.Sum256([]byte(jwt))
		org := jwt.UnverifiedClaims().OrgID // Atlas has just accepted it
		if org == "" {
			org = "of the JWT " + hex.EncodeToString(hash[:])
		}
		t.accepted.Add(hash, "org "+org)
	case class == atlas.ClassUnauthorized:
		t.accepted.Remove(sha256.Sum256([]byte(jwt)))
	}
}
