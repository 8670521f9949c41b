package rest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

func FuzzGRPCTimeout(f *testing.F) {
	for _, seed := range []string{"1S", "0n", "99999999H", "-1S", "", "1", "12345678m"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d, err := grpcTimeout([]string{value}); d < 0 || err != nil && d != noTimeout {
			t.Errorf("%q: %v, %v", value, d, err)
		}
	})
}

func TestRoutes(t *testing.T) {
	got := serviceRoutes(ephemeraltokenv1.File_forsta_ephemeraltoken_v1_ephemeral_token_proto)
	if diff := cmp.Diff(routes{"/v1/ephemeral-token": {"DELETE", "POST"}}, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}
