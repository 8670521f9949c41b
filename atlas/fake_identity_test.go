package atlas

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// fakeIdentity is an Atlas that logs in and refreshes as its fields say.
type fakeIdentity struct {
	mu                sync.Mutex
	logins, refreshes int             // guarded by mu
	life              time.Duration   // guarded by mu; of the JWTs
	expiry            time.Time       // guarded by mu; of the JWTs, in place of life
	skew              time.Duration   // guarded by mu; of its clock against ours
	latency           time.Duration   // guarded by mu
	loginErr          error           // guarded by mu
	refreshErr        error           // guarded by mu
	wrong             []UserAuthToken // guarded by mu; refused whatever loginErr is
	claims            fakeClaims      // guarded by mu; those that its JWTs have beside exp
	org               string          // guarded by mu
	loggedIn          int64           // guarded by mu; when, by its clock
}

type fakeClaims struct{ iat, origIat bool }

func (f *fakeIdentity) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeIdentity) counts() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("%d logins, %d refreshes", f.logins, f.refreshes)
}

func (f *fakeIdentity) issue(ctx context.Context, count *int, fail *error) (JWT, error) {
	f.mu.Lock()
	*count++
	latency, err := f.latency, *fail
	n := f.logins*1000 + f.refreshes
	now := time.Now().Add(f.skew)
	if count == &f.logins {
		f.loggedIn = now.Unix()
	}
	expiry := f.expiry
	if expiry.IsZero() {
		expiry = now.Add(f.life)
	}
	payload := fmt.Sprintf(`"exp":%d,"n":%d,"org_id":%q`, expiry.Unix(), n, f.org)
	if f.claims.iat {
		payload += fmt.Sprintf(`,"iat":%d`, now.Unix())
	}
	if f.claims.origIat {
		payload += fmt.Sprintf(`,"orig_iat":%d`, f.loggedIn)
	}
	f.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return "", &Error{Op: OpLogIn, Kind: KindCanceled, Err: ctx.Err()}
	}
	if err != nil {
		return "", err
	}
	return JWT("e30." + base64.RawURLEncoding.EncodeToString([]byte("{"+payload+"}")) + ".c2ln"), nil
}

func (f *fakeIdentity) LogIn(ctx context.Context, secret UserAuthToken) (JWT, error) {
	f.mu.Lock()
	fail := &f.loginErr
	if slices.Contains(f.wrong, secret) {
		err := refusal()
		fail = &err
	}
	f.mu.Unlock()
	return f.issue(ctx, &f.logins, fail)
}

func (f *fakeIdentity) RefreshJWT(ctx context.Context, _ JWT) (JWT, error) {
	return f.issue(ctx, &f.refreshes, &f.refreshErr)
}

func plantedSecret() (UserAuthToken, error) { return "planted", nil }

func refusal() error {
	return &Error{Op: OpLogIn, Kind: KindStatus, StatusCode: 400, Err: errors.New("refused")}
}
