package server_test

import (
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestProofModel: what a delete takes away may be handed out until that is acknowledged, if it is with a credential that the replica
// has not seen Atlas accept before. But nobody is given it any more once another caller has been given the next one, except where
// replicas cannot reach Redis.
func TestProofModel(t *testing.T) {
	const older, newer = "older", "newer"
	born := map[string]birth{older: {generation: 1, minted: 1, deleted: 30}, newer: {generation: 2, minted: 40}}
	at := func(e event, call, answer int64) event {
		e.call, e.answer, e.callTick, e.ended, e.ok = call, answer, uint64(call), uint64(answer), true
		e.client = int(call)
		return e
	}
	first := at(event{op: testutil.Create, token: older}, 2, 3)
	removal := at(event{op: testutil.Delete, replica: 1, jwt: 1}, 20, 60)
	second := at(event{op: testutil.Create, token: newer}, 35, 45)
	early := at(event{op: testutil.Create, token: older, hit: true}, 32, 34)
	late := at(event{op: testutil.Create, token: older, hit: true}, 50, 55)
	tooLate := at(event{op: testutil.Create, token: older, hit: true}, 70, 75)
	accepted := at(event{op: testutil.Create, token: older, replica: 1, jwt: 1}, 4, 5)
	for name, test := range map[string]struct {
		events                 []event
		strict, lenient, alive bool
	}{
		"in order":                      {[]event{first, removal, second}, true, true, true},
		"during it":                     {[]event{first, removal, early}, true, true, true},
		"during it, with one accepted":  {[]event{first, accepted, removal, early}, true, true, false},
		"during it, after the next one": {[]event{first, removal, second, late}, false, true, true},
		"after it":                      {[]event{first, removal, second, tooLate}, false, false, false},
		"after it, and none other came": {[]event{first, removal, tooLate}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := history{events: test.events, born: born}
			for lenient, want := range map[bool]bool{false: test.strict, true: test.lenient} {
				if rejected, undecided := h.illegal(lenient, time.Minute); len(undecided) > 0 || (len(rejected) == 0) != want {
					t.Errorf("lenient %t: rejected in %v, undecided in %v, want legal %t", lenient, rejected, undecided, want)
				}
			}
			if n := h.dead(false); (n == 0) != test.alive {
				t.Errorf("%d dead, want none: %t", n, test.alive)
			}
		})
	}
}
