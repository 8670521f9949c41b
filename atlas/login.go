package atlas

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
)

// LogIn trades a bot's userauthtoken for a JWT. A refused one is an [*Error] of KindStatus with status 400.
func (c *Client) LogIn(ctx context.Context, secret UserAuthToken) (JWT, error) {
	body := struct {
		UserAuthToken string `json:"userauthtoken"`
	}{string(secret)}
	r := request{op: OpLogIn, method: http.MethodPost, path: "/login/", body: body, repeatable: true}
	return do(ctx, c, r, decodeJWT)
}

// RefreshJWT trades a JWT that has not expired for one with a later exp. Atlas refuses it, as an [*Error] of KindStatus
// with status 400, once the login behind it is older than Atlas's refresh window.
func (c *Client) RefreshJWT(ctx context.Context, jwt JWT) (JWT, error) {
	body := struct {
		Token string `json:"token"`
	}{string(jwt)}
	r := request{op: OpRefresh, method: http.MethodPost, path: "/api-token-refresh/", body: body, repeatable: true}
	return do(ctx, c, r, decodeJWT)
}

var errNotJWT = errors.New("the token is not a JWT")

// decodeJWT returns the JWT of {"token": "…"}.
func decodeJWT(body []byte) (JWT, error) {
	token, err := decodeToken(body)
	if err != nil {
		return "", err
	}
	if !isToken68(string(token)) || strings.Count(string(token), ".") != 2 {
		return "", errNotJWT
	}
	return JWT(token), nil
}

// Claims is what a JWT says of itself. Nobody outside Atlas can verify it, so believe it only for a JWT that Atlas has
// just issued or accepted.
type Claims struct {
	OrgID  string    // UUID
	UserID string    // UUID
	Expiry time.Time // exp; zero: the JWT does not say

	IssuedAt   time.Time // iat; zero: the JWT does not say
	LoggedInAt time.Time // orig_iat, which a refresh leaves as it is; zero: the JWT does not say
}

// UnverifiedClaims reads the payload of a JWT; the zero Claims if there is none to be read.
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
		OrgID  string  `json:"org_id"`
		UserID string  `json:"user_id"`
		Exp    seconds `json:"exp"`
		Iat    seconds `json:"iat"`
		Orig   seconds `json:"orig_iat"`
	}
	if err := json.Unmarshal(payload, &raw); err != nil {
		return Claims{}
	}
	return Claims{
		OrgID: raw.OrgID, UserID: raw.UserID,
		Expiry: raw.Exp.time(), IssuedAt: raw.Iat.time(), LoggedInAt: raw.Orig.time(),
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
