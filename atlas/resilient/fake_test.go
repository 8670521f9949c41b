package resilient_test

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// fakeAtlas answers as it is told. The zero one answers everything.
type fakeAtlas struct {
	calls  atomic.Int64
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
	n := a.calls.Add(1)
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
