package history

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
)

// Upstream creates and deletes at Atlas for the mutants.
type Upstream struct{ Atlas tokencache.Atlas }

// Ask creates a token at Atlas.
func (u Upstream) Ask(ctx context.Context, cred atlas.Credential) (tokencache.Result, error) {
	token, err := atlas.WithReLogin(ctx, cred, u.Atlas.CreateEphemeralToken)
	return tokencache.Result{Token: token, Org: cred.Claims().OrgID}, err
}

// Send deletes the token at Atlas.
func (u Upstream) Send(ctx context.Context, cred atlas.Credential) (string, error) {
	return cred.Claims().OrgID, u.Atlas.DeleteEphemeralToken(ctx, cred.JWT)
}

// Check implements server.Tokens.
func (Upstream) Check() error { return nil }

// SingleFlight shares a call with callers that arrive after it was sent.
type SingleFlight struct {
	Upstream

	group  singleflight.Group
	Key    func(atlas.Credential) string
	Forget bool // a delete makes later callers start a new call
}

// ByOrg keys by the org that the JWT claims.
func ByOrg(cred atlas.Credential) string { return cred.Claims().OrgID }

// Create implements server.Tokens.
func (m *SingleFlight) Create(ctx context.Context, cred atlas.Credential, _ bool) (tokencache.Result, error) {
	result, err, _ := m.group.Do(m.Key(cred), func() (any, error) { return m.Ask(context.WithoutCancel(ctx), cred) })
	return result.(tokencache.Result), err
}

// Delete implements server.Tokens.
func (m *SingleFlight) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	if m.Forget {
		m.group.Forget(m.Key(cred))
	}
	org, err := m.Send(ctx, cred)
	return org, err
}

// Unfenced caches without a fence. A delete clears the cache, but not the calls in flight.
type Unfenced struct {
	Upstream

	Key func(atlas.Credential) string

	Mu     sync.Mutex
	Tokens map[string]Remembered // guarded by mu
}

// ByJWT keys by the JWT.
func ByJWT(cred atlas.Credential) string { return string(cred.JWT) }

// Remembered is a cached token.
type Remembered struct {
	Token atlas.Token
	Seq   int
	Until time.Time
}

// Create implements server.Tokens.
func (m *Unfenced) Create(ctx context.Context, cred atlas.Credential, fresh bool) (tokencache.Result, error) {
	m.Mu.Lock()
	found := m.Tokens[m.Key(cred)]
	m.Mu.Unlock()
	if !fresh && time.Now().Before(found.Until) {
		return tokencache.Result{Token: found.Token}, nil
	}
	result, err := m.Ask(ctx, cred)
	if err == nil {
		m.Mu.Lock()
		defer m.Mu.Unlock()
		m.Tokens[m.Key(cred)] = Remembered{Token: result.Token, Until: time.Now().Add(300 * time.Millisecond)}
	}
	return result, err
}

// Delete implements server.Tokens.
func (m *Unfenced) Delete(ctx context.Context, cred atlas.Credential) (string, error) {
	org, err := m.Send(ctx, cred)
	m.Mu.Lock()
	defer m.Mu.Unlock()
	clear(m.Tokens)
	return org, err
}

// NewUnfenced returns an empty Unfenced.
func NewUnfenced(a tokencache.Atlas, key func(atlas.Credential) string) *Unfenced {
	return &Unfenced{Upstream: Upstream{a}, Key: key, Tokens: map[string]Remembered{}}
}
