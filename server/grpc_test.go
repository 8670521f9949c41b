package server

import (
	"testing"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// TestNoStreamingMethods fails when the service gets a streaming method, which the chain of unary
// interceptors does not cover.
func TestNoStreamingMethods(t *testing.T) {
	if streams := ephemeraltokenv1.EphemeralTokenService_ServiceDesc.Streams; len(streams) != 0 {
		t.Errorf("no chain covers the streaming methods %v", streams)
	}
}
