package history

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

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

// operations are the history of one org in a model's terms. A create that failed may have minted a
// token or not, which changes nothing that a later one could not; so it is left out, and so is a
// delete that did not happen. One whose outcome nobody knows stays open. For the lenient model a
// delete has a second part: it ends some time before its caller hears of it.
func (h History) operations(org int, lenient bool) []porcupine.Operation {
	var all []porcupine.Operation
	add := func(e Event, answer int64, s step) {
		all = append(all, porcupine.Operation{ClientId: e.Client, Input: s, Call: e.Call, Return: answer})
	}
	for i, e := range h.Events {
		switch {
		case e.Org != org:
		case e.Op == testutil.Create && e.OK:
			add(e, e.Answer, step{kind: stepCreate, generation: h.Born[e.Token].Generation})
		case e.Op == testutil.Delete && e.OK:
			add(e, e.Answer, step{kind: stepDelete, delete: i, holds: !lenient})
			if lenient {
				add(e, e.Answer, step{kind: stepAcknowledge, delete: i})
			}
		case e.Op == testutil.Delete && !e.Harmless:
			add(e, forever, step{kind: stepDelete, delete: i, holds: !lenient})
		}
	}
	return all
}

// register is Atlas as its clients are to see it through the service: one value for each org, which
// a create returns and makes if there is none, and a delete unsets. Tokens are numbered in the
// order of their making, so a token that comes back after its deletion is not taken for a new one.
// Only while a delete is in progress that does not hold off everybody, what it deletes may still be
// handed out.
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

// Illegal returns the orgs whose histories the model rejects, and those that took too long to
// decide. In the lenient one, what a delete takes away may be handed out until its caller hears of
// it; what is legal without that is decided sooner.
func (h History) Illegal(lenient bool, patience time.Duration) (rejected, undecided []int) {
	orgs := map[int]bool{}
	for _, e := range h.Events {
		orgs[e.Org] = true
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

// CheckLegal fails the test if the history is not legal.
func (h History) CheckLegal(t *testing.T, lenient bool) {
	t.Helper()
	if n := h.Strangers(); n > 0 {
		t.Errorf("%d creates returned a token that is not of their caller's org", n)
	}
	if n := h.Violations(); n > 0 {
		t.Errorf("%d creates returned a token that was minted before a delete that was acknowledged before them", n)
	}
	if n := h.Dead(lenient); n > 0 {
		t.Errorf("%d creates returned a token that was dead before they began", n)
	}
	patience := time.Minute
	if lenient {
		patience = 5 * time.Second
	}
	rejected, undecided := h.Illegal(lenient, patience)
	switch {
	case len(rejected) > 0 || len(undecided) > 0 && !lenient:
		t.Errorf("illegal in orgs %v, undecided in %v", rejected, undecided)
	case len(undecided) > 0: // many deletes that wait for long are too much for the model, and dead has judged them
		t.Logf("undecided in orgs %v", undecided)
	}
}
