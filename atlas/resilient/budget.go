package resilient

import "sync"

const (
	// retryShare is what a call adds to the budget; a retry takes 1. So retries add no more than
	// this to Atlas's load.
	retryShare = 0.1
	// budgetStart is what the process has at the start, and what it lives on with little traffic.
	// budgetMost is what it can save in busy times, for when one lost connection fails many calls
	// at once. A tenant has half of both.
	budgetStart = 10
	budgetMost  = 100
	// maxBudgets is how many tenants' budgets are kept.
	maxBudgets = 10_000
)

// budget bounds the retries: those of a tenant by its own calls, and all together by all calls. So
// a tenant whose calls all fail leaves the others their retries.
type budget struct {
	mu      sync.Mutex
	all     float64            // guarded by mu
	tenants map[string]float64 // guarded by mu
	granted uint64             // guarded by mu
	denied  uint64             // guarded by mu
}

func newBudget() *budget { return &budget{all: budgetStart, tenants: map[string]float64{}} }

// deposit notes a call of a tenant.
func (b *budget) deposit(tenant string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = min(b.all+retryShare, budgetMost)
	own, known := b.tenants[tenant]
	if !known {
		own = budgetStart / 2
		if len(b.tenants) >= maxBudgets {
			clear(b.tenants)
		}
	}
	b.tenants[tenant] = min(own+retryShare, budgetMost/2)
}

// withdraw reports whether a tenant may make a retry.
func (b *budget) withdraw(tenant string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all < 1 || b.tenants[tenant] < 1 {
		b.denied++
		return false
	}
	b.all--
	b.tenants[tenant]--
	b.granted++
	return true
}

func (b *budget) counts() (granted, denied uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.granted, b.denied
}
