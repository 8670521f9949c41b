package main

// These tests are inside the package, which also makes the program a part of what go test hashes: it would take the
// results of the tests that drive the built binary from its cache otherwise, whatever has changed in the program.

import (
	"errors"
	"testing"
)

func TestCheckProxy(t *testing.T) {
	for value, ok := range map[string]bool{
		"":                               true,
		"http://proxy.internal:3128":     true,
		"http://user:planted@proxy:3128": true,
		"proxy.internal:3128":            true,
		"http://user:planted%zz@proxy":   false,
		"http://":                        false,
	} {
		for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
			if err := checkProxy([]string{"A=b", name + "=" + value}); (err == nil) != ok {
				t.Errorf("%s=%s: %v", name, value, err)
			}
		}
	}
}

func TestFlatten(t *testing.T) {
	a, b := errors.New("a"), errors.New("b")
	if got := flatten(nil, errors.Join(a, errors.Join(nil, b)), nil); len(got) != 2 || !errors.Is(got[0], a) || !errors.Is(got[1], b) {
		t.Errorf("got %v", got)
	}
}
