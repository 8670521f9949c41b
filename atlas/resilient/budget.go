package resilient

import "sync"

const (
	// budgetShare is what a call adds to the budget; a retry takes 1. So retries add no more than this share to Atlas's load.
	budgetShare = 0.1
	// budgetStart is what there is at the start, and what a client with little traffic lives on; budgetMost is what busy times
	// can save up, for when one lost connection fails many calls at once.
	budgetStart = 10
	budgetMost  = 100
)

// budget bounds the retries of the whole process. Failsafe-go's counts retries that are in progress, so calls that come one
// after the other would all be retried, which triples the load of an Atlas that has no strength left.
type budget struct {
	mu      sync.Mutex
	left    float64 // guarded by mu
	granted uint64  // guarded by mu
	denied  uint64  // guarded by mu
}

func newBudget() *budget { return &budget{left: budgetStart} }

func (b *budget) deposit() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = min(b.left+budgetShare, budgetMost)
}

func (b *budget) withdraw() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left < 1 {
		b.denied++
		return false
	}
	b.left--
	b.granted++
	return true
}

func (b *budget) counts() (granted, denied uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.granted, b.denied
}
