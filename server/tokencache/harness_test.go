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

const (
	orgA = "7d1b7c4e-0000-4000-8000-00000000000a"
	orgB = "7d1b7c4e-0000-4000-8000-00000000000b"
)

// newJWT makes a JWT that says what it is told to; exp may be zero and org empty.
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

// world is an Atlas in a few lines: one token for each org, which a delete replaces.
type world struct {
	mu      sync.Mutex
	deletes map[string]int // guarded by mu; by org
	fail    error          // guarded by mu; what every create ends with
}

func newWorld() *world { return &world{deletes: map[string]int{}} }

func (w *world) token(org string) atlas.Token {
	w.mu.Lock()
	defer w.mu.Unlock()
	return atlas.Token(fmt.Sprintf("token %d of %s", w.deletes[org], org))
}

func (w *world) failing(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

// replace is what a delete does at Atlas.
func (w *world) replace(org string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deletes[org]++
}

// ask answers jwt at once.
func (w *world) ask(jwt atlas.JWT) func(context.Context) (Answer, error) {
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
func (w *world) send(jwt atlas.JWT) func(context.Context) (atlas.JWT, error) {
	return func(context.Context) (atlas.JWT, error) {
		w.replace(jwt.UnverifiedClaims().OrgID)
		return jwt, nil
	}
}

// sendAnd deletes, and ends with err all the same.
func (w *world) sendAnd(jwt atlas.JWT, err error) func(context.Context) (atlas.JWT, error) {
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

// desk is a Cache over a world.
type desk struct {
	*Cache
	t     testing.TB
	world *world
}

func newDesk(t testing.TB, w *world, cfg Config) *desk {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return &desk{c, t, w}
}

func (d *desk) create(jwt atlas.JWT) (Result, error) {
	return d.Create(d.t.Context(), CallersJWT(jwt), false, d.world.ask(jwt))
}

// want creates and compares the answer with the org's present token, and how it was answered.
func (d *desk) want(jwt atlas.JWT, status string) {
	d.t.Helper()
	d.wantToken(jwt, d.world.token(jwt.UnverifiedClaims().OrgID), status)
}

func (d *desk) wantToken(jwt atlas.JWT, token atlas.Token, status string) {
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

func (d *desk) delete(jwt atlas.JWT) {
	d.t.Helper()
	if err := d.Delete(d.t.Context(), CallersJWT(jwt), d.world.send(jwt)); err != nil {
		d.t.Errorf("delete: %v", err)
	}
}

const miss = "tokend; fwd=miss"

func hit(seconds int) string { return fmt.Sprintf("tokend; hit; ttl=%d", seconds) }

const stale = "tokend; hit; detail=stale"

// profile is the credential of an Atlas identity of the service.
func profile(secret atlas.UserAuthToken, jwt atlas.JWT) Credential {
	return Identity("acme", atlas.Credential{JWT: jwt, Profile: "acme", Secret: secret})
}
