package tokencache

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptrace"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// steppedCall is a call to Atlas that takes effect, and is answered, when the test says so.
type steppedCall struct{ effect, answer chan struct{} }

func newSteppedCall() steppedCall { return steppedCall{make(chan struct{}), make(chan struct{})} }

func (s steppedCall) ask(ask func(context.Context) (Answer, error)) func(context.Context) (Answer, error) {
	return func(ctx context.Context) (Answer, error) {
		<-s.effect
		answer, err := ask(ctx)
		<-s.answer
		return answer, err
	}
}

func (s steppedCall) send(send func(context.Context) (atlas.JWT, error)) func(context.Context) (atlas.JWT, error) {
	return func(ctx context.Context) (atlas.JWT, error) {
		<-s.effect
		jwt, err := send(ctx)
		<-s.answer
		return jwt, err
	}
}

// begin runs a call in the background until it waits; the channel is closed when it has returned.
func begin(call func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		call()
	}()
	synctest.Wait()
	return done
}

// deleteAnd caches tokens for three credentials, two of them of one org, deletes with one of these
// two, and wants left cached tokens to remain.
func deleteAnd(t *testing.T, outcome error, want int) {
	t.Helper()
	bubble(t, Config{TTL: time.Hour, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
		far := newJWT(orgB, "u", time.Time{})
		for _, j := range []atlas.JWT{jwt, other, far} {
			d.want(j, miss)
		}
		err := d.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) { return jwt, outcome })
		if !errors.Is(err, outcome) {
			t.Errorf("got %v, want %v", err, outcome)
		}
		after(time.Minute) // until an unknown outcome is settled
		if n := d.readable(); n != want {
			t.Errorf("%d tokens are cached, want %d", n, want)
		}
	})
}

// TestDeleteInvalidatesItsOrg invalidates the org if Atlas has, or may have, carried the delete
// out. A status that comes from a proxy says nothing about Atlas.
func TestDeleteInvalidatesItsOrg(t *testing.T) {
	for name, outcome := range map[string]error{
		"deleted": nil,
		"408":     statusError(atlas.OpDelete, 408),
		"425":     statusError(atlas.OpDelete, 425),
		"499":     statusError(atlas.OpDelete, 499),
		"502":     statusError(atlas.OpDelete, 502),
		"reset":   kindError(atlas.OpDelete, atlas.KindUnreachable),
		"else":    errors.New("else"),
	} {
		t.Run(name, func(t *testing.T) { deleteAnd(t, outcome, 1) })
	}
}

// TestRefusedDeleteLeavesTheCache leaves the cache, except for the credential itself after a 401.
func TestRefusedDeleteLeavesTheCache(t *testing.T) {
	for code, want := range map[int]int{400: 3, 401: 2, 403: 2, 404: 3, 409: 3, 429: 3} {
		t.Run(fmt.Sprint(code), func(t *testing.T) { deleteAnd(t, statusError(atlas.OpDelete, code), want) })
	}
}

func TestFault88UnsentDeleteLeavesTheCache(t *testing.T) {
	for name, outcome := range map[string]error{
		"breaker open":    &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindUnavailable, Err: errors.New("open")},
		"no slot":         &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindOverloaded, Err: errors.New("full")},
		"dial failure":    &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindUnreachable, Err: errors.New("refused")},
		"login timed out": &atlas.Error{Op: atlas.OpLogIn, Kind: atlas.KindTimeout, Sent: true, Err: errors.New("slow")},
	} {
		t.Run(name, func(t *testing.T) { deleteAnd(t, outcome, 3) })
	}
}

// TestFault86UnsentDeleteIsCancelledWithItsCaller cancels a delete with its caller until there is a
// connection to send it on. After that it runs to its end.
func TestFault86UnsentDeleteIsCancelledWithItsCaller(t *testing.T) {
	for name, sent := range map[string]bool{"not sent": false, "sent": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				d.want(jwt, miss)
				ctx, leave := context.WithTimeout(t.Context(), time.Second)
				defer leave()
				var carriedOut atomic.Bool
				err := d.Delete(ctx, own(jwt), func(ctx context.Context) (atlas.JWT, error) {
					if sent {
						httptrace.ContextClientTrace(ctx).GotConn(httptrace.GotConnInfo{})
					}
					select {
					case <-ctx.Done():
						return jwt, &atlas.Error{Op: atlas.OpDelete, Kind: atlas.KindCanceled, Sent: sent, Err: ctx.Err()}
					case <-time.After(8 * time.Second):
						carriedOut.Store(true)
						return d.world.send(jwt)(ctx)
					}
				})
				if _, ok := errors.AsType[*UnsettledError](err); !ok {
					t.Errorf("got %v, want an *UnsettledError", err)
				}
				after(10 * time.Second)
				if carriedOut.Load() != sent {
					t.Errorf("carried out: %t, want %t", carriedOut.Load(), sent)
				}
				if n := d.readable(); (n == 0) != sent {
					t.Errorf("%d tokens are cached", n)
				}
			})
		})
	}
}

// TestFault86DeleteIsNotRepeatedForACallerThatLeft does not send a delete again if the caller left
// during the login that follows a 401.
func TestFault86DeleteIsNotRepeatedForACallerThatLeft(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	leave()
	w := newFakeAtlas()
	r := request{cred: own(newJWT(orgA, "u", time.Time{})), caller: ctx}
	_, err := newUpstream(w).delete(t.Context(), r)
	if e, ok := errors.AsType[*atlas.Error](err); !ok || e.Sent || !errors.Is(err, context.Canceled) || w.deletes[orgA] != 0 {
		t.Errorf("got %v, and %d deletes", err, w.deletes[orgA])
	}
}

func TestDeleteInFlightHoldsOrg(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
		d.accept(other)
		d.want(jwt, miss)
		s := newSteppedCall()
		deleted := begin(func() {
			if err := d.Delete(t.Context(), own(other), s.send(d.world.send(other))); err != nil {
				t.Error(err)
			}
		})
		d.want(jwt, miss)
		d.want(jwt, miss)
		close(s.effect)
		synctest.Wait()
		d.want(jwt, miss)
		d.want(jwt, miss)
		close(s.answer)
		<-deleted
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

// TestOverlappingDeletesHoldOrg keeps the org held until the last of two overlapping deletes ends.
func TestOverlappingDeletesHoldOrg(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.accept(jwt)
		first, second := newSteppedCall(), newSteppedCall()
		var done []<-chan struct{}
		for _, s := range []steppedCall{first, second} {
			done = append(done, begin(func() { _ = d.Delete(t.Context(), own(jwt), s.send(d.world.send(jwt))) }))
		}
		close(first.effect)
		close(first.answer)
		<-done[0]
		d.want(jwt, miss)
		d.want(jwt, miss)
		close(second.effect)
		close(second.answer)
		<-done[1]
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

func TestCreateBeforeDeleteIsNotStored(t *testing.T) {
	for name, outcome := range map[string]error{"deleted": nil, "unknown": statusError(atlas.OpDelete, 504)} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour, SettleTime: 1}, func(t *testing.T, d *testCache) {
				jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
				d.accept(other)
				old, s := d.world.token(orgA), newSteppedCall()
				created := begin(func() {
					result, err := d.Create(t.Context(), own(jwt), false, s.ask(d.world.ask(jwt)))
					if err != nil || result.Token != old {
						t.Errorf("got %q, %v", string(result.Token), err)
					}
				})
				close(s.effect)
				synctest.Wait()
				_ = d.Delete(t.Context(), own(other), d.world.sendAnd(other, outcome))
				close(s.answer)
				<-created
				if n := d.readable(); n != 0 {
					t.Errorf("%d tokens are kept: an old one was filled", n)
				}
			})
		})
	}
}

// TestNoStaleTokenAcrossDelete does not return a stale token that was deleted during the failed
// call.
func TestNoStaleTokenAcrossDelete(t *testing.T) {
	bubble(t, Config{TTL: time.Second, StaleIfError: time.Hour}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		after(time.Second)
		outage := statusError(atlas.OpCreate, 503)
		_, err := d.Create(t.Context(), own(jwt), false, func(context.Context) (Answer, error) {
			d.delete(jwt)
			return Answer{}, outage
		})
		if !errors.Is(err, outage) {
			t.Errorf("got %v, want Atlas's error", err)
		}
	})
}

func unknownOutcomes() map[string]error {
	return map[string]error{
		"500":      statusError(atlas.OpDelete, 500),
		"504":      statusError(atlas.OpDelete, 504),
		"reset":    kindError(atlas.OpDelete, atlas.KindUnreachable),
		"timeout":  kindError(atlas.OpDelete, atlas.KindTimeout),
		"redirect": kindError(atlas.OpDelete, atlas.KindRedirect),
		"canceled": kindError(atlas.OpDelete, atlas.KindCanceled),
	}
}

func TestUnknownOutcomeHoldsOrg(t *testing.T) {
	for name, outcome := range unknownOutcomes() {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour, SettleTime: 20 * time.Second}, func(t *testing.T, d *testCache) {
				jwt := newJWT(orgA, "u", time.Time{})
				d.accept(jwt)
				// What Atlas refuses now, it may accept again: a JWT that it accepted once is not
				// forged.
				_, _ = d.Create(t.Context(), own(jwt), true, func(context.Context) (Answer, error) {
					return Answer{}, statusError(atlas.OpCreate, 401)
				})
				_ = d.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) { return jwt, outcome })
				after(20*time.Second - 1)
				d.want(jwt, miss)
				d.want(jwt, miss)
				after(1)
				synctest.Wait()
				d.want(jwt, miss)
				d.want(jwt, hit(3600))
			})
		})
	}
}

// TestCreateInSettleTimeIsNotStored starts a create before Atlas carries the delete out, and
// answers it after the settle time.
func TestCreateInSettleTimeIsNotStored(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, SettleTime: 20 * time.Second}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.accept(jwt)
		_ = d.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) {
			return jwt, statusError(atlas.OpDelete, 504)
		})
		after(19 * time.Second)
		_, err := d.Create(t.Context(), own(jwt), false, func(ctx context.Context) (Answer, error) {
			answer, err := d.world.ask(jwt)(ctx)
			d.world.replace(orgA) // the delete takes effect
			after(5 * time.Second)
			return answer, err
		})
		if err != nil {
			t.Fatal(err)
		}
		d.want(jwt, miss)
	})
}

func TestPanickingDeleteHoldsOrg(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, SettleTime: 20 * time.Second}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		func() {
			defer func() {
				if recover() != "boom" {
					t.Error("the panic was swallowed")
				}
			}()
			_ = d.Delete(t.Context(), own(jwt), func(context.Context) (atlas.JWT, error) { panic("boom") })
		}()
		d.want(jwt, miss)
		d.want(jwt, miss)
		after(20 * time.Second)
		synctest.Wait()
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

func TestDeleteTimeout(t *testing.T) {
	bubble(t, Config{TTL: time.Hour, CallTimeout: 5 * time.Second}, func(t *testing.T, d *testCache) {
		start := time.Now()
		_ = d.Delete(t.Context(), own(newJWT(orgA, "u", time.Time{})), func(ctx context.Context) (atlas.JWT, error) {
			<-ctx.Done()
			return "", ctx.Err()
		})
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("took %v, want 5s", took)
		}
	})
}

// TestDeleteWithoutOrgClearsCache clears the cache when Atlas confirms a delete with a JWT that
// names no org: it may have been any org's.
func TestDeleteWithoutOrgClearsCache(t *testing.T) {
	for name, jwt := range map[string]atlas.JWT{"org unknown": newJWT("", "u", time.Time{}), "not a JWT": "nothing"} {
		t.Run(name, func(t *testing.T) {
			bubble(t, Config{TTL: time.Hour, SettleTime: 20 * time.Second}, func(t *testing.T, d *testCache) {
				a, b := newJWT(orgA, "v", time.Time{}), newJWT(orgB, "v", time.Time{})
				d.want(a, miss)
				d.want(b, miss)
				d.delete(jwt)
				if n := d.readable(); n != 0 {
					t.Errorf("%d tokens are kept", n)
				}
				d.want(b, miss)
				d.want(b, hit(3600))
			})
		})
	}
}

// TestDeleteOutlivesItsCaller returns an *UnsettledError to a caller that leaves. The outcome of
// the delete still counts.
func TestDeleteOutlivesItsCaller(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, other := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{})
		d.want(jwt, miss)
		ctx, leave := context.WithCancel(t.Context())
		s := newSteppedCall()
		deleted := begin(func() {
			err := d.Delete(ctx, own(other), s.send(d.world.send(other)))
			if !errors.As(err, new(*UnsettledError)) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want an UnsettledError for Canceled", err)
			}
		})
		leave()
		<-deleted
		d.want(jwt, hit(3600))
		close(s.effect)
		close(s.answer)
		synctest.Wait()
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

func TestCloseEndsDeletes(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		deleted := begin(func() {
			err := d.Delete(t.Context(), own(jwt), func(ctx context.Context) (atlas.JWT, error) {
				<-ctx.Done()
				return "", ctx.Err()
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want Canceled", err)
			}
		})
		d.Close()
		<-deleted
		if _, err := d.Cache.Delete(t.Context(), own(jwt)); !errors.Is(err, errClosed) {
			t.Errorf("after close: %v, want errClosed", err)
		}
	})
}

// TestForgedDeleteIsHarmless deletes with a credential that Atlas has not accepted. Other callers
// do not notice, neither during the delete nor after it was refused or not answered.
func TestForgedDeleteIsHarmless(t *testing.T) {
	outcomes := unknownOutcomes()
	outcomes["401"], outcomes["403"] = statusError(atlas.OpDelete, 401), statusError(atlas.OpDelete, 403)
	for name, outcome := range outcomes {
		for org, madeUp := range map[string]atlas.JWT{
			"the same org": newJWT(orgA, "forged", time.Time{}), "no org": newJWT("", "forged", time.Time{}), "no JWT": "a.b.c",
		} {
			t.Run(name+", "+org, func(t *testing.T) {
				bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
					jwt := newJWT(orgA, "u", time.Time{})
					d.want(jwt, miss)
					for _, user := range []string{"new", "newer"} { // an earlier attempt changes nothing
						later, s := newJWT(orgA, user, time.Time{}), newSteppedCall()
						deleted := begin(func() {
							err := d.Delete(t.Context(), own(madeUp), s.send(func(context.Context) (atlas.JWT, error) { return madeUp, outcome }))
							if !errors.Is(err, outcome) {
								t.Errorf("got %v, want %v", err, outcome)
							}
						})
						d.want(jwt, hit(3600))
						d.want(later, miss)
						d.want(later, hit(3600))
						close(s.effect)
						close(s.answer)
						<-deleted
						d.want(jwt, hit(3600))
						d.want(later, hit(3600))
					}
				})
			})
		}
	}
}

// TestFirstDeleteInvalidates invalidates the org once Atlas confirms a delete with a credential
// that it has not accepted before.
func TestFirstDeleteInvalidates(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(_ *testing.T, d *testCache) {
		jwt := newJWT(orgA, "u", time.Time{})
		d.want(jwt, miss)
		d.delete(newJWT(orgA, "new", time.Time{}))
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}

// TestFenceOutlivesCalls does not store the old token that a call returns long after a delete.
func TestFenceOutlivesCalls(t *testing.T) {
	bubble(t, Config{TTL: 32 * time.Second, CallTimeout: 30 * time.Second, SettleTime: 29 * time.Second}, func(t *testing.T, d *testCache) {
		deleter, late := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "late", time.Time{})
		d.want(deleter, miss)
		slow := newSteppedCall()
		asked := begin(func() {
			if _, err := d.Create(t.Context(), own(late), false, slow.ask(d.world.ask(late))); err != nil {
				t.Error(err)
			}
		})
		close(slow.effect)
		d.delete(deleter)
		<-time.After(29 * time.Second) // and a sweep
		close(slow.answer)
		<-asked
		d.want(late, miss)
	})
}

// TestNewTokenReplacesOld may return the old token while a delete with an unaccepted credential is
// in progress, but not after a caller got the new one.
func TestNewTokenReplacesOld(t *testing.T) {
	bubble(t, Config{TTL: time.Hour}, func(t *testing.T, d *testCache) {
		jwt, other, deleter := newJWT(orgA, "u", time.Time{}), newJWT(orgA, "other", time.Time{}), newJWT(orgA, "new", time.Time{})
		d.want(jwt, miss)
		old, slow := d.world.token(orgA), newSteppedCall()
		late := newJWT(orgA, "late", time.Time{})
		asked := begin(func() {
			result, err := d.Create(t.Context(), own(late), false, slow.ask(d.world.ask(late)))
			if err != nil || result.Token != old {
				t.Errorf("got %q, %v", string(result.Token), err)
			}
		})
		close(slow.effect) // it has the old token, and is not answered yet
		s := newSteppedCall()
		deleted := begin(func() { _ = d.Delete(t.Context(), own(deleter), s.send(d.world.send(deleter))) })
		d.want(jwt, hit(3600))
		close(s.effect)
		synctest.Wait()
		d.wantToken(jwt, old, hit(3600))
		d.want(other, miss) // gets the new one
		close(slow.answer)
		<-asked // an old one, which comes late and must not stay
		d.want(jwt, miss)
		d.want(late, miss)
		close(s.answer)
		<-deleted
		d.want(jwt, miss)
		d.want(jwt, hit(3600))
	})
}
