package tokencache

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const ms = time.Millisecond

// Each case differs from one in which the call leaves now in what its name says. Calls take 32 ms, so departures are 8 ms apart,
// waiters gather for 2 ms, and a call is overdue after 64 ms.
func TestDeparture(t *testing.T) {
	at := func(since ...time.Duration) []time.Duration { return since }
	for name, tc := range map[string]struct {
		d    departure
		want time.Duration
	}{
		"nothing in flight":                   {departure{most: 4, waiters: 1, latency: 32 * ms}, 0},
		"nothing in flight, latency unknown":  {departure{most: 4, waiters: 1}, 0},
		"nothing in flight, just left":        {departure{most: 1, waiters: 1, latency: 32 * ms, since: 1}, 0},
		"nothing in flight, one at a time":    {departure{most: 1, waiters: 1, latency: 32 * ms}, 0},
		"one in flight":                       {departure{most: 4, flights: at(8 * ms), since: 8 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 0},
		"latency unknown":                     {departure{most: 4, flights: at(8 * ms), since: 8 * ms, waiters: 9, gathered: 2 * ms}, never},
		"one at a time":                       {departure{most: 1, flights: at(99 * ms), since: 99 * ms, waiters: 9, gathered: 2 * ms, latency: 32 * ms}, never},
		"three in flight":                     {departure{most: 4, flights: at(24*ms, 16*ms, 8*ms), since: 8 * ms, waiters: 3, gathered: 2 * ms, latency: 32 * ms}, 0},
		"four in flight":                      {departure{most: 4, flights: at(30*ms, 24*ms, 16*ms, 8*ms), since: 8 * ms, waiters: 99, gathered: 2 * ms, latency: 32 * ms}, never},
		"four in flight, all overdue":         {departure{most: 4, flights: at(99*ms, 99*ms, 99*ms, 99*ms), since: 99 * ms, waiters: 99, gathered: 2 * ms, latency: 32 * ms}, never},
		"left 5 ms ago":                       {departure{most: 4, flights: at(5 * ms), since: 5 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 3 * ms},
		"the last that left has landed":       {departure{most: 4, flights: at(20 * ms), since: 5 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 3 * ms},
		"gathered for 1 ms":                   {departure{most: 4, flights: at(8 * ms), since: 8 * ms, waiters: 9, gathered: 1 * ms, latency: 32 * ms}, 1 * ms},
		"fewer waiters than calls":            {departure{most: 4, flights: at(20*ms, 8*ms), since: 8 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 44 * ms},
		"far fewer":                           {departure{most: 4, flights: at(20*ms, 10*ms, 8*ms), since: 8 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 54 * ms},
		"fewer, one call overdue":             {departure{most: 4, flights: at(64*ms, 8*ms), since: 8 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 0},
		"fewer, one call overdue, left 1 ms":  {departure{most: 4, flights: at(64*ms, 1*ms), since: 1 * ms, waiters: 1, gathered: 2 * ms, latency: 32 * ms}, 7 * ms},
		"filling the cache":                   {departure{most: 4, flights: at(60 * ms), since: 60 * ms, waiters: 99, gathered: 9 * ms, latency: 32 * ms, filling: true}, 4 * ms},
		"filling the cache, one call overdue": {departure{most: 4, flights: at(99*ms, 60*ms), since: 60 * ms, waiters: 99, gathered: 9 * ms, latency: 32 * ms, filling: true}, 4 * ms},
		"filling the cache, all overdue":      {departure{most: 4, flights: at(64*ms, 64*ms), since: 64 * ms, waiters: 1, gathered: 9 * ms, latency: 32 * ms, filling: true}, 0},
		"Atlas is fast":                       {departure{most: 4, flights: at(500_000), since: 500_000, waiters: 99, gathered: 500_000, latency: 1 * ms}, 1_500_000},
		"Atlas is slow":                       {departure{most: 4, flights: at(2 * time.Second), since: 2 * time.Second, waiters: 1, gathered: time.Second, latency: 10 * time.Second}, 500 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.d.wait(); got != tc.want {
				t.Errorf("wait %v, want %v", got, tc.want)
			}
		})
	}
}

// Who has waited as long as he was told may leave, and might not have before. No call has to wait for ever behind one that does
// not end, unless as many are in flight as may be; and none leaves beyond that.
func TestDepartureProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		duration := func(name string) time.Duration {
			return time.Duration(rapid.Int64Range(0, int64(200*ms)).Draw(t, name))
		}
		d := departure{
			most: rapid.IntRange(1, maxInFlight).Draw(t, "most"), waiters: rapid.IntRange(1, 10).Draw(t, "waiters"),
			gathered: duration("gathered"), latency: duration("latency"), filling: rapid.Bool().Draw(t, "filling"), since: duration("since"),
		}
		last := d.since
		for range rapid.IntRange(0, d.most).Draw(t, "in flight") {
			d.flights = append([]time.Duration{last}, d.flights...)
			last += duration("before")
		}
		wait := d.wait()
		switch n := len(d.flights); {
		case n == 0:
			if wait != 0 {
				t.Fatalf("waits %v for nothing", wait)
			}
			return
		case n == d.most || d.latency == 0:
			if wait != never {
				t.Fatalf("leaves in %v with %d in flight", wait, n)
			}
			return
		case wait < 0 || wait > max(2*d.latency, d.spacing()):
			t.Fatalf("waits %v", wait)
		}
		after := func(later time.Duration) departure {
			l := d
			l.since, l.gathered, l.flights = l.since+later, l.gathered+later, nil
			for _, f := range d.flights {
				l.flights = append(l.flights, f+later)
			}
			return l
		}
		if left := after(wait).wait(); left != 0 {
			t.Fatalf("waits %v more after %v", left, wait)
		}
		if wait > 0 {
			if left := after(wait - 1).wait(); left != 1 {
				t.Fatalf("waits %v before %v are over", left, wait)
			}
		}
	})
}

// What a call says about the cache when it lands: a hit that calls fill it, an answer of Atlas's that they do not, and nothing if it
// failed or was not to use the cache.
func TestLanding(t *testing.T) {
	failed := errors.New("an error of the test's")
	for name, tc := range map[string]struct {
		c           call
		after, from bool // filling
	}{
		"hit":                    {call{result: Result{Status: Status{Hit: true}}}, true, false},
		"hit again":              {call{result: Result{Status: Status{Hit: true}}}, true, true},
		"answered by Atlas":      {call{}, false, true},
		"not to use the cache":   {call{request: request{noCache: true}}, true, true},
		"failed":                 {call{err: failed}, true, true},
		"failed, filling or not": {call{err: failed}, false, false},
		"panicked":               {call{panics: "it"}, true, true},
	} {
		s, now, other := newSuccession(key{}, tc.from), time.Now(), &call{}
		s.flights = append(s.flights, other, &tc.c)
		s.land(&tc.c, now)
		if s.filling != tc.after || !s.landed.Equal(now) || len(s.flights) != 1 || s.flights[0] != other {
			t.Errorf("%s: filling %t, want %t; %d in flight", name, s.filling, tc.after, len(s.flights))
		}
	}
}

func TestSmoothed(t *testing.T) {
	average := time.Duration(0)
	for i, tc := range []struct{ last, want time.Duration }{
		{80 * ms, 80 * ms}, {80 * ms, 80 * ms}, {160 * ms, 90 * ms}, {10 * ms, 80 * ms}, {0, 70 * ms}, {78 * ms, 71 * ms}, {7 * ms, 63 * ms}, {63 * ms, 63 * ms}, {time.Minute, 70_875_000},
	} {
		if average = smoothed(average, tc.last); average != tc.want {
			t.Errorf("after %d calls: %v, want %v", i+1, average, tc.want)
		}
	}
	for range 100 {
		average = smoothed(average, 8*ms)
	}
	if average < 8*ms || average > 8*ms+10*time.Microsecond {
		t.Errorf("after a hundred calls of 8ms: %v", average)
	}
}
