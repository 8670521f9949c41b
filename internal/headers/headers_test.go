package headers

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/metadata"
)

func TestValues(t *testing.T) {
	incoming := metadata.NewIncomingContext(t.Context(), metadata.Pairs("a", "incoming", "b", "incoming"))
	read := NewContext(incoming, metadata.MD{"a": {"1", "2"}})
	for _, test := range []struct {
		name           string
		read, incoming []string
	}{
		{"a", []string{"1", "2"}, []string{"incoming"}},
		{"b", nil, []string{"incoming"}},
		{"c", nil, nil},
	} {
		if diff := cmp.Diff(test.read, Values(read, test.name)); diff != "" {
			t.Errorf("%s as the transport read it (-want +got):\n%s", test.name, diff)
		}
		if diff := cmp.Diff(test.incoming, Values(incoming, test.name)); diff != "" {
			t.Errorf("%s of the incoming metadata (-want +got):\n%s", test.name, diff)
		}
	}
	if got := Values(t.Context(), "a"); got != nil {
		t.Errorf("without any headers: %q", got)
	}
}

// BenchmarkAbsent looks for what is not there.
func BenchmarkAbsent(b *testing.B) {
	md := metadata.Pairs(":authority", "a", "content-type", "application/grpc", "user-agent", "grpc-go", "authorization", "JWT a.b.c")
	ctx := NewContext(metadata.NewIncomingContext(b.Context(), md), md)
	b.Run("here", func(b *testing.B) {
		for b.Loop() {
			Values(ctx, "traceparent")
		}
	})
	b.Run("grpc-go", func(b *testing.B) {
		for b.Loop() {
			metadata.ValueFromIncomingContext(ctx, "traceparent")
		}
	})
}
