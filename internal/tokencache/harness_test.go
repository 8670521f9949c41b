package tokencache

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

const ms = time.Millisecond

const (
	orgA = "7d1b7c4e-0000-4000-8000-00000000000a"
	orgB = "7d1b7c4e-0000-4000-8000-00000000000b"
)

// newJWT makes a JWT with these claims; exp may be zero and org empty.
func newJWT(org, user string, exp time.Time) atlas.JWT {
	claims := map[string]any{"user_id": user}
	if org != "" {
		claims["org_id"] = org
	}
	if !exp.IsZero() {
		claims["exp"] = exp.Unix()
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return atlas.JWT(b64([]byte(`{"alg":"none"}`)) + "." + b64(payload) + "." + b64([]byte("signature")))
}

// fakeAtlas is an Atlas in a few lines: one token for each org, which a delete replaces.
type fakeAtlas struct {
	mu      sync.Mutex
	deletes map[string]int        // guarded by mu; by org
	fail    error                 // guarded by mu; what every create ends with
	asks    map[atlas.JWT]*hooked // guarded by mu; what the next create with a JWT does instead
	sends   map[atlas.JWT]*hooked // guarded by mu; the same for deletes
}

// hooked is the behaviour of one call to Atlas.
type hooked struct {
	ask  func(context.Context) (Answer, error)
	send func(context.Context) (atlas.JWT, error)
}

// Answer is an answer of Atlas, and the JWT of its call.
type Answer struct {
	Token atlas.Token
	JWT   atlas.JWT
}

func newFakeAtlas() *fakeAtlas {
	return &fakeAtlas{deletes: map[string]int{}, asks: map[atlas.JWT]*hooked{}, sends: map[atlas.JWT]*hooked{}}
}

func (w *fakeAtlas) token(org string) atlas.Token {
	w.mu.Lock()
	defer w.mu.Unlock()
	return atlas.Token(fmt.Sprintf("token %d of %s", w.deletes[org], org))
}

func (w *fakeAtlas) failing(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

// replace does what a delete does at Atlas.
func (w *fakeAtlas) replace(org string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deletes[org]++
}

// hook sets what the next call with jwt does. As for a shared call, the first hook counts; unhook
// removes one that was not used.
func (w *fakeAtlas) hook(of map[atlas.JWT]*hooked, jwt atlas.JWT, h *hooked) (unhook func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if of[jwt] == nil {
		of[jwt] = h
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if of[jwt] == h {
			delete(of, jwt)
		}
	}
}

func (w *fakeAtlas) take(of map[atlas.JWT]*hooked, jwt atlas.JWT) *hooked {
	w.mu.Lock()
	defer w.mu.Unlock()
	h := of[jwt]
	delete(of, jwt)
	return h
}

func (w *fakeAtlas) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	ask := w.ask(jwt)
	if h := w.take(w.asks, jwt); h != nil {
		ask = h.ask
	}
	answer, err := ask(ctx)
	return answer.Token, err
}

func (w *fakeAtlas) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	send := w.send(jwt)
	if h := w.take(w.sends, jwt); h != nil {
		send = h.send
	}
	_, err := send(ctx)
	return err
}

// ask answers jwt at once.
func (w *fakeAtlas) ask(jwt atlas.JWT) func(context.Context) (Answer, error) {
	return func(ctx context.Context) (Answer, error) {
		w.mu.Lock()
		fail := w.fail
		w.mu.Unlock()
		if fail == nil && ctx.Err() != nil {
			fail = &atlas.Error{Op: atlas.OpCreate, Kind: atlas.KindCanceled, Err: ctx.Err()}
		}
		if fail != nil {
			return Answer{JWT: jwt}, fail
		}
		return Answer{Token: w.token(jwt.UnverifiedClaims().OrgID), JWT: jwt}, nil
	}
}

// send deletes at once.
func (w *fakeAtlas) send(jwt atlas.JWT) func(context.Context) (atlas.JWT, error) {
	return w.sendAnd(jwt, nil)
}

// sendAnd deletes the token and returns err.
func (w *fakeAtlas) sendAnd(jwt atlas.JWT, err error) func(context.Context) (atlas.JWT, error) {
	return func(context.Context) (atlas.JWT, error) {
		w.replace(jwt.UnverifiedClaims().OrgID)
		return jwt, err
	}
}

func statusError(op atlas.Operation, code int) error {
	return &atlas.Error{Op: op, Kind: atlas.KindStatus, StatusCode: code, Sent: true, Err: errors.New(http.StatusText(code))}
}

func kindError(op atlas.Operation, kind atlas.Kind) error {
	return &atlas.Error{Op: op, Kind: kind, Sent: true, Err: errors.New("an error of the test's")}
}

// testCache is a Cache over a fake Atlas.
type testCache struct {
	*Cache
	t     testing.TB
	world *fakeAtlas
}

func newTestCache(t testing.TB, w *fakeAtlas, cfg Config) *testCache {
	t.Helper()
	c, err := New(w, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &testCache{c, t, w}
}

func (d *testCache) create(jwt atlas.JWT) (Result, error) {
	return d.Cache.Create(d.t.Context(), own(jwt), false)
}

// Create creates; unless the test has set a hook, Atlas answers by ask.
func (d *testCache) Create(ctx context.Context, cred atlas.Credential, fresh bool, ask func(context.Context) (Answer, error)) (Result, error) {
	defer d.world.hook(d.world.asks, cred.JWT, &hooked{ask: ask})()
	return d.Cache.Create(ctx, cred, fresh)
}

// Delete deletes, by send.
func (d *testCache) Delete(ctx context.Context, cred atlas.Credential, send func(context.Context) (atlas.JWT, error)) error {
	defer d.world.hook(d.world.sends, cred.JWT, &hooked{send: send})()
	_, err := d.Cache.Delete(ctx, cred)
	return err
}

// want creates, and compares the token with the org's current one, and the status.
func (d *testCache) want(jwt atlas.JWT, status string) {
	d.t.Helper()
	d.wantToken(jwt, d.world.token(jwt.UnverifiedClaims().OrgID), status)
}

func (d *testCache) wantToken(jwt atlas.JWT, token atlas.Token, status string) {
	d.t.Helper()
	result, err := d.create(jwt)
	if err != nil {
		d.t.Errorf("create: %v", err)
	}
	got := [2]string{string(result.Token), result.Status.String()}
	if diff := cmp.Diff([2]string{string(token), status}, got); diff != "" {
		d.t.Errorf("create (-want +got):\n%s", diff)
	}
}

func (d *testCache) delete(jwt atlas.JWT) {
	d.t.Helper()
	if err := d.Delete(d.t.Context(), own(jwt), d.world.send(jwt)); err != nil {
		d.t.Errorf("delete: %v", err)
	}
}

const miss = "tokend; fwd=miss"

func hit(seconds int) string { return fmt.Sprintf("tokend; hit; ttl=%d", seconds) }

const stale = "tokend; hit; detail=stale"

// own is a caller's own credential, and profile that of an Atlas identity of the service.
func own(jwt atlas.JWT) atlas.Credential { return atlas.Credential{JWT: jwt} }

func profile(secret atlas.UserAuthToken, jwt atlas.JWT) atlas.Credential {
	return atlas.Credential{JWT: jwt, Profile: "acme", Secret: secret}
}

// accept notes that Atlas has accepted the JWTs.
func (d *testCache) accept(jwts ...atlas.JWT) {
	for _, jwt := range jwts {
		d.caching.next.accepted.add(d.key(own(jwt)), struct{}{})
	}
}
