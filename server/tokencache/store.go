package tokencache

import (
	"context"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// store remembers tokens, each behind the fence of its org.
//
// A fence is a value that changes with every move. Whoever asks Atlas notes it before (view), and what Atlas answers is
// remembered only for as long as the fence is where it was noted. A delete moves it twice. Moved before, no token that
// was remembered is read while Atlas deletes it; moved after, none is remembered that was asked for before the delete
// took effect. Between the two the fence is held: nothing is read or stored, or one caller could be given the old token
// after another already has the new one.
type store interface {
	// look returns what is remembered, and the view under which to fill. A store in trouble has nothing.
	look(context.Context, key, Credential) (found, view)
	// fill remembers a token that was asked for after view was taken, for no longer than life.
	fill(ctx context.Context, v view, k key, cred Credential, token atlas.Token, life time.Duration)
	// drop forgets what is remembered for one credential.
	drop(context.Context, key, Credential)
	// hold begins a delete in the org; "" means every org.
	hold(ctx context.Context, org string) hold
	check() error
	close()
}

// hold is a delete in progress.
type hold interface {
	// end moves the fence again. It returns nil when nothing is remembered any more that the delete has deleted, or an
	// *UnsettledError if ctx ended before that could be said.
	end(ctx context.Context, e ended) error
}

// ended is what came of a delete.
type ended struct {
	done       bool // Delete got as far as asking
	ok         bool // Atlas has confirmed it
	unknown    bool // it may yet take effect, so the fence stays held for the settle time
	everything bool // another org than that of the hold was meant
}

// view is the state of the fences before Atlas was asked. The zero view cannot be filled under.
type view struct {
	valid bool // neither fence was held
	at    time.Time
	seq   uint64 // of memory
	redis redisView
}

// found is what is remembered for a credential.
type found struct {
	token atlas.Token
	org   string
	age   time.Duration // since Atlas was asked
	ttl   time.Duration // left; not above zero: kept for when Atlas fails
}

func (f found) there() bool  { return f.token != "" }
func (f found) usable() bool { return f.token != "" && f.ttl > 0 }

func (f found) result() Result {
	return Result{f.token, f.org, Status{Hit: true, Stale: f.ttl <= 0, TTL: f.ttl, Age: f.age}}
}
