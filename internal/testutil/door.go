package testutil

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// ErrPanic makes a Door panic.
var ErrPanic = errors.New("panic here")

// Door counts the calls that reach the service's handlers, and fails the first ones with the errors
// of Expect.
type Door struct {
	inside server.Tokens

	mu       sync.Mutex
	arrivals []time.Time // guarded by mu
	failures []error     // guarded by mu
}

func (d *Door) arrive() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals = append(d.arrivals, time.Now())
	if len(d.failures) == 0 {
		return nil
	}
	err := d.failures[0]
	d.failures = d.failures[1:]
	if errors.Is(err, ErrPanic) {
		panic(err)
	}
	return err
}

// Create implements server.Tokens.
func (d *Door) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	if err := d.arrive(); err != nil {
		return tokencache.Result{}, err
	}
	return d.inside.Create(ctx, cred, fresh)
}

// Delete implements server.Tokens.
func (d *Door) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	if err := d.arrive(); err != nil {
		return "", err
	}
	return d.inside.Delete(ctx, cred)
}

// Check implements server.Tokens.
func (d *Door) Check() error { return d.inside.Check() }

// Expect resets the count and fails the next calls with these errors.
func (d *Door) Expect(failures ...error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals, d.failures = nil, failures
}

// Attempts returns when each call arrived.
func (d *Door) Attempts() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.arrivals)
}

// StartDoor starts a service with a Door.
func StartDoor(t *testing.T, changes ...func(*server.Config, *atlas.Config)) (*Service, *Door) {
	t.Helper()
	d := &Door{}
	return Start(t, Plaintext, append(changes, d.Guard(t))...), d
}

// Guard puts the Door in front of a service's token cache.
func (d *Door) Guard(t *testing.T) func(*server.Config, *atlas.Config) {
	return func(c *server.Config, _ *atlas.Config) {
		c.Tokens = func(a tokencache.Atlas) server.Tokens {
			cache, err := tokencache.New(a, tokencache.Config{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(cache.Close)
			d.inside = cache
			return d
		}
	}
}
