// Package headers has the headers of a call where they are looked up several times: as the transport read them, by lower-case name,
// and without a copy. grpc-go's own look-up goes through all of a call's headers for one that is not there, as most are that a call
// may have.
package headers

import (
	"context"

	"google.golang.org/grpc/metadata"
)

type key struct{}

// NewContext returns ctx with the headers of a call, whose names are in lower case. Nobody changes them from then on.
func NewContext(ctx context.Context, md metadata.MD) context.Context {
	return context.WithValue(ctx, key{}, md)
}

// FromContext returns the headers put there by NewContext, nil if there are none. They are not to be changed.
func FromContext(ctx context.Context) metadata.MD {
	md, _ := ctx.Value(key{}).(metadata.MD)
	return md
}

// Values returns the values of a header by its lower-case name. They are not to be changed. Without NewContext they are those of
// the incoming metadata.
func Values(ctx context.Context, name string) []string {
	if md := FromContext(ctx); md != nil {
		return md[name]
	}
	return metadata.ValueFromIncomingContext(ctx, name)
}
