package tokencache

import (
	"errors"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

func TestNotAsked(t *testing.T) {
	for want, err := range map[string]error{
		"overloaded":  &atlas.Error{Kind: atlas.KindOverloaded},
		"unavailable": &atlas.Error{Kind: atlas.KindUnavailable},
		"throttled":   &atlas.Error{Kind: atlas.KindStatus, StatusCode: 429, Err: errHeldOff},
	} {
		if got := NotAsked(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	for _, asked := range []error{nil, errors.New("x"), &atlas.Error{Kind: atlas.KindStatus, StatusCode: 429}} {
		if got := NotAsked(asked); got != "" {
			t.Errorf("%v: %q", asked, got)
		}
	}
}
