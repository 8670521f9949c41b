package resilient_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testClient is a Client for users of orgs. Atlas has accepted their JWTs before, except madeUp.
type testClient struct{ *resilient.Client }

// madeUp is the org of JWTs that Atlas has not accepted.
const madeUp = "made up"

func (c testClient) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	return c.Client.CreateEphemeralToken(withTenant(ctx, jwt), jwt)
}

func (c testClient) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	return c.Client.DeleteEphemeralToken(withTenant(ctx, jwt), jwt)
}

func withTenant(ctx context.Context, jwt atlas.JWT) context.Context {
	if org := jwt.UnverifiedClaims().OrgID; org != madeUp && atlas.TenantOf(ctx) == (atlas.Tenant{}) {
		return atlas.WithTenant(ctx, atlas.Tenant{Org: org})
	}
	return ctx
}

func newClient(t *testing.T, a resilient.Atlas) testClient {
	t.Helper()
	return newClientWith(t, a, resilient.Config{})
}

func newClientWith(t *testing.T, a resilient.Atlas, config resilient.Config) testClient {
	t.Helper()
	c, err := resilient.New(a, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return testClient{c}
}

func kindOf(err error) atlas.Kind {
	if e, ok := errors.AsType[*atlas.Error](err); ok {
		return e.Kind
	}
	return ""
}

// wait is for virtual time.
func wait(d time.Duration) { <-time.After(d) }

// behavior is how the simulated Atlas answers one request. It may wait in virtual time.
type behavior func(ctx context.Context) error

// simulated is an Atlas in virtual time whose behavior depends on the org of the JWT.
type simulated struct {
	mu       sync.Mutex
	orgs     map[string]behavior // guarded by mu
	all      behavior            // guarded by mu; if set, of all orgs and of probes
	requests map[string]int      // guarded by mu; by org, "probe" for probes
}

func newSimulated() *simulated {
	return &simulated{orgs: map[string]behavior{}, requests: map[string]int{}}
}

// does sets the behavior of one org; "" is for the orgs that have none.
func (a *simulated) does(org string, b behavior) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orgs[org] = b
}

// everything sets the behavior of all orgs and of probes; nil ends that.
func (a *simulated) everything(b behavior) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = b
}

// hangs is a behavior that waits until the caller leaves.
var hangs = takes(1000 * time.Hour)

// takes is a behavior that succeeds after d.
func takes(d time.Duration) behavior { return fails(nil, d) }

// fails is a behavior that ends with err after d.
func fails(err *atlas.Error, d time.Duration) behavior {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return &atlas.Error{Kind: atlas.KindCanceled, Sent: true, Err: ctx.Err()}
		}
		if err == nil {
			return nil
		}
		return err
	}
}

func status(code int) *atlas.Error {
	return &atlas.Error{Kind: atlas.KindStatus, StatusCode: code, Sent: true}
}

func (a *simulated) request(ctx context.Context, op atlas.Operation, org string) error {
	a.mu.Lock()
	a.requests[org]++
	b := a.all
	if b == nil {
		b = a.orgs[org]
	}
	if b == nil && op != atlas.OpProbe {
		b = a.orgs[""]
	}
	a.mu.Unlock()
	if b == nil {
		b = takes(20 * time.Millisecond)
	}
	err := b(ctx)
	failed, ok := errors.AsType[*atlas.Error](err)
	if !ok {
		return err
	}
	e := *failed
	e.Op = op
	if e.Err == nil {
		e.Err = fmt.Errorf("simulated %s", http.StatusText(e.StatusCode))
	}
	return &e
}

func (a *simulated) CreateEphemeralToken(ctx context.Context, jwt atlas.JWT) (atlas.Token, error) {
	if err := a.request(ctx, atlas.OpCreate, jwt.UnverifiedClaims().OrgID); err != nil {
		return "", err
	}
	return "token", nil
}

func (a *simulated) DeleteEphemeralToken(ctx context.Context, jwt atlas.JWT) error {
	return a.request(ctx, atlas.OpDelete, jwt.UnverifiedClaims().OrgID)
}

func (a *simulated) LogIn(ctx context.Context, _ atlas.UserAuthToken) (atlas.JWT, error) {
	return "jwt", a.request(ctx, atlas.OpLogIn, "login")
}

func (a *simulated) RefreshJWT(ctx context.Context, _ atlas.JWT) (atlas.JWT, error) {
	return "jwt", a.request(ctx, atlas.OpRefresh, "login")
}

// Probe is answered with a 401, as by Atlas.
func (a *simulated) Probe(ctx context.Context) (atlas.Probed, error) {
	err := a.request(ctx, atlas.OpProbe, "probe")
	if e, ok := errors.AsType[*atlas.Error](err); ok && e.Kind == atlas.KindStatus {
		return atlas.Probed{StatusCode: e.StatusCode}, nil
	}
	return atlas.Probed{StatusCode: http.StatusUnauthorized}, err
}

// jwtOf is a JWT of an org. Another number makes another JWT.
func jwtOf(org string, number int) atlas.JWT {
	payload := fmt.Sprintf(`{"org_id":%q,"n":%d}`, org, number)
	return atlas.JWT("h." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".s")
}

// traffic makes calls in virtual time and counts how they end, by the name of the party that makes
// them.
type traffic struct {
	ctx    context.Context // of all calls
	client testClient
	calls  sync.WaitGroup

	mu   sync.Mutex
	came map[string]*result // guarded by mu
}

// result is what came of the calls of one party.
type result struct {
	ok     int
	failed map[string]int // by kind
	most   time.Duration  // that a successful call took
}

func (r *result) failures() int {
	n := 0
	for _, of := range r.failed {
		n += of
	}
	return n
}

func newTraffic(t *testing.T, c testClient) *traffic {
	return &traffic{ctx: t.Context(), client: c, came: map[string]*result{}}
}

// of returns what came of a party's calls.
func (tr *traffic) of(party string) *result {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.came[party] == nil {
		tr.came[party] = &result{failed: map[string]int{}}
	}
	return tr.came[party]
}

// one makes one call and reports whether it succeeded.
func (tr *traffic) one(party string, op atlas.Operation, jwt atlas.JWT, timeout time.Duration) bool {
	ctx, cancel := context.WithTimeout(tr.ctx, timeout)
	defer cancel()
	start := time.Now()
	var err error
	if op == atlas.OpDelete {
		err = tr.client.DeleteEphemeralToken(ctx, jwt)
	} else {
		_, err = tr.client.CreateEphemeralToken(ctx, jwt)
	}
	r := tr.of(party)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err == nil {
		r.ok++
		r.most = max(r.most, time.Since(start))
	} else {
		r.failed[string(kindOf(err))]++
	}
	return err == nil
}

// perSecond makes so many calls a second until ctx ends, whatever becomes of them.
func (tr *traffic) perSecond(ctx context.Context, rate int, call func(n int)) {
	tr.calls.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-tick.C:
				tr.calls.Go(func() { call(n) })
			case <-ctx.Done():
				return
			}
		}
	})
}

// others are ten orgs that make ten calls a second together, each with ten seconds of time.
func (tr *traffic) others(ctx context.Context) {
	for n := range 10 {
		tr.one("before", atlas.OpCreate, jwtOf(fmt.Sprintf("other-%d", n), 0), time.Second)
	}
	tr.perSecond(ctx, 10, func(n int) {
		tr.one("others", atlas.OpCreate, jwtOf(fmt.Sprintf("other-%d", n%10), 0), 10*time.Second)
	})
}

// count returns how many requests came for an org, or "probe", or for all orgs with "".
func (a *simulated) count(org string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if org != "" {
		return a.requests[org]
	}
	n := 0
	for org, requests := range a.requests {
		if org != "probe" {
			n += requests
		}
	}
	return n
}
