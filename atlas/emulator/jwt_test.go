package emulator

import (
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestJWTRefused checks that only JWTs by HS256 with Atlas's key, strictly encoded and with an end,
// are accepted.
func TestJWTRefused(t *testing.T) {
	key := []byte("of 32 bytes, as Atlas's own is..")
	c := claims{UserID: "bot", RegisteredClaims: jwt.RegisteredClaims{ExpiresAt: jwt.NewNumericDate(time.Unix(1_700_000_000, 0))}}
	good := sign(jwt.SigningMethodHS256, c, key)
	for name, signed := range map[string]string{
		"empty":             "",
		"unsigned":          sign(jwt.SigningMethodNone, c, jwt.UnsafeAllowNoneSignatureType),
		"another key":       sign(jwt.SigningMethodHS256, c, []byte("another")),
		"another algorithm": sign(jwt.SigningMethodHS512, c, key),
		"without an end":    sign(jwt.SigningMethodHS256, claims{}, key),
		"spare bits":        good[:len(good)-1] + string(good[len(good)-1]+1), // of 32 bytes, the last character has two unused bits
	} {
		if _, ok := parse(signed, key); ok {
			t.Errorf("%s: %q is accepted", name, signed)
		}
	}
	if got, ok := parse(good, key); !ok || got.UserID != "bot" || got.ExpiresAt.Unix() != 1_700_000_000 {
		t.Errorf("a good one: %v, %+v", ok, got)
	}
}
