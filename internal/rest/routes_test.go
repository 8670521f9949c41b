package rest

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// TestRoutesMatchProto checks that the routes are those of the proto's google.api.http annotations.
func TestRoutesMatchProto(t *testing.T) {
	want := routes{}
	methods := ephemeraltokenv1.File_forsta_ephemeraltoken_v1_ephemeral_token_proto.Services().Get(0).Methods()
	for i := range methods.Len() {
		rule := proto.GetExtension(methods.Get(i).Options(), annotations.E_Http).(*annotations.HttpRule)
		for verb, path := range map[string]string{
			"GET": rule.GetGet(), "POST": rule.GetPost(), "PUT": rule.GetPut(), "PATCH": rule.GetPatch(), "DELETE": rule.GetDelete(),
		} {
			if path != "" {
				want[path] = append(want[path], verb)
				slices.Sort(want[path])
			}
		}
		if len(rule.GetAdditionalBindings()) > 0 {
			t.Errorf("%v: one route is all that newRoutes knows", rule)
		}
	}
	if diff := cmp.Diff(want, newRoutes(nil)); diff != "" {
		t.Errorf("routes (-proto +here):\n%s", diff)
	}
}
