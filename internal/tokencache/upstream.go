package tokencache

import (
	"context"
	"net/http/httptrace"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// upstream is Atlas, the last layer.
type upstream struct{ atlas Atlas }

func (u upstream) create(ctx context.Context, r request) (Result, error) {
	token, err := atlas.WithReLogin(ctx, r.cred, u.atlas.CreateEphemeralToken)
	if err != nil {
		return Result{}, err
	}
	return Result{Token: token, Org: r.org()}, nil // Atlas has just accepted the JWT
}

func (u upstream) delete(ctx context.Context, r request) (string, error) {
	_, err := atlas.WithReLogin(ctx, r.cred, func(ctx context.Context, jwt atlas.JWT) (struct{}, error) {
		if r.caller == nil {
			return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
		}
		if err := r.caller.Err(); err != nil {
			return struct{}{}, &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindCanceled, Err: err}
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// Until there is a connection to write the request to, the caller can take it back.
		sent := context.AfterFunc(r.caller, cancel)
		defer sent()
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent() }})
		return struct{}{}, u.atlas.DeleteEphemeralToken(ctx, jwt)
	})
	if err != nil {
		return "", err
	}
	return r.org(), nil
}

func (upstream) cached(context.Context, request) (Result, bool) { return Result{}, false }
