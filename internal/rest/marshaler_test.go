package rest

import (
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// FuzzMarshal checks that protojson reads an answer as the same token.
func FuzzMarshal(f *testing.F) {
	for _, token := range []string{"", "0123456789abcdef", "a.b-c_D", `a"b`, `a\b`, "a\nb", "ü", "\xff", "a</b>"} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		want := &ephemeraltokenv1.CreateTokenResponse{Token: token}
		body, err := newMarshaler().Marshal(want)
		if !utf8.ValidString(token) || err != nil { // package atlas accepts valid tokens only
			t.Skip(err)
		}
		got := &ephemeraltokenv1.CreateTokenResponse{}
		if err := protojson.Unmarshal(body, got); err != nil || !proto.Equal(got, want) {
			t.Errorf("%q is written as %s, and read as %q, %v", token, body, got.GetToken(), err)
		}
	})
}

func TestMarshalOtherMessages(t *testing.T) {
	body, err := newMarshaler().Marshal(&ephemeraltokenv1.DeleteTokenResponse{})
	if string(body) != "{}" || err != nil {
		t.Errorf("got %s, %v", body, err)
	}
}
