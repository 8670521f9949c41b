package tokencache

import (
	"context"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// store remembers tokens, each behind the fence of its org.
//
// A fence is where an org stands: its generation. Whoever asks Atlas notes it before (view), and what Atlas answers is
// remembered under the generation that was noted, and read only for as long as that is the present one. So a token that was
// asked for before a delete is never read after it.
//
// Two things make a new generation. One is a delete. It makes one before and one after, and in between the org is held: then
// nothing is read, so that nobody is given a token that is dead already. The other is that Atlas answers with another token
// than the last one: then somebody has deleted that behind our back, or the answer is the older one, and nobody knows which,
// so neither is kept.
//
// A credential that Atlas has not accepted does neither: for it nothing is held before its delete, and only what Atlas
// confirms makes a new generation. That is still right for everybody else. Until such a delete is confirmed, the old token
// may be read, as by a caller who came before the delete; but not by anybody after one who was given the new token, because
// that answer made a new generation before it was handed over.
type store interface {
	// get returns what is remembered, and the view under which to put. A store in trouble has nothing.
	get(context.Context, request) (found, view)
	// put notes what Atlas answered when it was asked after view was taken, and remembers it for no longer than life. Once it
	// has returned, no other token of the org is read.
	put(ctx context.Context, v view, r request, token atlas.Token, life time.Duration)
	// forget removes what is remembered for one credential.
	forget(context.Context, request)
	// deletion prepares a delete in the org; "" means every org.
	deletion(org string) deletion
	check() error
	close()
}

// deletion is a delete as its org's fence sees it. Without a begin, nothing is held.
type deletion interface {
	// begin holds the org until the end.
	begin(context.Context)
	// end makes a new generation and lets go, after the settle time if Atlas may yet carry the delete out. It returns nil when
	// nothing is read any more that the delete has deleted, or an *UnsettledError if ctx ended before that could be said.
	end(context.Context, outcome) error
}

// view is the state of the fences before Atlas was asked. The zero view of Redis cannot be put under.
type view struct {
	at     time.Time
	memory generation
	redis  redisView
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
