package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// profiles are the service's Atlas identities. They come and go with the policy; one that is gone stays usable for as long
// as a call may have been granted it.
type profiles struct {
	client *atlas.Client
	log    *slog.Logger
	grace  time.Duration // longer than any call

	mu       sync.RWMutex
	known    map[profileKey]*profile  // guarded by mu; also retired ones, unless the same has come back
	retired  map[*profile]*time.Timer // guarded by mu; closes it
	watching context.Context          // guarded by mu; nil while the files are not watched
	watches  sync.WaitGroup           // grows under mu, while watching is set
}

// profileKey is what makes an Atlas identity: with another file, a profile of the same name is another one.
type profileKey struct{ name, file string }

// profileSet are the profiles of one policy.
type profileSet map[profileKey]*profile

// profile is one Atlas identity, and what keeps its secret up to date.
type profile struct {
	name   string
	source *atlas.TokenSource
	secret *reload.Value[atlas.UserAuthToken]
	stop   context.CancelFunc // ends the watch; nil if there is none
}

func newProfiles(client *atlas.Client, grace time.Duration, log *slog.Logger) *profiles {
	return &profiles{client: client, log: log, grace: grace, known: profileSet{}, retired: map[*profile]*time.Timer{}}
}

// open reads the secret in a file and makes an Atlas identity of it. Nobody has it before it is added.
func (ps *profiles) open(name, file string) (*profile, error) {
	p := &profile{name: name}
	log := ps.log.With(slog.String("profile", name), slog.String("file", file))
	secret, err := reload.New([]string{file}, parseSecret, func(atlas.UserAuthToken) {
		p.source.SecretChanged()
		log.Info("userauthtoken replaced")
	}, reload.Report(log, "userauthtoken"))
	if err != nil {
		return nil, err
	}
	p.secret = secret
	p.source = atlas.NewTokenSource(atlas.TokenSourceConfig{
		Client:  ps.client,
		Profile: name,
		Secret:  func() (atlas.UserAuthToken, error) { return secret.Get(), nil },
		OnEvent: func(e atlas.TokenEvent) {
			switch {
			case e.Routine():
				ps.log.Debug("Atlas identity is not refreshed any more, and logs in", slog.String("profile", name), slog.String("cause", e.Err.Error()))
				return
			case e.Err != nil:
				ps.log.Error("Atlas identity failed", slog.String("profile", name), slog.String("operation", string(e.Op)), slog.String("cause", e.Err.Error()))
				return
			}
			ps.log.Info("Atlas identity renewed", slog.String("profile", name), slog.String("operation", string(e.Op)))
		},
	})
	return p, nil
}

// parseSecret takes the userauthtoken out of its file: one word, as an editor or kubectl leaves it.
func parseSecret(contents [][]byte) (atlas.UserAuthToken, error) {
	secret := bytes.TrimSpace(contents[0])
	if len(secret) == 0 || bytes.ContainsAny(secret, " \t\r\n\x00") {
		return "", errors.New("it must have the userauthtoken in it, and nothing else")
	}
	return atlas.UserAuthToken(secret), nil
}

// forPolicy is the set that a policy needs: what is in use stays, the rest is opened. The errors are those of the files.
func (ps *profiles) forPolicy(file string, policy *auth.Policy) (profileSet, []error) {
	set, errs := profileSet{}, []error(nil)
	for _, named := range policy.Profiles() {
		key := profileKey{named.Name, named.UserauthtokenFile}
		p := ps.inUse(key)
		if p == nil {
			var err error
			if p, err = ps.open(named.Name, named.UserauthtokenFile); err != nil {
				errs = append(errs, fmt.Errorf("%s:%d: profile %s: %w", file, named.Line, named.Name, err))
				continue
			}
		}
		set[key] = p
	}
	return set, errs
}

// inUse is nil for a retired profile as well: its end is near, and cannot be called off.
func (ps *profiles) inUse(key profileKey) *profile {
	ps.mu.RLock()
	defer ps.mu.RUnlock()
	p := ps.known[key]
	if ps.retired[p] != nil {
		return nil
	}
	return p
}

// add lets calls find the profiles of a set, beside those that are there.
func (ps *profiles) add(set profileSet) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for key, p := range set {
		if ps.known[key] != p {
			ps.known[key] = p
			ps.watch(p)
		}
	}
}

// retireOthers closes all profiles that are not in the set once no call can have them any more.
func (ps *profiles) retireOthers(set profileSet) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for key, p := range ps.known {
		if set[key] == p || ps.retired[p] != nil {
			continue
		}
		ps.log.Info("profile retired", slog.String("profile", p.name))
		ps.retired[p] = time.AfterFunc(ps.grace, func() { ps.end(key, p) })
	}
}

func (ps *profiles) end(key profileKey, p *profile) {
	p.close() // first: until then, Close waits for it too
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.retired, p)
	if ps.known[key] == p {
		delete(ps.known, key)
	}
}

// Identity implements server.Identities.
func (ps *profiles) Identity(grant auth.Grant) (*atlas.TokenSource, bool) {
	ps.mu.RLock()
	defer ps.mu.RUnlock()
	p := ps.known[profileKey{grant.Profile, grant.UserauthtokenFile}]
	if p == nil {
		return nil, false
	}
	return p.source, true
}

// Check implements server.Identities. What is wrong with a retired profile is of no concern.
func (ps *profiles) Check() error {
	ps.mu.RLock()
	defer ps.mu.RUnlock()
	var errs []error
	for _, p := range ps.known {
		if err := p.source.Err(); err != nil && ps.retired[p] == nil {
			errs = append(errs, fmt.Errorf("profile %s: %w", p.name, err))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return cmp.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// run re-reads the secrets until ctx ends.
func (ps *profiles) run(ctx context.Context) error {
	ps.mu.Lock()
	ps.watching = ctx
	for _, p := range ps.known {
		ps.watch(p)
	}
	ps.mu.Unlock()
	<-ctx.Done()
	ps.mu.Lock()
	ps.watching = nil
	ps.mu.Unlock()
	ps.watches.Wait()
	return nil
}

// watch re-reads one secret. The caller holds mu.
func (ps *profiles) watch(p *profile) {
	if ps.watching == nil {
		return
	}
	ctx, stop := context.WithCancel(ps.watching)
	p.stop = stop
	ps.watches.Go(func() { _ = p.secret.Run(ctx, reload.Interval) }) // it always returns nil
}

// Close ends all profiles, without any grace.
func (ps *profiles) Close() {
	ps.mu.Lock()
	all := make(map[*profile]bool, len(ps.known)+len(ps.retired))
	for _, p := range ps.known {
		all[p] = true
	}
	for p, timer := range ps.retired {
		timer.Stop()
		all[p] = true
	}
	ps.mu.Unlock()
	for p := range all {
		p.close()
	}
}

// close may be called more than once.
func (p *profile) close() {
	if p.stop != nil {
		p.stop()
	}
	p.source.Close()
}
