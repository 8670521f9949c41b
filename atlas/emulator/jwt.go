package emulator

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// JWT says how a minted JWT differs from a good one. The zero value is a good
// one.
type JWT struct {
	Lifetime  time.Duration // until exp; negative: expired; 0: Config.JWTLifetime
	Age       time.Duration // since the login (orig_iat)
	Forged    bool          // signed with a key that is not Atlas's
	Algorithm string        // "HS256" (default), "HS384", "HS512" or "none"
	OrgID     string        // default: the org's
	UserID    string        // default: the org's bot's
}

// claims is a JWT's payload.
type claims struct {
	UserID               string `json:"user_id"`
	OrgID                string `json:"org_id"`
	OrigIat              int64  `json:"orig_iat"`
	jwt.RegisteredClaims        // exp and jti
}

// JWT mints a good JWT of the org's bot, as if it had just logged in.
func (o *Org) JWT() string { return o.MintJWT(JWT{}) }

// MintJWT mints a JWT of the org's bot, as spec says. It panics if the
// algorithm is not one of those that JWT lists.
func (o *Org) MintJWT(spec JWT) string {
	if err := spec.validate(); err != nil {
		panic("emulator: " + err.Error())
	}
	now := o.atlas.now()
	c := claims{
		OrgID:   cmp.Or(spec.OrgID, o.ID),
		UserID:  cmp.Or(spec.UserID, o.UserID),
		OrigIat: now.Add(-spec.Age).Unix(),
	}
	c.ExpiresAt = jwt.NewNumericDate(now.Add(cmp.Or(spec.Lifetime, o.atlas.lifetime)))
	method := algorithms[spec.Algorithm]
	switch {
	case method == jwt.SigningMethodNone:
		return o.atlas.sign(c, method, jwt.UnsafeAllowNoneSignatureType)
	case spec.Forged:
		return o.atlas.sign(c, method, randomBytes(32))
	}
	return o.atlas.sign(c, method, o.atlas.key)
}

var algorithms = map[string]jwt.SigningMethod{
	"":      jwt.SigningMethodHS256,
	"HS256": jwt.SigningMethodHS256,
	"HS384": jwt.SigningMethodHS384,
	"HS512": jwt.SigningMethodHS512,
	"none":  jwt.SigningMethodNone,
}

func (spec JWT) validate() error {
	if algorithms[spec.Algorithm] == nil {
		return fmt.Errorf("unknown JWT algorithm %q", spec.Algorithm)
	}
	return nil
}

// issue is a new JWT for u that starts its life now. loginTime is when u
// logged in.
func (a *atlas) issue(u user, loginTime int64) string {
	c := claims{UserID: u.id, OrgID: u.org.ID, OrigIat: loginTime}
	c.ExpiresAt = jwt.NewNumericDate(a.now().Add(a.lifetime))
	return a.sign(c, jwt.SigningMethodHS256, a.key)
}

// sign gives c the next serial number and signs it.
func (a *atlas) sign(c claims, method jwt.SigningMethod, key any) string {
	a.mu.Lock()
	a.lastJWT++
	c.ID = strconv.Itoa(a.lastJWT)
	a.mu.Unlock()
	signed, err := jwt.NewWithClaims(method, c).SignedString(key)
	if err != nil {
		panic("emulator: sign a JWT: " + err.Error()) // not with these methods and keys
	}
	return signed
}

// Why a JWT is refused, in the words of Django REST framework JWT.
var (
	errExpired     = errors.New("Signature has expired.")    //nolint:staticcheck // sent as it is
	errUndecodable = errors.New("Error decoding signature.") //nolint:staticcheck // sent as it is
	errUnknownUser = errors.New("Invalid signature.")        //nolint:staticcheck // sent as it is
	errRevoked     = errors.New("User account is disabled.") //nolint:staticcheck // sent as it is
)

// verify returns the claims and the user of a JWT that Atlas accepts now.
func (a *atlas) verify(signed string) (claims, user, error) {
	var c claims
	_, err := jwt.ParseWithClaims(signed, &c,
		func(*jwt.Token) (any, error) { return a.key, nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithTimeFunc(a.now),
		jwt.WithStrictDecoding()) // else the last character of a signature has spare bits
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return claims{}, user{}, errExpired
	case err != nil:
		return claims{}, user{}, errUndecodable
	}
	serial, _ := strconv.Atoi(c.ID)
	a.mu.Lock()
	defer a.mu.Unlock()
	u, known := a.users[c.UserID]
	switch {
	case !known || u.org.ID != c.OrgID:
		return claims{}, user{}, errUnknownUser
	case a.revoked[serial] || serial <= u.org.revokedUpTo:
		return claims{}, user{}, errRevoked
	}
	return c, u, nil
}

// refreshable reports whether the login is recent enough for another JWT.
func (a *atlas) refreshable(c claims) bool {
	return !a.now().After(time.Unix(c.OrigIat, 0).Add(a.refreshWindow))
}

// Revoke makes Atlas refuse this JWT from now on. One that Atlas would refuse
// anyway stays refused.
func (em *Emulator) Revoke(signed string) {
	var c claims
	if _, _, err := jwt.NewParser().ParseUnverified(signed, &c); err != nil {
		return
	}
	serial, err := strconv.Atoi(c.ID)
	if err != nil {
		return
	}
	em.atlas.mu.Lock()
	defer em.atlas.mu.Unlock()
	em.atlas.revoked[serial] = true
}

// RevokeJWTs makes Atlas refuse every JWT of the org that exists now.
func (o *Org) RevokeJWTs() {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	o.revokedUpTo = o.atlas.lastJWT
}
