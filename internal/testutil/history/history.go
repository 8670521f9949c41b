// Package history checks histories of concurrent creates and deletes against a model, and has
// broken designs that the check must reject.
package history

import (
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// Event is one call as its caller saw it, with the times before and after it: by the clock, for the
// model, and by the emulator's logical clock, which orders it relative to the life of each token.
type Event struct {
	Client          int
	Op              testutil.Operation
	Org             int
	Call, Answer    int64
	CallTick, Ended uint64
	OK              bool   // a create with a token, a delete that was acknowledged
	Harmless        bool   // of a failed delete: Atlas provably did not execute it
	Token           string // of a create
	Hit             bool   // of a create: from the cache
	Replica, JWT    int    // index of the replica and of the org's credential
	Invented        bool   // of a delete: its JWT has no valid signature
	Either          [2]int // of a create by a profile that is changing its org: the two orgs
}

// History is the calls of many callers, and Atlas's record of the tokens.
type History struct {
	Events []Event
	Born   map[string]Birth
}

// Birth is Atlas's record of a token.
type Birth struct {
	Org, Generation int // the org, and the token's number among its tokens
	Minted, Deleted uint64
}

// New combines the events with the tokens that Atlas has minted.
func New(events []Event, em *emulator.Emulator) History {
	// Atlas refuses invented JWTs, so these calls must not affect others.
	events = slices.DeleteFunc(events, func(e Event) bool { return e.Invented })
	orgs, count := map[string]int{}, map[int]int{}
	for i, org := range em.Orgs() {
		orgs[org.ID] = i
	}
	h := History{Events: events, Born: map[string]Birth{}}
	for _, token := range em.Tokens() {
		org := orgs[token.OrgID]
		count[org]++
		h.Born[token.Value] = Birth{org, count[org], token.Minted, token.Deleted}
	}
	for i, e := range h.Events {
		if b, known := h.Born[e.Token]; known && e.Either != [2]int{} && slices.Contains(e.Either[:], b.Org) {
			h.Events[i].Org = b.Org
		}
	}
	return h
}

// Strangers counts the creates that returned a token that is not of their caller's org.
func (h History) Strangers() (n int) {
	for _, e := range h.Events {
		if e.Op != testutil.Create || !e.OK {
			continue
		}
		if b, known := h.Born[e.Token]; !known || b.Org != e.Org {
			n++
		}
	}
	return n
}

// Violations counts the creates that break the guarantee that holds under every fault: a create
// that begins after a delete was acknowledged never returns a token minted before that delete.
func (h History) Violations() int {
	type ack struct{ ended, began uint64 }
	acks := map[int][]ack{}
	for _, e := range h.Events {
		if e.Op == testutil.Delete && e.OK {
			acks[e.Org] = append(acks[e.Org], ack{e.Ended, e.CallTick})
		}
	}
	// Of the deletes acknowledged by a time, the one that began last is the strictest.
	for _, list := range acks {
		slices.SortFunc(list, func(a, b ack) int { return int(a.ended) - int(b.ended) })
		for i := 1; i < len(list); i++ {
			list[i].began = max(list[i].began, list[i-1].began)
		}
	}
	n := 0
	for _, e := range h.Events {
		if e.Op != testutil.Create || !e.OK {
			continue
		}
		list := acks[e.Org]
		i, _ := slices.BinarySearchFunc(list, e.CallTick, func(a ack, at uint64) int { return int(a.ended) - int(at) })
		if i > 0 && h.Born[e.Token].Minted < list[i-1].began {
			n++
		}
	}
	return n
}

// Dead counts the creates that returned a token that was deleted at Atlas before they began. It
// uses the emulator's record, and finds what the model accepts because a delete of unknown outcome
// may take effect at any time. If not all replicas reach Redis, or the deleting replica has not
// seen Atlas accept the credential before, a token may be returned until its delete is
// acknowledged, or longer if it never is.
func (h History) Dead(lenient bool) int {
	deletes := map[int][]Event{}
	for _, e := range h.Events {
		if e.Op == testutil.Delete && !e.Harmless {
			deletes[e.Org] = append(deletes[e.Org], e)
		}
	}
	known := h.known()
	n := 0
	for _, e := range h.Events {
		if e.Op != testutil.Create || !e.OK {
			continue
		}
		b := h.Born[e.Token]
		died := b.Deleted != 0 && b.Deleted < e.CallTick
		excused := func(d Event) bool {
			return d.CallTick < b.Deleted && (!d.OK || d.Ended > e.CallTick) && (lenient || !known(d))
		}
		if died && !slices.ContainsFunc(deletes[e.Org], excused) {
			n++
		}
	}
	return n
}

// Late counts the tokens that were deleted more than slack after every delete that could have
// deleted them had returned: a delete is not sent after its caller has given up.
func (h History) Late(slack time.Duration) (n int) {
	for _, b := range h.Born {
		if b.Deleted == 0 {
			continue
		}
		before := int64(0) // a time before its deletion
		for _, e := range h.Events {
			if e.Ended < b.Deleted {
				before = max(before, e.Answer)
			}
		}
		if !slices.ContainsFunc(h.Events, func(e Event) bool {
			return e.Op == testutil.Delete && e.Org == b.Org && e.CallTick < b.Deleted && e.Answer+slack.Nanoseconds() > before
		}) {
			n++
		}
	}
	return n
}

// known returns a function that reports whether the cache is bypassed during a delete: whether the
// replica has seen Atlas accept the credential, or obtained it from Atlas. During other deletes a
// cached token may be dead until they are acknowledged.
func (h History) known() func(removal Event) bool {
	type credential struct{ org, replica, jwt int }
	accepted := map[credential]uint64{} // when a replica first saw Atlas accept it
	for _, e := range h.Events {
		c := credential{e.Org, e.Replica, e.JWT}
		if at, seen := accepted[c]; e.OK && !e.Hit && (!seen || e.Ended < at) {
			accepted[c] = e.Ended
		}
	}
	return func(d Event) bool {
		at, seen := accepted[credential{d.Org, d.Replica, d.JWT}]
		return d.JWT >= FirstProfile || seen && at < d.CallTick
	}
}

// Hits returns the share of creates that were cache hits, and of those during which a delete was in
// progress.
func (h History) Hits() (hits, overlapping float64) {
	deletes := map[int][]Event{}
	for _, e := range h.Events {
		if e.Op == testutil.Delete {
			deletes[e.Org] = append(deletes[e.Org], e)
		}
	}
	all := 0.
	for _, e := range h.Events {
		if e.Op != testutil.Create || !e.OK {
			continue
		}
		all++
		if e.Hit {
			hits++
		}
		if slices.ContainsFunc(deletes[e.Org], func(d Event) bool { return d.CallTick < e.Ended && e.CallTick < d.Ended }) {
			overlapping++
		}
	}
	return hits / max(all, 1), overlapping / max(all, 1)
}

// Values of Event.JWT beyond the org's own two credentials.
const (
	FirstProfile = 2
	Pairs        = 3
)

// Invent returns a JWT with the claims of another and an invalid signature.
func Invent(jwt string) string { return jwt[:strings.LastIndexByte(jwt, '.')+1] + "bWFkZSB1cA" }

// IsHarmless reports whether a failed call provably had no effect at Atlas.
func IsHarmless(out testutil.Outcome) bool {
	if strings.Contains(out.Message, "connect: connection refused") { // it reached no replica
		return true
	}
	switch out.Reason {
	case "ATLAS_RATE_LIMITED", "ATLAS_CONFLICT", "ATLAS_FORBIDDEN", "CREDENTIAL_REJECTED", "SERVICE_CREDENTIAL_REJECTED", "CALLER_NOT_PERMITTED", "OVERLOADED":
		return true
	case "ATLAS_UNREACHABLE":
		return out.Metadata["outcome"] == ""
	}
	return false
}
