package rest

import (
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// FuzzMarshal: what is written is read as the same token.
func FuzzMarshal(f *testing.F) {
	for _, token := range []string{"", "0123456789abcdef", "a.b-c_D", `a"b`, `a\b`, "a\nb", "ü", "\xff", "a</b>"} {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		want := &ephemeraltokenv1.CreateTokenResponse{Token: token}
		body, err := newMarshaler().Marshal(want)
		if err != nil {
			if _, otherwise := protojson.Marshal(want); otherwise == nil {
				t.Errorf("%q: %v", token, err)
			}
			return
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

func BenchmarkMarshal(b *testing.B) {
	m, resp := newMarshaler(), &ephemeraltokenv1.CreateTokenResponse{Token: "0123456789abcdef0123456789abcdef01234567"}
	for name, marshal := range map[string]func(any) ([]byte, error){"here": m.Marshal, "protojson": m.Marshaler.Marshal} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := marshal(resp); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
