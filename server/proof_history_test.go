package server_test

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// event is one call as its caller saw it, with the time before it and after it: on the clock, for the models, and on the
// logical clock of the emulator, which puts it in order with the life of each token.
type event struct {
	client          int
	op              testutil.Operation
	org             int
	call, answer    int64
	callTick, ended uint64
	ok              bool   // a create with a token, a delete that was acknowledged
	harmless        bool   // of a delete that failed: Atlas provably did not carry it out
	token           string // of a create
	hit             bool   // of a create: from memory
	replica, jwt    int    // which of the replicas, and of the org's credentials
	madeUp          bool   // of a delete: its JWT is nobody's
	either          [2]int // of a create by a profile that is changing its org: the two, of which the token says which
}

// history is what many callers saw, and what Atlas knows of the tokens.
type history struct {
	events []event
	born   map[string]birth
}

// birth is where a token comes from.
type birth struct {
	org, generation int // of the org's tokens, in the order in which they were minted
	minted, deleted uint64
}

func newHistory(events []event, em *emulator.Emulator) history {
	// Atlas refuses what is made up. Whatever its caller was told, nothing happened, and nobody else may see anything of it.
	events = slices.DeleteFunc(events, func(e event) bool { return e.madeUp })
	orgs, count := map[string]int{}, map[int]int{}
	for i, org := range em.Orgs() {
		orgs[org.ID] = i
	}
	h := history{events: events, born: map[string]birth{}}
	for _, token := range em.Tokens() {
		org := orgs[token.OrgID]
		count[org]++
		h.born[token.Value] = birth{org, count[org], token.Minted, token.Deleted}
	}
	for i, e := range h.events {
		if b, known := h.born[e.token]; known && e.either != [2]int{} && slices.Contains(e.either[:], b.org) {
			h.events[i].org = b.org
		}
	}
	return h
}

// strangers counts the creates that returned what Atlas has not minted for the org of their caller.
func (h history) strangers() (n int) {
	for _, e := range h.events {
		if e.op != testutil.Create || !e.ok {
			continue
		}
		if b, known := h.born[e.token]; !known || b.org != e.org {
			n++
		}
	}
	return n
}

// violations counts the creates that break the one promise that holds whatever fails: a create that begins after a delete
// was acknowledged never returns a token that was minted before that delete.
func (h history) violations() int {
	type ack struct{ ended, began uint64 }
	acks := map[int][]ack{}
	for _, e := range h.events {
		if e.op == testutil.Delete && e.ok {
			acks[e.org] = append(acks[e.org], ack{e.ended, e.callTick})
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
	for _, e := range h.events {
		if e.op != testutil.Create || !e.ok {
			continue
		}
		list := acks[e.org]
		i, _ := slices.BinarySearchFunc(list, e.callTick, func(a ack, at uint64) int { return int(a.ended) - int(at) })
		if i > 0 && h.born[e.token].minted < list[i-1].began {
			n++
		}
	}
	return n
}

// dead counts the creates that returned a token that was deleted at Atlas before they began. The emulator knows when that
// was, so this needs no model, and sees what a model lets pass because a delete of unknown outcome may happen at any time.
// Where not all replicas reach Redis, or the replica that deletes has not seen Atlas accept the credential before, a token may
// be handed out until its delete is acknowledged, or for longer if it never is.
func (h history) dead(lenient bool) int {
	deletes := map[int][]event{}
	for _, e := range h.events {
		if e.op == testutil.Delete && !e.harmless {
			deletes[e.org] = append(deletes[e.org], e)
		}
	}
	known := h.known()
	n := 0
	for _, e := range h.events {
		if e.op != testutil.Create || !e.ok {
			continue
		}
		b := h.born[e.token]
		died := b.deleted != 0 && b.deleted < e.callTick
		excused := func(d event) bool {
			return d.callTick < b.deleted && (!d.ok || d.ended > e.callTick) && (lenient || !known(d))
		}
		if died && !slices.ContainsFunc(deletes[e.org], excused) {
			n++
		}
	}
	return n
}

// known tells the deletes for which a replica holds off everybody else: those with a credential that it has seen Atlas accept,
// or that Atlas has issued to it. What is handed out during another one may be dead, until that is acknowledged.
func (h history) known() func(removal event) bool {
	type credential struct{ org, replica, jwt int }
	accepted := map[credential]uint64{} // when a replica first saw Atlas accept it
	for _, e := range h.events {
		c := credential{e.org, e.replica, e.jwt}
		if at, seen := accepted[c]; e.ok && !e.hit && (!seen || e.ended < at) {
			accepted[c] = e.ended
		}
	}
	return func(d event) bool {
		at, seen := accepted[credential{d.org, d.replica, d.jwt}]
		return d.jwt >= profiles || seen && at < d.callTick
	}
}

// hits is the share of creates that were answered from memory, and overlapping that of creates during which a delete was in
// progress.
func (h history) hits() (hits, overlapping float64) {
	deletes := map[int][]event{}
	for _, e := range h.events {
		if e.op == testutil.Delete {
			deletes[e.org] = append(deletes[e.org], e)
		}
	}
	all := 0.
	for _, e := range h.events {
		if e.op != testutil.Create || !e.ok {
			continue
		}
		all++
		if e.hit {
			hits++
		}
		if slices.ContainsFunc(deletes[e.org], func(d event) bool { return d.callTick < e.ended && e.callTick < d.ended }) {
			overlapping++
		}
	}
	return hits / max(all, 1), overlapping / max(all, 1)
}

// step is an event as a model has it.
type step struct {
	kind       stepKind
	delete     int  // which one, of those that end
	holds      bool // of a delete: nobody else is answered from memory meanwhile
	generation int
}

type stepKind int

const (
	stepCreate stepKind = iota
	stepDelete
	stepAcknowledge
)

// forever is when a call returns that nobody saw return: it may take effect at any time, or never.
const forever = math.MaxInt64

// operations are the history of one org in a model's terms. A create that failed may have minted a token or not, which
// changes nothing that a later one could not; so it is left out, and so is a delete that did not happen. One whose outcome
// nobody knows stays open. For the lenient model a delete has a second part: it ends some time before its caller hears of it.
func (h history) operations(org int, lenient bool) []porcupine.Operation {
	var all []porcupine.Operation
	add := func(e event, answer int64, s step) {
		all = append(all, porcupine.Operation{ClientId: e.client, Input: s, Call: e.call, Return: answer})
	}
	for i, e := range h.events {
		switch {
		case e.org != org:
		case e.op == testutil.Create && e.ok:
			add(e, e.answer, step{kind: stepCreate, generation: h.born[e.token].generation})
		case e.op == testutil.Delete && e.ok:
			add(e, e.answer, step{kind: stepDelete, delete: i, holds: !lenient})
			if lenient {
				add(e, e.answer, step{kind: stepAcknowledge, delete: i})
			}
		case e.op == testutil.Delete && !e.harmless:
			add(e, forever, step{kind: stepDelete, delete: i, holds: !lenient})
		}
	}
	return all
}

// register is Atlas as its clients are to see it through the service: one value for each org, which a create returns and
// makes if there is none, and a delete unsets. Tokens are numbered in the order of their making, so a token that comes back
// after its deletion is not taken for a new one. Only while a delete is in progress that does not hold off everybody, what it
// deletes may still be handed out.
type register struct {
	last  int // the latest token that was returned
	live  bool
	dying string // " delete:generation" for each such delete that has taken effect and is not acknowledged
}

var model = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		l, s := state.(register), input.(step)
		switch s.kind {
		case stepDelete:
			switch {
			case s.holds:
			case l.live:
				l.dying += fmt.Sprintf(" %d:%d", s.delete, l.last)
			default:
				l.dying += fmt.Sprintf(" %d:0", s.delete)
			}
			l.live = false
			return true, l
		case stepAcknowledge:
			mark, kept, found := fmt.Sprintf("%d:", s.delete), "", false
			for _, word := range strings.Fields(l.dying) {
				if strings.HasPrefix(word, mark) {
					found = true
				} else {
					kept += " " + word
				}
			}
			l.dying = kept
			return found, l
		}
		if l.live && s.generation == l.last || !l.live && s.generation > l.last {
			l.last, l.live = s.generation, true
			return true, l
		}
		for _, word := range strings.Fields(l.dying) {
			if strings.HasSuffix(word, fmt.Sprintf(":%d", s.generation)) {
				return true, l
			}
		}
		return false, l
	},
}

// illegal returns the orgs whose histories the model rejects, and those that took too long to decide. In the lenient one, what a
// delete takes away may be handed out until its caller hears of it; what is legal without that is decided sooner.
func (h history) illegal(lenient bool, patience time.Duration) (rejected, undecided []int) {
	orgs := map[int]bool{}
	for _, e := range h.events {
		orgs[e.org] = true
	}
	for org := range orgs {
		verdict := porcupine.CheckOperationsTimeout(model, h.operations(org, false), patience)
		if verdict != porcupine.Ok && lenient {
			verdict = porcupine.CheckOperationsTimeout(model, h.operations(org, true), patience)
		}
		switch verdict {
		case porcupine.Illegal:
			rejected = append(rejected, org)
		case porcupine.Unknown:
			undecided = append(undecided, org)
		}
	}
	return rejected, undecided
}
