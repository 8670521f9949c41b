package proof

import (
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil/history"
)

// TestProofModel checks the model: a token may be returned during its delete if the replica has not
// seen Atlas accept the delete's credential before, but not after another caller has got the next
// token, unless replicas cannot reach Redis.
func TestProofModel(t *testing.T) {
	const older, newer = "older", "newer"
	born := map[string]history.Birth{older: {Generation: 1, Minted: 1, Deleted: 30}, newer: {Generation: 2, Minted: 40}}
	at := func(e history.Event, call, answer int64) history.Event {
		e.Call, e.Answer, e.CallTick, e.Ended, e.OK = call, answer, uint64(call), uint64(answer), true
		e.Client = int(call)
		return e
	}
	first := at(history.Event{Op: testutil.Create, Token: older}, 2, 3)
	removal := at(history.Event{Op: testutil.Delete, Replica: 1, JWT: 1}, 20, 60)
	second := at(history.Event{Op: testutil.Create, Token: newer}, 35, 45)
	early := at(history.Event{Op: testutil.Create, Token: older, Hit: true}, 32, 34)
	late := at(history.Event{Op: testutil.Create, Token: older, Hit: true}, 50, 55)
	tooLate := at(history.Event{Op: testutil.Create, Token: older, Hit: true}, 70, 75)
	accepted := at(history.Event{Op: testutil.Create, Token: older, Replica: 1, JWT: 1}, 4, 5)
	for name, test := range map[string]struct {
		events                 []history.Event
		strict, lenient, alive bool
	}{
		"in order":                               {[]history.Event{first, removal, second}, true, true, true},
		"during it":                              {[]history.Event{first, removal, early}, true, true, true},
		"during it, with an accepted credential": {[]history.Event{first, accepted, removal, early}, true, true, false},
		"during it, after the next one":          {[]history.Event{first, removal, second, late}, false, true, true},
		"after it":                               {[]history.Event{first, removal, second, tooLate}, false, false, false},
		"after it, without a next one":           {[]history.Event{first, removal, tooLate}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := history.History{Events: test.events, Born: born}
			for lenient, want := range map[bool]bool{false: test.strict, true: test.lenient} {
				if rejected, undecided := h.Illegal(lenient, time.Minute); len(undecided) > 0 || (len(rejected) == 0) != want {
					t.Errorf("lenient %t: rejected in %v, undecided in %v, want legal %t", lenient, rejected, undecided, want)
				}
			}
			if n := h.Dead(false); (n == 0) != test.alive {
				t.Errorf("%d dead tokens, want none: %t", n, test.alive)
			}
		})
	}
}
