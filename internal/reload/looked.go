package reload

import (
	"errors"
	"slices"
)

// Looked is what a look at files has found: which there are, which have said something new that is used now, and why others
// are not.
type Looked struct {
	Files, Changed []string
	Err            error
}

// And adds what another look has found.
func (l Looked) And(more Looked) Looked {
	return Looked{slices.Concat(l.Files, more.Files), slices.Concat(l.Changed, more.Changed), errors.Join(l.Err, more.Err)}
}
