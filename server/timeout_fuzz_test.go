package server

import "testing"

func FuzzGRPCTimeout(f *testing.F) {
	for _, seed := range []string{"1S", "0n", "99999999H", "-1S", "", "1", "12345678m"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if d, ok := grpcTimeout([]string{value}); d < 0 || !ok && d != noTimeout {
			t.Errorf("%q: %v, %v", value, d, ok)
		}
	})
}
