package main

import (
	"context"
	"testing"
)

func TestBefore(t *testing.T) {
	var started []string
	s := server{name: "tokend", start: func(_ context.Context, l *lab, _ bool) (*running, error) {
		started = append(started, l.tokend)
		return &running{}, nil
	}}
	l := &lab{tokend: "now"}
	for _, s := range []server{s.before("then"), s} {
		if _, err := s.start(t.Context(), l, false); err != nil {
			t.Fatal(err)
		}
	}
	if len(started) != 2 || started[0] != "then" || started[1] != "now" {
		t.Errorf("started %v, want the other build, then this one", started)
	}
}
