package lograte

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestFlood checks that lines of a kind are written at a rate, and that the next line has the
// number of those left out.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log, suppressed := Limit(slog.New(slog.NewTextHandler(&out, nil)))
		log = Kind(log, "CREDENTIAL_MISSING")
		for range 10_000 { // a thousand a second
			log.Info("refused")
			<-time.After(time.Millisecond)
		}
		written := strings.Count(out.String(), "refused")
		if written < burst+9*perSecond || written > burst+10*perSecond {
			t.Errorf("%d lines in ten seconds, want %d at first and %d a second", written, burst, perSecond)
		}
		<-time.After(time.Minute)
		out.Reset()
		log.Info("refused")
		log.Info("refused")
		lines := strings.Split(out.String(), "\n")
		if !strings.Contains(lines[0], "suppressed=") || strings.Contains(lines[1], "suppressed=") {
			t.Errorf("only the first line after the flood has the number of those left out: %s", out.String())
		}
		if n, want := testutil.ToFloat64(suppressed.(*prometheus.CounterVec).WithLabelValues("CREDENTIAL_MISSING")), 10_000-written; n != float64(want) {
			t.Errorf("the metric has %v suppressed lines, want %d", n, want)
		}
	})
}

// TestUnrelatedLinesPass checks that a flood of one kind suppresses no line of another.
func TestUnrelatedLinesPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log, _ := Limit(slog.New(slog.NewTextHandler(&out, nil)))
		log = log.With("a", 1).WithGroup("g")
		for range 1000 {
			Kind(log, "CREDENTIAL_MISSING").Info("flood")
			Kind(log, NetHTTP).Info("foreign")
			log.Error("own")
		}
		Kind(log, "OVERLOADED").Info("other")
		for line, want := range map[string]int{"msg=flood": burst, "msg=foreign": burst, "msg=own": 1000, "msg=other": 1} {
			if n := strings.Count(out.String(), line); n != want {
				t.Errorf("%s: %d lines, want %d", line, n, want)
			}
		}
	})
}

// TestLimitOnce checks that the program and its server share the limits.
func TestLimitOnce(t *testing.T) {
	plain := slog.New(slog.DiscardHandler)
	log, metric := Limit(plain)
	again, same := Limit(log)
	if again != log || same != metric {
		t.Error("a limited logger is limited again")
	}
	if Kind(plain, NetHTTP) != plain {
		t.Error("Kind limits a logger that is not limited")
	}
}
