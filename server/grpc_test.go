package server

import (
	"testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// TestNoStreamingMethods: the chain is of unary calls. A streaming method would be let in past it,
// so it needs a chain first.
func TestNoStreamingMethods(t *testing.T) {
	if streams := ephemeraltokenv1.EphemeralTokenService_ServiceDesc.Streams; len(streams) != 0 {
		t.Errorf("the service has streaming methods, which no chain covers: %v", streams)
	}
}
