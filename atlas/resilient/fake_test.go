package resilient_test

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// fakeAtlas answers calls and probes as configured; the zero value lets all succeed.
type fakeAtlas struct {
	calls  atomic.Int64 // without probes
	probes atomic.Int64
	answer atomic.Pointer[func(ctx context.Context, call int64) error]
}

func (a *fakeAtlas) does(answer func(ctx context.Context, call int64) error) { a.answer.Store(&answer) }

// fails has every call fail so.
func (a *fakeAtlas) fails(e atlas.Error) {
	a.does(func(context.Context, int64) error { return &e })
}

// hangs has every call wait until its caller leaves.
func (a *fakeAtlas) hangs() {
	a.does(func(ctx context.Context, _ int64) error {
		<-ctx.Done()
		return &atlas.Error{Kind: atlas.KindCanceled, Sent: true, Err: ctx.Err()}
	})
}

func (a *fakeAtlas) call(ctx context.Context, op atlas.Operation) error {
	count := &a.calls
	if op == atlas.OpProbe {
		count = &a.probes
	}
	n := count.Add(1)
	answer := a.answer.Load()
	if answer == nil {
		return nil
	}
	err := (*answer)(ctx, n)
	if e, ok := errors.AsType[*atlas.Error](err); ok {
		copied := *e
		copied.Op = op
		if copied.Err == nil {
			copied.Err = errors.New("as the test says")
		}
		return &copied
	}
	return err
}

func (a *fakeAtlas) CreateEphemeralToken(ctx context.Context, _ atlas.JWT) (atlas.Token, error) {
	if err := a.call(ctx, atlas.OpCreate); err != nil {
		return "", err
	}
	return "token", nil
}

func (a *fakeAtlas) DeleteEphemeralToken(ctx context.Context, _ atlas.JWT) error {
	return a.call(ctx, atlas.OpDelete)
}

func (a *fakeAtlas) LogIn(ctx context.Context, _ atlas.UserAuthToken) (atlas.JWT, error) {
	return "jwt", a.call(ctx, atlas.OpLogIn)
}

func (a *fakeAtlas) RefreshJWT(ctx context.Context, _ atlas.JWT) (atlas.JWT, error) {
	return "jwt", a.call(ctx, atlas.OpRefresh)
}

func (a *fakeAtlas) Probe(ctx context.Context) (atlas.Probed, error) {
	err := a.call(ctx, atlas.OpProbe)
	if e, ok := errors.AsType[*atlas.Error](err); ok && e.Kind == atlas.KindStatus {
		return atlas.Probed{StatusCode: e.StatusCode}, nil
	}
	return atlas.Probed{StatusCode: 401}, err
}
