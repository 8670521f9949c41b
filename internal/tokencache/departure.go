package tokencache

import (
	"math"
	"time"
)

// maxInFlight is how many shared calls for one credential are in flight at a time.
const maxInFlight = 4

// departure is what decides when the next shared call for a credential leaves. It may do so before the last has landed: so under
// load a caller waits for little more than his own call, and not for two.
type departure struct {
	most     int             // calls in flight at a time
	flights  []time.Duration // for how long each call has been in flight, the oldest first
	since    time.Duration   // the last departure; without meaning if nothing is in flight
	waiters  int             // of the next call, at least one
	gathered time.Duration   // how long they have had to gather: since the first came, or since the last call landed
	latency  time.Duration   // what a call to Atlas takes; 0: not known yet
	filling  bool            // what the calls in flight bring will be cached, and answer those who wait
}

// never is how long a call has to wait that cannot leave before another lands or more callers come.
const never = time.Duration(math.MaxInt64)

// wait is how long the next call has to wait, if nothing happens meanwhile; 0: it leaves now.
//
// If nothing is in flight it leaves at once. Otherwise it may be a call that Atlas would not have had if everybody waited for the
// last to land. It leaves if that is worth it: if no fewer wait for it than there are calls in flight. So of callers who call
// again as soon as they are answered, two have a call each and four have two between them, and Atlas has no more calls for each
// answer than if they did not overlap. Few callers who take their time may cost some more, but never more than a call for each
// answer; and many have four calls at a time.
//
// A call that takes twice as long as usual does not count, so that it does not hold up those behind it. Of the most in flight it
// is one all the same.
func (d departure) wait() time.Duration {
	n := len(d.flights)
	switch {
	case n == 0:
		return 0
	case n >= d.most || d.latency == 0:
		return never
	}
	wait := max(0, d.spacing()-d.since, d.gathering()-d.gathered)
	overdue := n - d.waiters // so many have to be, for the others to be no more than those who wait
	if d.filling {
		overdue = n // else it is worth nothing
	}
	if overdue > 0 {
		wait = max(wait, 2*d.latency-d.flights[overdue-1])
	}
	return wait
}

// spacing is the least time between a departure and the next. Calls are spread over the time that one takes, so that whoever
// comes has the next before him soon. They do not overlap where Atlas answers in a millisecond or two.
func (d departure) spacing() time.Duration { return max(d.latency/maxInFlight, 2*time.Millisecond) }

// gathering is for how long a call waits for more callers: those who shared one that has just landed come again, almost together.
func (d departure) gathering() time.Duration { return d.latency / 16 }

// smoothed is the average of what calls take, after one more. That has a weight of one eighth, and counts for twice the average at
// most, so that a single slow call changes little. 0 is the average of none.
func smoothed(average, last time.Duration) time.Duration {
	if average == 0 {
		return last
	}
	return average + (min(last, 2*average)-average)/8
}
