package emulator

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"
)

// JWT says how a minted JWT differs from a good one. The zero value is a good one.
type JWT struct {
	Lifetime time.Duration // until exp; negative: expired; 0: Config.JWTLifetime
	Age      time.Duration // since the login (orig_iat)
	Forged   bool          // signed with a key that is not Atlas's
	Unsigned bool          // with the algorithm "none"
}

// claims is a JWT's payload.
type claims struct {
	UserID  string `json:"user_id"`
	OrgID   string `json:"org_id"`
	OrigIat int64  `json:"orig_iat"`
	Expires int64  `json:"exp"`
	ID      string `json:"jti"`
}

// JWT mints a good JWT of the org's bot, as if it had just logged in.
func (o *Org) JWT() string { return o.MintJWT(JWT{}) }

// MintJWT mints a JWT of the org's bot, as spec says.
func (o *Org) MintJWT(spec JWT) string {
	c := o.claims(o.atlas.now().Add(-spec.Age).Unix(), cmp.Or(spec.Lifetime, o.atlas.lifetime))
	switch {
	case spec.Unsigned:
		return c.encode("none") + "."
	case spec.Forged:
		return c.sign(randomBytes(32))
	}
	return c.sign(o.atlas.key)
}

// issue is a new JWT of the org's bot that starts its life now. loginTime is when the bot logged in.
func (o *Org) issue(loginTime int64) string {
	return o.claims(loginTime, o.atlas.lifetime).sign(o.atlas.key)
}

// claims are those of the org's bot, with the next serial number.
func (o *Org) claims(loginTime int64, lifetime time.Duration) claims {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	o.atlas.lastJWT++
	return claims{
		UserID: o.userID, OrgID: o.ID, OrigIat: loginTime,
		Expires: o.atlas.now().Add(lifetime).Unix(), ID: strconv.Itoa(o.atlas.lastJWT),
	}
}

// base64URL is that of RFC 7515, without padding. Strict: else the last character of a signature has spare bits.
var base64URL = base64.RawURLEncoding.Strict()

// encode is what is signed of a JWT (RFC 7515, section 5.1).
func (c claims) encode(alg string) string {
	payload, err := json.Marshal(c)
	if err != nil {
		panic("emulator: encode a JWT: " + err.Error()) // not with these fields
	}
	header := `{"alg":"` + alg + `","typ":"JWT"}`
	return base64URL.EncodeToString([]byte(header)) + "." + base64URL.EncodeToString(payload)
}

// sign is the JWT by HS256. The binary has the emulator in it, and for this alone no JWT library.
func (c claims) sign(key []byte) string {
	input := c.encode("HS256")
	return input + "." + base64URL.EncodeToString(hs256(key, input))
}

func hs256(key []byte, input string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(input))
	return mac.Sum(nil)
}

// parse returns the claims of a JWT that is signed by HS256 with key.
func parse(signed string, key []byte) (claims, bool) {
	parts := strings.Split(signed, ".")
	if len(parts) != 3 {
		return claims{}, false
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	var c claims
	signature, err := base64URL.DecodeString(parts[2])
	ok := err == nil && hmac.Equal(signature, hs256(key, parts[0]+"."+parts[1])) &&
		decode(parts[0], &header) && header.Algorithm == "HS256" && decode(parts[1], &c)
	return c, ok
}

// decode reads a part of a JWT.
func decode(part string, into any) bool {
	data, err := base64URL.DecodeString(part)
	return err == nil && json.Unmarshal(data, into) == nil
}

// Why a JWT is refused, in the words of Django REST framework JWT.
var (
	errExpired     = errors.New("Signature has expired.")    //nolint:staticcheck // sent as it is
	errUndecodable = errors.New("Error decoding signature.") //nolint:staticcheck // sent as it is
	errRevoked     = errors.New("User account is disabled.") //nolint:staticcheck // sent as it is
)

// verify returns the claims and the org of a JWT that Atlas accepts now.
func (a *atlas) verify(signed string) (claims, *Org, error) {
	c, ok := parse(signed, a.key)
	switch {
	case !ok:
		return claims{}, nil, errUndecodable
	case !a.now().Before(time.Unix(c.Expires, 0)):
		return claims{}, nil, errExpired
	}
	serial, _ := strconv.Atoi(c.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.orgs {
		if o.ID == c.OrgID && !a.revoked[serial] && serial > o.revokedUpTo {
			return c, o, nil
		}
	}
	return claims{}, nil, errRevoked
}

// refreshable reports whether the login is recent enough for another JWT.
func (a *atlas) refreshable(c claims) bool {
	return !a.now().After(time.Unix(c.OrigIat, 0).Add(a.refreshWindow))
}

// Revoke makes Atlas refuse this JWT from now on. One that Atlas would refuse anyway stays refused.
func (em *Emulator) Revoke(signed string) { em.atlas.revoke(signed) }

func (a *atlas) revoke(signed string) {
	c, _, err := a.verify(signed)
	if err != nil {
		return
	}
	serial, _ := strconv.Atoi(c.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked[serial] = true
}

// RevokeJWTs makes Atlas refuse every JWT of the org that exists now.
func (o *Org) RevokeJWTs() {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	o.revokedUpTo = o.atlas.lastJWT
}
