package atlas

import (
	"context"
	"errors"
	"net/http"
	"strings"
)

// LogIn trades a bot's userauthtoken for a JWT. A refused one is an [*Error] of KindStatus with
// status 400.
func (c *Client) LogIn(ctx context.Context, secret UserAuthToken) (JWT, error) {
	body := struct {
		UserAuthToken string `json:"userauthtoken"`
	}{string(secret)}
	r := request{op: OpLogIn, method: http.MethodPost, path: pathLogin, body: body, idempotent: true}
	return do(ctx, c, r, decodeJWT)
}

// RefreshJWT trades a JWT that has not expired for one with a later exp. Atlas refuses it, as an
// [*Error] of KindStatus with status 400, once the login behind it is older than Atlas's refresh
// window.
func (c *Client) RefreshJWT(ctx context.Context, jwt JWT) (JWT, error) {
	body := struct {
		Token string `json:"token"`
	}{string(jwt)}
	r := request{op: OpRefresh, method: http.MethodPost, path: pathRefresh, body: body, idempotent: true}
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
