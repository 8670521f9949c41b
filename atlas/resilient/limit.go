package resilient

import (
	"slices"
	"time"
)

const (
	startLimit = 32
	leastLimit = 16
	// leastHalf is how many calls that hang for four seconds it takes for the breaker to open: each counts five times.
	leastHalf = breakerCalls / 5

	// A window ends with so many answers, and not before so much time has passed.
	windowCalls = 20
	windowTime  = 100 * time.Millisecond
	// Answers beyond these do not make its median any better.
	windowMost = 256

	// tolerance is how much longer an answer may take than when Atlas has little to do.
	tolerance = 1.25
	// limitStep is what a full window adds to the limit once it is known what Atlas can do: the more there is to gain, the less it
	// matters. It is also what keeps the limit from going down for a little noise. Before, a full window doubles the limit.
	limitStep = 4
	// minShrink is the least of the limit that one window leaves.
	minShrink = 0.5
	// measureEvery is how often it is measured anew what an answer takes, at half the limit: under a load that does not end,
	// nobody would notice otherwise that what is taken for normal has crept up.
	measureEvery = 10 * time.Second
)

// limit is how many calls may be at Atlas at a time. It is found out by how long Atlas takes for an answer: once calls
// queue there, more at a time means no more answers, but later ones (Little's law). A window in which answers took longer
// than they should takes down the limit in proportion; one that was full and fast raises it.
//
// Failsafe-go's adaptive limiter does not do: it moves by one or two with each window, and shrinks when there is little to
// do. Under the load of TestOverload its p99 was 64 ms where this has 40, and after a quiet minute it refused one call in six
// of an Atlas that was up to them.
//
// It is not safe for concurrent use.
type limit struct {
	most     float64
	size     float64
	baseline time.Duration // what an answer takes when Atlas has little to do; 0: not known yet
	found    bool          // what Atlas can do: the answers of a full window took longer than they should, or its limit was most
	full     bool          // all slots were taken at some time in this window

	began time.Time // of the window
	took  []time.Duration

	measuring   bool
	measureFrom time.Time // calls that began before do not count; zero: too many of them are still there
	measureAt   time.Time // the next time
}

func newLimit(most int) *limit {
	now := time.Now()
	return &limit{
		most: float64(most), size: float64(min(startLimit, most)),
		began: now, measuring: true, measureFrom: now,
	}
}

// now is the limit at present.
func (l *limit) now() int {
	if l.measuring {
		return l.half()
	}
	return int(l.size)
}

func (l *limit) half() int { return int(min(max(l.size/2, leastHalf), l.size)) }

// settle has the measuring begin when half the limit is free.
func (l *limit) settle(now time.Time, inFlight int) {
	if l.measureFrom.IsZero() && inFlight <= l.half() {
		l.measureFrom = now
	}
}

// fill takes note that all slots are taken.
func (l *limit) fill(now time.Time) {
	if !l.full && !l.found { // what is to be doubled has to be fast when it is full, and not only before
		l.took, l.began = l.took[:0], now
	}
	l.full = true
}

// add takes note of a call that Atlas has answered, and reports whether the limit is twice what it was.
func (l *limit) add(began, ended time.Time) (doubled bool) {
	if l.measuring && (l.measureFrom.IsZero() || began.Before(l.measureFrom)) || !l.found && began.Before(l.began) {
		return false
	}
	if len(l.took) < windowMost {
		l.took = append(l.took, ended.Sub(began))
	}
	if len(l.took) < windowCalls || ended.Sub(l.began) < windowTime {
		return false
	}
	slices.Sort(l.took)
	before := l.size
	l.endWindow(ended, l.took[len(l.took)/2])
	l.took, l.full, l.began = l.took[:0], false, ended
	return !l.found && l.size > before
}

func (l *limit) endWindow(now time.Time, median time.Duration) {
	switch {
	case l.measuring:
		l.baseline = median
		l.measuring, l.measureAt = false, now.Add(measureEvery)
	case !l.full: // it says nothing about a limit that was not reached
	case now.After(l.measureAt):
		l.measuring, l.measureFrom = true, time.Time{}
	default:
		l.adjust(median)
	}
}

func (l *limit) adjust(median time.Duration) {
	shrink := min(max(tolerance*float64(l.baseline)/float64(max(median, 1)), minShrink), 1)
	least := min(leastLimit, l.most)
	before := l.size
	step := before
	if l.found = l.found || shrink < 1 || before == l.most; l.found {
		step = limitStep
	}
	l.size = min(max(before*shrink+step, least), l.most)
	if shrink < 1 && before <= least && l.size <= least { // it is not the number of calls that makes Atlas slower than it was
		l.baseline = median
	}
}
