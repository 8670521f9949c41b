package redis

import (
	"context"
	"errors"
	"time"
)

// Outcome is the outcome of a delete at Atlas.
type Outcome int

// The outcomes of a delete.
const (
	Done    Outcome = iota // Atlas has confirmed it
	NotDone                // Atlas has not carried it out, and will not
	Unknown                // it may have taken effect, or may still do so
)

// Deletion changes the fence of an org for one delete.
type Deletion struct {
	store      *Store
	key, field string
}

// Deletion prepares a delete in an org; "" is every org.
func (s *Store) Deletion(org string) *Deletion {
	return &Deletion{store: s, key: orgKey(org), field: "hold:" + newEpoch()}
}

// Begin holds the org until End: nothing is read that may be deleted already. If it fails, other
// replicas read the old token until End. The hold of a replica that is killed ends by itself, later
// than any delete.
func (d *Deletion) Begin() {
	_ = d.hold(insist, "", d.store.options.CallTimeout+d.store.options.SettleTime)
}

func (d *Deletion) hold(how effort, epoch string, lasting time.Duration) error {
	began := time.Now()
	answer, err := d.store.client.do(context.Background(), "move", how, scriptHold, []string{d.key},
		epoch, d.field, milliseconds(lasting), milliseconds(d.store.keepFences()))
	if err == nil && answer != any(int64(1)) {
		err = errMalformed
		d.store.client.health.report(began, err)
	}
	return err
}

// End moves the fence, unless the delete was not carried out, and ends the hold: at once, or after
// the settle time if the outcome is unknown. It returns nil when the deleted token cannot be read
// any more. If Redis cannot be reached that takes until all copies have expired; if ctx ends before
// that, its error is returned, and moving the fence is retried without the caller.
func (d *Deletion) End(ctx context.Context, outcome Outcome) error {
	s := d.store
	if outcome == NotDone {
		_ = d.hold(insist, "", 0) // if it fails, the hold expires
		return nil
	}
	lasting := time.Duration(0)
	if outcome == Unknown {
		lasting = s.options.SettleTime
	}
	if d.hold(insist, newEpoch(), lasting) == nil {
		return nil
	}
	// By then, every copy that was stored before the delete took effect has expired.
	last := s.lifetime() + lasting
	moved := s.client.retry(s.lateMoves, last, func() error { return d.hold(patient, newEpoch(), lasting) })
	if outcome != Done {
		return nil // the caller does not get an acknowledgement
	}
	expired := time.NewTimer(last)
	defer expired.Stop()
	select {
	case <-moved:
		return nil
	case <-expired.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.client.ctx.Done():
		return errClosed
	}
}

// Bounds of the operations that are retried at a time, because callers can invent any number of
// credentials. Values that are not dropped expire.
const (
	maxLateMoves = 256
	maxLateDrops = 64
)

var errClosed = errors.New("token cache closed")
