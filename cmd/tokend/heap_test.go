package main

import (
	"log/slog"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestPercentFor: a small heap grows to the floor, and a large one to no more than Go's default lets it.
func TestPercentFor(t *testing.T) {
	for live, want := range map[uint64]int{0: 800, 4 << 20: 800, 5 << 20: 400, 10 << 20: 200, 16 << 20: 100, 32 << 20: 100, 1 << 40: 100} {
		got := percentFor(live)
		if got != want {
			t.Errorf("with %d MiB live: %d, want %d", live>>20, got, want)
		}
		if goal := live + live*uint64(got)/100; goal > max(heapFloor+minHeap, 2*live) {
			t.Errorf("with %d MiB live the heap grows to %d MiB", live>>20, goal>>20)
		}
	}
}

// TestAfterEachCollection: it is called for one collection after the other, not once.
func TestAfterEachCollection(t *testing.T) {
	called := make(chan struct{}, 1)
	afterEachCollection(func() {
		select {
		case called <- struct{}{}:
		default: // it goes on being called when nobody counts any more
		}
	})
	for range 3 {
		for timeout := time.After(20 * time.Second); ; {
			runtime.GC()
			select {
			case <-called:
			case <-timeout:
				t.Fatal("it is not called any more")
			case <-time.After(time.Millisecond):
				continue
			}
			break
		}
	}
}

// TestOperatorsGOGC: what the operator has set stays.
func TestOperatorsGOGC(t *testing.T) {
	t.Setenv("GOGC", "123")
	before := debug.SetGCPercent(123)
	defer debug.SetGCPercent(before)
	tuneCollector(slog.New(slog.DiscardHandler))
	if got := debug.SetGCPercent(123); got != 123 {
		t.Errorf("GOGC is %d", got)
	}
}
