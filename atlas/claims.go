package atlas

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// Claims are claims of a JWT. Only Atlas can verify them, so trust them only if Atlas has just
// issued or accepted the JWT.
type Claims struct {
	OrgID  string    // UUID
	Expiry time.Time // exp; zero if absent

	issuedAt   time.Time // iat; zero if absent
	loggedInAt time.Time // orig_iat, which a refresh does not change; zero if absent
}

// UnverifiedClaims parses the payload of a JWT. The Claims are zero if it cannot be parsed.
func (j JWT) UnverifiedClaims() Claims {
	parts := strings.Split(string(j), ".")
	if len(parts) != 3 {
		return Claims{}
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Claims{}
	}
	var raw struct {
		OrgID string  `json:"org_id"`
		Exp   seconds `json:"exp"`
		Iat   seconds `json:"iat"`
		Orig  seconds `json:"orig_iat"`
	}
	if err := json.Unmarshal(payload, &raw); err != nil {
		return Claims{}
	}
	return Claims{
		OrgID:  strings.ToLower(raw.OrgID), // one org, however it is spelled
		Expiry: raw.Exp.time(), issuedAt: raw.Iat.time(), loggedInAt: raw.Orig.time(),
	}
}

// seconds is a NumericDate, of which fractions are allowed (RFC 7519 section 2).
type seconds float64

func (s seconds) time() time.Time {
	if s <= 0 || s >= 1<<40 { // far beyond any date, and far within an int64
		return time.Time{}
	}
	return time.Unix(int64(s), 0)
}
