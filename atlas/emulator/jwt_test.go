package emulator

import (
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestJWT: another implementation takes what is signed here and reads the same in it, and its JWTs are taken here.
func TestJWT(t *testing.T) {
	key := []byte("of 32 bytes, as Atlas's own is..")
	c := claims{UserID: "bot", OrgID: "org", OrigIat: 1_700_000_000, Expires: time.Now().Add(time.Hour).Unix(), ID: "7"}
	var got jwt.MapClaims
	token, err := jwt.ParseWithClaims(c.sign(key), &got, func(*jwt.Token) (any, error) { return key, nil }, jwt.WithValidMethods([]string{"HS256"}))
	if err != nil || token.Header["typ"] != "JWT" {
		t.Fatal(err, token)
	}
	if got["user_id"] != "bot" || got["org_id"] != "org" || got["orig_iat"] != 1.7e9 || got["exp"] != float64(c.Expires) || got["jti"] != "7" {
		t.Errorf("claims: %v", got)
	}
	signed, err := jwt.NewWithClaims(jwt.SigningMethodHS256, got).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	if back, ok := parse(signed, key); !ok || back != c {
		t.Errorf("parsed %v, %+v, want %+v", ok, back, c)
	}
}

// TestJWTRefused: what is not a JWT by HS256 with the key is refused, whatever it claims.
func TestJWTRefused(t *testing.T) {
	key := []byte("of 32 bytes, as Atlas's own is..")
	good := claims{UserID: "bot", Expires: 1_700_000_000}.sign(key)
	hs512, err := jwt.NewWithClaims(jwt.SigningMethodHS512, jwt.MapClaims{}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	header, rest, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	last := good[len(good)-1]
	resign := func(header, payload string) string {
		input := header + "." + payload
		return input + "." + base64URL.EncodeToString(hs256(key, input))
	}
	for name, signed := range map[string]string{
		"empty":               "",
		"unsigned":            claims{}.encode("none") + ".",
		"without a signature": header + "." + payload + ".",
		"two parts":           header + "." + payload,
		"four parts":          good + "." + signature,
		"another key":         claims{}.sign([]byte("another")),
		"another payload":     header + "." + base64URL.EncodeToString([]byte(`{"user_id":"root"}`)) + "." + signature,
		"another algorithm":   hs512,
		"a lie of another":    resign(base64URL.EncodeToString([]byte(`{"alg":"HS512"}`)), payload),
		"not JSON":            resign(header, base64URL.EncodeToString([]byte("{"))),
		"a text for a time":   resign(header, base64URL.EncodeToString([]byte(`{"exp":"soon"}`))),
		"spare bits":          good[:len(good)-1] + string(last+1), // of 32 bytes, the last character has two that count for nothing
	} {
		if _, ok := parse(signed, key); ok {
			t.Errorf("%s: %q is taken", name, signed)
		}
	}
	if _, ok := parse(good, key); !ok {
		t.Error("a good one is refused")
	}
}
