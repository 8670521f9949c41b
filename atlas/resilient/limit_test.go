package resilient

import (
	"testing"
	"time"
)

// answers ends a window with answers that took so long.
func answers(l *limit, took time.Duration) {
	began := l.began.Add(windowTime)
	for range windowCalls {
		l.add(began, began.Add(took))
	}
}

// ready is a limit that knows what an answer takes.
func ready(most int, baseline time.Duration) *limit {
	l := newLimit(most)
	answers(l, baseline)
	return l
}

// A window is so many answers and so much time. Of a flood of them no more are kept than its median needs.
func TestWindow(t *testing.T) {
	l := newLimit(128)
	start := l.began
	for range 2 * windowMost {
		l.add(start, start.Add(time.Millisecond))
	}
	if l.baseline != 0 || len(l.took) != windowMost {
		t.Errorf("after a millisecond the baseline is %v, and %d answers are kept", l.baseline, len(l.took))
	}
	l.add(start, start.Add(windowTime))
	if l.baseline != time.Millisecond || len(l.took) != 0 {
		t.Errorf("at the window's end the baseline is %v, and %d answers are kept", l.baseline, len(l.took))
	}

	l = newLimit(128)
	for range windowCalls - 1 {
		l.add(l.began, l.began.Add(time.Minute))
	}
	if l.baseline != 0 {
		t.Errorf("after %d answers the baseline is %v", windowCalls-1, l.baseline)
	}
}

// While it is measured what an answer takes, half of the limit is in use, but never so little that a breaker would not see it hang.
func TestMeasuring(t *testing.T) {
	for most, want := range map[int]int{1: 1, 8: 8, 12: leastHalf, 30: 15, 128: startLimit / 2} {
		if got := newLimit(most).now(); got != want {
			t.Errorf("of at most %d calls, %d are let through at first, want %d", most, got, want)
		}
	}

	l := ready(128, 10*time.Millisecond)
	l.began = l.began.Add(measureEvery)
	answers(l, 40*time.Millisecond)
	if l.measuring {
		t.Error("it is measured anew though the limit was not reached")
	}
	l.full = true
	answers(l, 40*time.Millisecond)
	if l.now() != startLimit/2 {
		t.Errorf("while it is measured the limit is %d", l.now())
	}
	now := l.began
	l.settle(now, startLimit/2+1)
	answers(l, 40*time.Millisecond)
	if len(l.took) > 0 || l.baseline != 10*time.Millisecond {
		t.Error("answers count before half of the limit is free")
	}
	l.settle(now, startLimit/2)
	l.add(now.Add(-1), now.Add(windowTime))
	if len(l.took) > 0 {
		t.Error("an answer counts that was asked for before half of the limit was free")
	}
	l.settle(now.Add(time.Hour), 0) // it has begun already
	answers(l, 20*time.Millisecond)
	if l.now() != startLimit || l.baseline != 20*time.Millisecond {
		t.Errorf("in the end the limit is %d, and the baseline %v", l.now(), l.baseline)
	}
}

// How the limit follows what answers take.
func TestAdjust(t *testing.T) {
	const ms = time.Millisecond
	type window struct {
		took     time.Duration
		limit    int
		baseline time.Duration
	}
	for name, tc := range map[string]struct {
		most    int
		windows []window
	}{
		"fast":                {512, []window{{10 * ms, 64, 10 * ms}, {12 * ms, 128, 10 * ms}, {5 * ms, 256, 10 * ms}}},
		"fast, slow, fast":    {512, []window{{10 * ms, 64, 10 * ms}, {20 * ms, 44, 10 * ms}, {10 * ms, 48, 10 * ms}, {10 * ms, 52, 10 * ms}}},
		"no more than most":   {34, []window{{10 * ms, 34, 10 * ms}}},
		"slow":                {128, []window{{20 * ms, 24, 10 * ms}}}, // 5/8 and the step
		"slow until it helps": {128, []window{{time.Second, 20, 10 * ms}, {time.Second, leastLimit, 10 * ms}, {12 * ms, 20, 10 * ms}}},
		// At the least it is not the number of calls that makes Atlas slow. What it takes then is normal.
		"slow at the least":          {128, []window{{time.Second, 20, 10 * ms}, {time.Second, 16, 10 * ms}, {time.Second, 16, time.Second}, {time.Second, 20, time.Second}}},
		"a little slow at the least": {128, []window{{time.Second, 20, 10 * ms}, {time.Second, 16, 10 * ms}, {13 * ms, 19, 10 * ms}}},
		"few":                        {8, []window{{5 * ms, 8, 10 * ms}, {time.Second, 8, time.Second}}},
	} {
		l := ready(tc.most, 10*ms)
		for i, w := range tc.windows {
			l.full, l.measureAt = true, l.began.Add(time.Hour)
			answers(l, w.took)
			if l.now() != w.limit || l.baseline != w.baseline {
				t.Errorf("%s: after %d windows the limit is %d, want %d, and the baseline %v, want %v", name, i+1, l.now(), w.limit, l.baseline, w.baseline)
			}
		}
	}
}
