package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// profiles are those that the service holds. They come and go with the policy; a call that was granted one which is gone has
// its source all the same. One goroutine at a time makes and takes sets; mu is for those that look on.
type profiles struct {
	client atlas.IdentityProvider
	log    *slog.Logger
	files  *reload.Watcher // shows how the secrets are
	mu     sync.Mutex      // guards replacing inUse
	inUse  profileSet

	// Until Close. A call may have what is no longer in use, so that is closed only then: some hundred bytes each.
	opened  []*atlas.TokenSource
	watches sync.WaitGroup
}

// profileKey is what makes a profile: with another file, one of the same name is another one.
type profileKey struct{ name, file string }

// profileSet are the profiles of one policy.
type profileSet map[profileKey]*profile

// profile is a source of one Atlas user's JWTs, and what keeps its secret up to date.
type profile struct {
	source *atlas.TokenSource
	secret *reload.Value[atlas.UserAuthToken]
	stop   func() // ends the watch; nil if there is none
}

// sources are those of the set, by the profile's name.
func (set profileSet) sources() auth.Sources {
	sources := auth.Sources{}
	for key, p := range set {
		sources[key.name] = p.source
	}
	return sources
}

// open reads the secret in a file and makes a source of it. The file is not watched before the profile is in use.
func (ps *profiles) open(key profileKey) (*profile, error) {
	p := &profile{}
	log := ps.log.With(slog.String("profile", key.name))
	fileLog := log.With(slog.String("file", key.file))
	secret, err := reload.New(reload.Files[atlas.UserAuthToken]{
		Paths: []string{key.file}, What: "userauthtoken", Name: key.name, Parse: parseSecret, Logger: fileLog,
		OnChange: func(atlas.UserAuthToken) {
			p.source.SecretChanged()
			fileLog.Info("userauthtoken replaced")
			warnIfPublic(ps.log, "profile "+key.name, key.file)
		},
	})
	if err != nil {
		return nil, err
	}
	p.secret = secret
	p.source = atlas.NewTokenSource(atlas.TokenSourceConfig{
		Client:  ps.client,
		Profile: key.name,
		Secret:  func() (atlas.UserAuthToken, error) { return secret.Get(), nil },
		OnEvent: func(e atlas.TokenEvent) {
			switch {
			case e.Routine():
				log.Debug("Atlas identity is not refreshed any more, and logs in", slog.Any("cause", e.Err))
			case e.Err != nil:
				log.Error("Atlas identity failed", slog.String("operation", string(e.Op)), slog.Any("cause", e.Err))
			default:
				log.Info("Atlas identity renewed", slog.String("operation", string(e.Op)))
			}
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

// forPolicy is the set that a policy needs: what is in use stays, the rest is opened. A secret that cannot be read may come
// after the policy that names it.
func (ps *profiles) forPolicy(file string, policy *auth.Policy) (profileSet, error) {
	set, errs := profileSet{}, []error(nil)
	for _, named := range policy.Profiles() {
		key := profileKey{named.Name, named.UserauthtokenFile}
		if set[key] = ps.inUse[key]; set[key] != nil {
			continue
		}
		p, err := ps.open(key)
		if err != nil {
			errs = append(errs, reload.Retry(fmt.Errorf("%s:%d: profile %s: %w", file, named.Line, named.Name, err)))
		}
		set[key] = p
	}
	return set, errors.Join(errs...)
}

// use has the profiles of the set in place of those before: their files are watched, and what is gone is left alone.
func (ps *profiles) use(set profileSet) {
	for key, p := range set {
		if ps.inUse[key] == p {
			continue
		}
		// Not when it is opened: a policy that names a missing secret is tried again every second.
		warnIfPublic(ps.log, "profile "+key.name, key.file)
		ps.opened = append(ps.opened, p.source)
		ctx, stop := context.WithCancel(context.Background())
		hide := ps.files.Show(p.secret)
		p.stop = func() {
			stop()
			hide()
		}
		ps.watches.Go(func() { p.secret.Run(ctx, reload.Interval) })
	}
	for key, p := range ps.inUse {
		if set[key] != p {
			ps.log.Info("profile retired", slog.String("profile", key.name))
			p.stop()
			p.source.Retire()
		}
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.inUse = set
}

// Look looks at the secrets in use now.
func (ps *profiles) Look() reload.Looked {
	ps.mu.Lock()
	set := ps.inUse
	ps.mu.Unlock()
	var all reload.Looked
	for _, p := range set {
		all = all.And(p.secret.Look())
	}
	return all
}

// Close ends all, and waits for it. No call may be in progress any more.
func (ps *profiles) Close() {
	for _, p := range ps.inUse {
		p.stop()
	}
	ps.watches.Wait()
	for _, source := range ps.opened {
		source.Close()
	}
}
