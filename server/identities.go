package server

import (
	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
)

// Identities are the Atlas identities that the service holds itself. They may come and go while it runs.
type Identities interface {
	// Identity is the one that a grant names. It has to be there, and stay open, until every call that has such a grant
	// has ended, also if a new policy has come since.
	Identity(grant auth.Grant) (*atlas.TokenSource, bool)
	// Check returns an error for each that Atlas does not let in at present: for readiness, in words.
	Check() error
}

// noIdentities are those of a service that passes on what its callers bring.
type noIdentities struct{}

func (noIdentities) Identity(auth.Grant) (*atlas.TokenSource, bool) { return nil, false }
func (noIdentities) Check() error                                   { return nil }
