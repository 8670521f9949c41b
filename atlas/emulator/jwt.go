package emulator

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v5"
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
	jwt.RegisteredClaims
}

// JWT mints a good JWT of the org's bot, as if it had just logged in.
func (o *Org) JWT() string { return o.MintJWT(JWT{}) }

// MintJWT mints a JWT of the org's bot, as spec says.
func (o *Org) MintJWT(spec JWT) string {
	c := o.claims(o.atlas.Now().Add(-spec.Age).Unix(), cmp.Or(spec.Lifetime, o.atlas.JWTLifetime))
	if spec.Unsigned {
		return sign(jwt.SigningMethodNone, c, jwt.UnsafeAllowNoneSignatureType)
	}
	key := o.atlas.key
	if spec.Forged {
		key = randomBytes(32)
	}
	return sign(jwt.SigningMethodHS256, c, key)
}

// issue is a new JWT of the org's bot that starts its life now. loginTime is when the bot logged
// in.
func (o *Org) issue(loginTime int64) string {
	return sign(jwt.SigningMethodHS256, o.claims(loginTime, o.atlas.JWTLifetime), o.atlas.key)
}

// claims are those of the org's bot, with the next serial number.
func (o *Org) claims(loginTime int64, lifetime time.Duration) claims {
	o.atlas.mu.Lock()
	defer o.atlas.mu.Unlock()
	o.atlas.lastJWT++
	return claims{
		UserID: o.userID, OrgID: o.ID, OrigIat: loginTime,
		RegisteredClaims: jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(o.atlas.Now().Add(lifetime)), ID: strconv.Itoa(o.atlas.lastJWT)},
	}
}

// sign returns the JWT with these claims.
func sign(method jwt.SigningMethod, c claims, key any) string {
	signed, err := jwt.NewWithClaims(method, c).SignedString(key)
	if err != nil {
		panic("emulator: sign a JWT: " + err.Error()) // not with these claims and keys
	}
	return signed
}

// parser does not check the time; verify does. Strict decoding refuses spare bits in the last
// character of a signature.
var parser = jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())

// Why a JWT is refused, in the words of Django REST framework JWT.
var (
	errExpired     = errors.New("Signature has expired.")    //nolint:staticcheck // Atlas says so
	errUndecodable = errors.New("Error decoding signature.") //nolint:staticcheck // Atlas says so
	errRevoked     = errors.New("User account is disabled.") //nolint:staticcheck // Atlas says so
)

// verify returns the claims and the org of a JWT that Atlas accepts now.
func (a *atlas) verify(signed string) (claims, *Org, error) {
	var c claims
	_, err := parser.ParseWithClaims(signed, &c, func(*jwt.Token) (any, error) { return a.key, nil })
	switch {
	case err != nil || c.ExpiresAt == nil:
		return claims{}, nil, errUndecodable
	case !a.Now().Before(c.ExpiresAt.Time):
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

// Revoke makes Atlas refuse this JWT from now on. One that Atlas would refuse anyway stays refused.
func (em *Emulator) Revoke(signed string) {
	c, _, err := em.atlas.verify(signed)
	if err != nil {
		return
	}
	serial, _ := strconv.Atoi(c.ID)
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
