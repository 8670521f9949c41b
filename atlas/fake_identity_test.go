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

// fakeIdentity is an Atlas that logs in and refreshes as it is told.
type fakeIdentity struct {
	mu                sync.Mutex
	logins, refreshes int             // guarded by mu
	life              time.Duration   // guarded by mu; of the JWTs
	skew              time.Duration   // guarded by mu; of its clock against ours
	latency           time.Duration   // guarded by mu
	loginErr          error           // guarded by mu
	refreshErr        error           // guarded by mu
	wrong             []UserAuthToken // guarded by mu; refused whatever loginErr is
}

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
	exp := time.Now().Add(f.skew + f.life).Unix()
	f.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return "", &Error{Op: OpLogIn, Kind: KindCanceled, Err: ctx.Err()}
	}
	if err != nil {
		return "", err
	}
	payload := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d,"n":%d}`, exp, n))
	return JWT("e30." + payload + ".c2ln"), nil
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
