package call

import (
	"context"
	"net/http"
)

// transport is what a call came over.
type transport int

const (
	overGRPC transport = iota
	overREST
)

var transportNames = [...]string{overGRPC: "grpc", overREST: "rest"}

func (t transport) String() string { return transportNames[t] }

// transportOf returns the headers too, of a call that came over REST.
func transportOf(ctx context.Context) (transport, http.Header) {
	if rec, ok := ctx.Value(recordKey{}).(*Record); ok && rec.rest != nil {
		return overREST, rec.rest.received
	}
	return overGRPC, nil
}
