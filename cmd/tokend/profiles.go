package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/server/auth"
	"github.com/ForstaLabs/ephemeral-token-service/server/reload"
)

// profiles are the Atlas identities that the service holds. They come and go with the policy; a call that was granted one
// which is gone has its source all the same. One goroutine at a time has to do with them.
type profiles struct {
	client *atlas.Client
	log    *slog.Logger
	inUse  profileSet

	// Until Close. A call may have what is no longer in use, so that is closed only then: some hundred bytes each.
	opened  []*atlas.TokenSource
	ctx     context.Context // of the watches
	stop    context.CancelFunc
	watches sync.WaitGroup
}

// profileKey is what makes a profile: with another file, one of the same name is another one.
type profileKey struct{ name, file string }

// profileSet are the profiles of one policy.
type profileSet map[profileKey]*profile

// profile is one Atlas identity, and what keeps its secret up to date.
type profile struct {
	source *atlas.TokenSource
	secret *reload.Value[atlas.UserAuthToken]
	stop   context.CancelFunc // ends the watch; nil if there is none
}

func newProfiles(client *atlas.Client, log *slog.Logger) *profiles {
	ps := &profiles{client: client, log: log}
	ps.ctx, ps.stop = context.WithCancel(context.Background())
	return ps
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
	log := ps.log.With(slog.String("profile", key.name), slog.String("file", key.file))
	secret, err := reload.New([]string{key.file}, parseSecret, func(atlas.UserAuthToken) {
		p.source.SecretChanged()
		log.Info("userauthtoken replaced")
	}, reload.Report(log, "userauthtoken"))
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
				ps.log.Debug("Atlas identity is not refreshed any more, and logs in", slog.String("profile", key.name), slog.String("cause", e.Err.Error()))
				return
			case e.Err != nil:
				ps.log.Error("Atlas identity failed", slog.String("profile", key.name), slog.String("operation", string(e.Op)), slog.String("cause", e.Err.Error()))
				return
			}
			ps.log.Info("Atlas identity renewed", slog.String("profile", key.name), slog.String("operation", string(e.Op)))
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
		p := ps.inUse[key]
		if p == nil {
			var err error
			if p, err = ps.open(key); err != nil {
				errs = append(errs, fmt.Errorf("%s:%d: profile %s: %w", file, named.Line, named.Name, err))
				continue
			}
		}
		set[key] = p
	}
	return set, errs
}

// use has the profiles of the set in place of those before: their files are watched, and what is gone is left alone.
func (ps *profiles) use(set profileSet) {
	for key, p := range set {
		if ps.inUse[key] == p {
			continue
		}
		ps.opened = append(ps.opened, p.source)
		ctx, stop := context.WithCancel(ps.ctx)
		p.stop = stop
		ps.watches.Go(func() { _ = p.secret.Run(ctx, reload.Interval) }) // it always returns nil
	}
	for key, p := range ps.inUse {
		if set[key] != p {
			ps.log.Info("profile retired", slog.String("profile", key.name))
			p.stop()
			p.source.Retire()
		}
	}
	ps.inUse = set
}

// Close ends all, and waits for it. No call may be in progress any more.
func (ps *profiles) Close() {
	ps.stop()
	ps.watches.Wait()
	for _, source := range ps.opened {
		source.Close()
	}
}
