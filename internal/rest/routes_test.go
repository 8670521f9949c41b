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
		verb, path := "POST", rule.GetPost()
		if path == "" {
			verb, path = "DELETE", rule.GetDelete()
		}
		if path == "" || len(rule.GetAdditionalBindings()) > 0 {
			t.Fatalf("unknown rule: %v", rule)
		}
		want[path] = append(want[path], verb)
		slices.Sort(want[path])
	}
	if diff := cmp.Diff(want, newRoutes(nil)); diff != "" {
		t.Errorf("routes (-proto +here):\n%s", diff)
	}
}
