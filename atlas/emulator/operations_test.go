package emulator_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// clock is a clock that the test moves.
type clock struct{ seconds atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.seconds.Store(1_700_000_000)
	return c
}

func (c *clock) Now() time.Time          { return time.Unix(c.seconds.Load(), 0) }
func (c *clock) advance(d time.Duration) { c.seconds.Add(int64(d / time.Second)) }

// payload is a JWT's payload, unverified.
type payload struct {
	UserID  string `json:"user_id"`
	OrgID   string `json:"org_id"`
	Exp     int64  `json:"exp"`
	OrigIat int64  `json:"orig_iat"`
}

func decode(t *testing.T, jwt string) payload {
	t.Helper()
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		t.Fatalf("not a JWT: %q", jwt)
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var p payload
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLogin(t *testing.T) {
	now := newClock()
	em := start(t, emulator.Config{Now: now.Now, JWTLifetime: time.Minute})
	org := em.Org(1)
	response, body := post("/login/", `{"userauthtoken": "`+org.UserAuthToken()+`"}`).do(t, em)
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %v", response.Status, response.Header)
	}
	var got struct {
		Token string
		User  struct {
			ID  string
			Org struct{ ID string }
		}
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if got.User.Org.ID != org.ID {
		t.Errorf("user is %+v", got.User)
	}
	issued := now.Now().Unix()
	want := payload{UserID: got.User.ID, OrgID: org.ID, Exp: issued + 60, OrigIat: issued}
	if diff := cmp.Diff(want, decode(t, got.Token)); diff != "" {
		t.Error(diff)
	}
	createWith(got.Token).field(t, em, http.StatusCreated, "token")
	old := org.UserAuthToken()
	org.RotateUserAuthToken()
	if response, _ := post("/login/", `{"userauthtoken": "`+old+`"}`).do(t, em); response.StatusCode != http.StatusBadRequest {
		t.Errorf("a replaced secret: %s", response.Status)
	}
	post("/login/", `{"userauthtoken": "`+org.UserAuthToken()+`"}`).field(t, em, http.StatusOK, "token")
}

func TestRefresh(t *testing.T) {
	now := newClock()
	em := start(t, emulator.Config{Now: now.Now, JWTLifetime: time.Minute, RefreshWindow: 90 * time.Second})
	refresh := func(jwt string) call { return post("/api-token-refresh/", `{"token": "`+jwt+`"}`) }
	jwt := em.Org(0).JWT()
	loggedIn := decode(t, jwt)

	now.advance(50 * time.Second)
	jwt = refresh(jwt).field(t, em, http.StatusOK, "token")
	want := loggedIn
	want.Exp += 50
	if diff := cmp.Diff(want, decode(t, jwt)); diff != "" {
		t.Error(diff)
	}
	now.advance(40 * time.Second) // the last second of the window
	jwt = refresh(jwt).field(t, em, http.StatusOK, "token")
	now.advance(time.Second)
	response, body := refresh(jwt).do(t, em)
	if diff := cmp.Diff(result{400, `{"non_field_errors":["Refresh has expired."]}`}, result{response.StatusCode, body}); diff != "" {
		t.Error(diff)
	}
	createWith(jwt).field(t, em, http.StatusCreated, "token") // the JWT itself is alive
}

func TestEphemeralToken(t *testing.T) {
	em := start(t, emulator.Config{})
	org, other := em.Org(0), em.Org(1)
	if token := org.EphemeralToken(); token != "" {
		t.Errorf("token before any create: %q", token)
	}
	first := createWith(org.JWT()).field(t, em, http.StatusCreated, "token")
	again := createWith(org.JWT()).field(t, em, http.StatusCreated, "token")
	foreign := createWith(other.JWT()).field(t, em, http.StatusCreated, "token")
	if again != first || foreign == first || org.EphemeralToken() != first {
		t.Errorf("tokens %q, %q, of another org %q, current %q", first, again, foreign, org.EphemeralToken())
	}
	between := em.Tick()
	for range 2 { // the second finds none
		response, body := deleteWith(org.JWT()).do(t, em)
		if response.StatusCode != http.StatusNoContent || body != "" || response.Header.Get("Content-Type") != "" {
			t.Errorf("delete: %s %v %q", response.Status, response.Header, body)
		}
	}
	if org.EphemeralToken() != "" || other.EphemeralToken() != foreign {
		t.Errorf("after the delete: %q, of another org %q", org.EphemeralToken(), other.EphemeralToken())
	}
	second := createWith(org.JWT()).field(t, em, http.StatusCreated, "token")
	if second == first {
		t.Error("the deleted token came back")
	}
	want := []emulator.Token{
		{OrgID: org.ID, Value: first, Minted: 1, Deleted: 4},
		{OrgID: other.ID, Value: foreign, Minted: 2},
		{OrgID: org.ID, Value: second, Minted: 5},
	}
	if diff := cmp.Diff(want, em.Tokens()); diff != "" {
		t.Error(diff)
	}
	if len(em.Tokens()) != 3 || between != 3 {
		t.Errorf("minted %d, tick %d", len(em.Tokens()), between)
	}
}

func TestUnauthorized(t *testing.T) {
	em := start(t, emulator.Config{})
	good := em.Org(0).JWT()
	revoked := em.Org(0).JWT()
	for _, jwt := range []string{revoked, "not a JWT"} {
		em.Revoke(jwt)
	}
	flipped := []byte(good)
	flipped[len(flipped)-1] ^= 1 // base64's spare bits at least
	mint := em.Org(0).MintJWT
	for name, test := range map[string]struct{ authorization, detail string }{
		"none":            {"", "Authentication credentials were not provided."},
		"bearer":          {"Bearer " + good, "Authentication credentials were not provided."},
		"scheme only":     {"JWT", "Authentication credentials were not provided."},
		"three words":     {"JWT " + good + " x", "Authentication credentials were not provided."},
		"garbage":         {"JWT x.y.z", "Error decoding signature."},
		"altered":         {"JWT " + string(flipped), "Error decoding signature."},
		"forged":          {"JWT " + mint(emulator.JWT{Forged: true}), "Error decoding signature."},
		"forged, expired": {"JWT " + mint(emulator.JWT{Forged: true, Lifetime: -time.Hour}), "Error decoding signature."},
		"unsigned":        {"JWT " + mint(emulator.JWT{Unsigned: true}), "Error decoding signature."},
		"expired":         {"JWT " + mint(emulator.JWT{Lifetime: -time.Second}), "Signature has expired."},
		"revoked":         {"JWT " + revoked, "User account is disabled."},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []call{createWith(""), deleteWith("")} {
				c.authorization = test.authorization
				response, body := c.do(t, em)
				want := result{401, `{"detail":"` + test.detail + `"}`}
				if diff := cmp.Diff(want, result{response.StatusCode, body}); diff != "" {
					t.Error(diff)
				}
				if got := response.Header.Get("WWW-Authenticate"); got != `JWT realm="api"` {
					t.Errorf("WWW-Authenticate is %q", got)
				}
			}
		})
	}
	if len(em.Tokens()) != 0 {
		t.Errorf("minted %d tokens", len(em.Tokens()))
	}
	createWith(good).field(t, em, http.StatusCreated, "token") // it was good all the time
}

func TestRevokeAllJWTsOfOrg(t *testing.T) {
	now := newClock() // stands still, and the JWTs still differ
	em := start(t, emulator.Config{Now: now.Now})
	old, foreign := em.Org(0).JWT(), em.Org(1).JWT()
	em.Org(0).RevokeJWTs()
	fresh := em.Org(0).JWT()
	for jwt, want := range map[string]int{old: 401, foreign: 201, fresh: 201} {
		if response, body := createWith(jwt).do(t, em); response.StatusCode != want {
			t.Errorf("status %d, want %d: %s", response.StatusCode, want, body)
		}
	}
}

func TestBadRequests(t *testing.T) {
	em := start(t, emulator.Config{})
	expired := em.Org(0).MintJWT(emulator.JWT{Lifetime: -time.Second})
	forged := em.Org(0).MintJWT(emulator.JWT{Forged: true})
	const parse = `{"detail":"JSON parse error"}`
	for name, test := range map[string]struct {
		call   call
		want   result
		header string // Allow and Location
	}{
		"login, wrong":           {post("/login/", `{"userauthtoken": "wrong"}`), result{400, `{"non_field_errors":["Unable to log in with provided credentials."]}`}, ""},
		"login, missing":         {post("/login/", `{}`), result{400, `{"userauthtoken":["This field is required."]}`}, ""},
		"login, no body":         {post("/login/", ``), result{400, `{"userauthtoken":["This field is required."]}`}, ""},
		"login, null":            {post("/login/", `{"userauthtoken": null}`), result{400, `{"userauthtoken":["This field is required."]}`}, ""},
		"login, blank":           {post("/login/", `{"userauthtoken": ""}`), result{400, `{"userauthtoken":["This field is required."]}`}, ""},
		"login, not text":        {post("/login/", `{"userauthtoken": {}}`), result{400, `{"userauthtoken":["This field is required."]}`}, ""},
		"login, not JSON":        {post("/login/", `{"userauthtoken": `), result{400, parse}, ""},
		"login, list":            {post("/login/", `[]`), result{400, parse}, ""},
		"login, JSON null":       {post("/login/", `null`), result{400, `{"userauthtoken":["This field is required."]}`}, ""},
		"login, form":            {call{method: "POST", path: "/login/", contentType: "text/plain", body: "x"}, result{415, `{"detail":"Unsupported media type \"text/plain\" in request."}`}, ""},
		"refresh, missing":       {post("/api-token-refresh/", `{}`), result{400, `{"token":["This field is required."]}`}, ""},
		"refresh, garbage":       {post("/api-token-refresh/", `{"token": "x"}`), result{400, `{"non_field_errors":["Error decoding signature."]}`}, ""},
		"refresh, expired":       {post("/api-token-refresh/", `{"token": "`+expired+`"}`), result{400, `{"non_field_errors":["Signature has expired."]}`}, ""},
		"refresh, forged":        {post("/api-token-refresh/", `{"token": "`+forged+`"}`), result{400, `{"non_field_errors":["Error decoding signature."]}`}, ""},
		"refresh, not JSON":      {post("/api-token-refresh/", `x`), result{400, parse}, ""},
		"unknown path":           {post("/nothing", ``), result{404, `{"detail":"Not found."}`}, ""},
		"base path":              {post("", ``), result{404, `{"detail":"Not found."}`}, ""},
		"two slashes":            {post("//ephemeral-token", ``), result{404, `{"detail":"Not found."}`}, ""},
		"wrong method, token":    {call{method: "GET", path: "/ephemeral-token"}, result{405, `{"detail":"Method \"GET\" not allowed."}`}, "POST, DELETE"},
		"wrong method, login":    {call{method: "PUT", path: "/login/"}, result{405, `{"detail":"Method \"PUT\" not allowed."}`}, "POST"},
		"slash, missing":         {post("/login", ``), result{301, ``}, "/v1/login/"},
		"slash, missing, delete": {call{method: "DELETE", path: "/ephemeral-token/"}, result{301, ``}, "/v1/ephemeral-token"},
	} {
		t.Run(name, func(t *testing.T) {
			response, body := test.call.do(t, em)
			if diff := cmp.Diff(test.want, result{response.StatusCode, body}); diff != "" {
				t.Error(diff)
			}
			if got := response.Header.Get("Allow") + response.Header.Get("Location"); got != test.header {
				t.Errorf("the header is %q, want %q", got, test.header)
			}
		})
	}
}

// TestDate checks that answers are dated by the emulator's clock.
func TestDate(t *testing.T) {
	t.Parallel()
	c := newClock()
	em := start(t, emulator.Config{Now: c.Now})
	resp, _ := get("/ephemeral-token").do(t, em)
	if got, want := resp.Header.Get("Date"), c.Now().UTC().Format(http.TimeFormat); got != want {
		t.Errorf("Date: %s, want %s", got, want)
	}
}
