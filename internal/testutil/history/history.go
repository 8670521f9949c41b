// Package history judges what many callers saw of tokens being created and deleted, and has broken
// designs that it must reject.
package history

import (
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// Event is one call as its caller saw it, with the time before it and after it: on the clock, for
// the models, and on the logical clock of the emulator, which puts it in order with the life of
// each token.
type Event struct {
	Client          int
	Op              testutil.Operation
	Org             int
	Call, Answer    int64
	CallTick, Ended uint64
	OK              bool   // a create with a token, a delete that was acknowledged
	Harmless        bool   // of a delete that failed: Atlas provably did not carry it out
	Token           string // of a create
	Hit             bool   // of a create: from memory
	Replica, JWT    int    // which of the replicas, and of the org's credentials
	MadeUp          bool   // of a delete: its JWT is nobody's
	Either          [2]int // of a create by a profile that is changing its org: the two, of which the token says which
}

// History is what many callers saw, and what Atlas knows of the tokens.
type History struct {
	Events []Event
	Born   map[string]Birth
}

// Birth is where a token comes from.
type Birth struct {
	Org, Generation int // of the org's tokens, in the order in which they were minted
	Minted, Deleted uint64
}

// New puts the events in relation to the tokens that Atlas has minted.
func New(events []Event, em *emulator.Emulator) History {
	// Atlas refuses what is made up. Whatever its caller was told, nothing happened, and nobody
	// else may see anything of it.
	events = slices.DeleteFunc(events, func(e Event) bool { return e.MadeUp })
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

// Strangers counts the creates that returned what Atlas has not minted for the org of their caller.
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

// Violations counts the creates that break the one promise that holds whatever fails: a create that
// begins after a delete was acknowledged never returns a token that was minted before that delete.
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

// Dead counts the creates that returned a token that was deleted at Atlas before they began. The
// emulator knows when that was, so this needs no model, and sees what a model lets pass because a
// delete of unknown outcome may happen at any time. Where not all replicas reach Redis, or the
// replica that deletes has not seen Atlas accept the credential before, a token may be handed out
// until its delete is acknowledged, or for longer if it never is.
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

// Late counts the tokens that were deleted more than slack after every delete that could have done
// so was answered: a delete that its caller has given up is not to be sent after that.
func (h History) Late(slack time.Duration) (n int) {
	for _, b := range h.Born {
		if b.Deleted == 0 {
			continue
		}
		before := int64(0) // a time before it was deleted
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

// known tells the deletes for which a replica holds off everybody else: those with a credential
// that it has seen Atlas accept, or that Atlas has issued to it. What is handed out during another
// one may be dead, until that is acknowledged.
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

// Hits is the share of creates that were answered from memory, and overlapping that of creates
// during which a delete was in progress.
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

// What an event's jwt is where it is not one of the org's own two.
const (
	FirstProfile = 2
	Pairs        = 3
)

// MadeUp is a JWT with the claims of another, and a signature of nobody's.
func MadeUp(jwt string) string { return jwt[:strings.LastIndexByte(jwt, '.')+1] + "bWFkZSB1cA" }

// RefusedConnection is in the message of a call that no replica ever saw.
const RefusedConnection = "connect: connection refused"

// IsHarmless reports whether a call that failed says of itself that Atlas did nothing. Whatever
// else failed may have.
func IsHarmless(out testutil.Outcome) bool {
	if strings.Contains(out.Message, RefusedConnection) {
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
