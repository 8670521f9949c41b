package main

import (
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// heapFloor is what the heap may grow to before it is collected at all. What lives in it is a few megabytes, and with Go's default
	// the collector would run tens of times a second under load and take a quarter of the CPU.
	heapFloor = 32 << 20
	// minHeap is how large the runtime lets the heap grow at GOGC=100, however little of it lives.
	minHeap = 4 << 20
	// memoryShare is the part of the container's memory that the Go runtime tries to stay within.
	memoryShare = 0.9
)

// tuneCollector has the collector run less often than Go's default while the heap is small, and more often where the container's
// memory ends. GOGC and GOMEMLIMIT are the operator's, and go before it.
func tuneCollector(log *slog.Logger) {
	// Where there is no limit, that is an error of the library, and none of ours.
	if limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithLogger(slog.New(slog.DiscardHandler))); err == nil && limit > 0 {
		log.Debug("memory limit of the Go runtime", slog.Int64("bytes", limit))
	}
	if os.Getenv("GOGC") != "" {
		return
	}
	percent := heapFloor / minHeap * 100
	debug.SetGCPercent(percent)
	afterEachCollection(func() {
		if next := percentFor(liveHeap()); next != percent {
			percent = next
			debug.SetGCPercent(percent)
		}
	})
}

// percentFor is the GOGC with which a heap of which so much lives is collected at heapFloor, or at twice what lives if that is more.
// In steps, since each change stops the world for a moment.
func percentFor(live uint64) int {
	percent := 100
	for next := 200; next <= heapFloor/minHeap*100 && live+live*uint64(next)/100 <= heapFloor+minHeap; next *= 2 {
		percent = next
	}
	return percent
}

func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// afterEachCollection calls f after every collection, for as long as the program runs: what nobody refers to is finalized then.
func afterEachCollection(f func()) {
	type sentinel struct{ _ [16]byte } // tiny objects share a block, and are not finalized by themselves
	var arm func(*sentinel)
	arm = func(s *sentinel) {
		f()
		runtime.SetFinalizer(s, arm)
	}
	runtime.SetFinalizer(&sentinel{}, arm)
}
