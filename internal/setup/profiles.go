package setup

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// profiles are the Atlas identities that the service holds. They come and go with the policy; a
// call that was granted one that has gone keeps its identity. One goroutine at a time makes and
// replaces sets.
type profiles struct {
	client  atlas.IdentityProvider
	log     *slog.Logger
	files   *reload.Watcher // of the secrets
	warn    func(Warning)
	serving bool // log in to profiles before a call needs them
	inUse   profileSet

	// opened is closed by Close. A call may still have an identity that is no longer in use; each
	// is some hundred bytes.
	opened []*atlas.Identity
}

// profileKey identifies a profile: one of the same name with another file is another profile.
type profileKey struct{ name, file string }

// profileSet are the profiles of one policy.
type profileSet map[profileKey]*profile

// profile is an Atlas identity, and what keeps its secret up to date.
type profile struct {
	identity *atlas.Identity
	secret   *reload.Value[atlas.UserAuthToken]
	unwatch  func() // set when the profile is in use
}

// identities returns the identities of the set, by profile.
func (set profileSet) identities() auth.Identities {
	identities := auth.Identities{}
	for key, p := range set {
		identities[key.name] = p.identity
	}
	return identities
}

// open reads the secret in a file and makes an identity of it. The file is not watched until the
// profile is in use.
func (ps *profiles) open(key profileKey) (*profile, error) {
	p := &profile{}
	log := ps.log.With(slog.String("profile", key.name))
	fileLog := log.With(slog.String("file", key.file))
	secret, err := reload.New(reload.Files[atlas.UserAuthToken]{
		Paths: []string{key.file}, What: "userauthtoken", Name: key.name, Parse: parseSecret, Logger: fileLog,
		OnChange: func(atlas.UserAuthToken) {
			p.identity.SecretChanged()
			fileLog.Info("userauthtoken replaced")
			if w := publicSecret("profile "+key.name, key.file); w != nil {
				w.log(ps.log)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	p.secret = secret
	p.identity = atlas.NewIdentity(atlas.IdentityConfig{
		Client:  ps.client,
		Profile: key.name,
		Secret:  secret.Get,
		OnEvent: func(e atlas.IdentityEvent) {
			switch {
			case e.Routine():
				log.Debug("Atlas identity can no longer be refreshed, logging in", slog.Any("cause", e.Err))
			case e.Err != nil:
				log.Error("Atlas identity failed", slog.String("operation", string(e.Op)), slog.Any("cause", e.Err))
			default:
				log.Info("Atlas identity renewed", slog.String("operation", string(e.Op)))
			}
		},
	})
	return p, nil
}

// ReadSecret returns the userauthtoken in a file.
func ReadSecret(file string) (atlas.UserAuthToken, error) {
	data, err := reload.Read(file)
	if err != nil {
		return "", err
	}
	return parseSecret([][]byte{data})
}

// parseSecret returns the userauthtoken in a file: one word of printable ASCII, with white space
// around it as editors leave it. A login with an invisible character in it would be refused.
func parseSecret(contents [][]byte) (atlas.UserAuthToken, error) {
	secret := bytes.TrimSpace(contents[0])
	if len(secret) == 0 || bytes.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("it must contain the userauthtoken and nothing else")
	}
	return atlas.UserAuthToken(secret), nil
}

// secretError is why the secret of a profile cannot be used.
type secretError struct{ error }

func (e secretError) Unwrap() error { return e.error }

// forPolicy returns the set that a policy needs: what is in use stays, the rest is opened. A secret
// that cannot be read may come after the policy that names it.
func (ps *profiles) forPolicy(file string, policy *auth.Policy) (profileSet, error) {
	set, errs := profileSet{}, []error(nil)
	for _, named := range policy.Profiles() {
		key := profileKey{named.Name, named.UserauthtokenFile}
		if set[key] = ps.inUse[key]; set[key] != nil {
			continue
		}
		p, err := ps.open(key)
		if err != nil {
			errs = append(errs, secretError{fmt.Errorf("%s:%d: profile %s: %w", file, named.Line, named.Name, err)})
		}
		set[key] = p
	}
	return set, errors.Join(errs...)
}

// use replaces the profiles in use by those of the set: their files are watched, and those of the
// rest no longer.
func (ps *profiles) use(set profileSet) {
	for key, p := range set {
		if ps.inUse[key] == p {
			continue
		}
		// Not when it is opened: a policy that names a missing secret is tried again every second.
		if w := publicSecret("profile "+key.name, key.file); w != nil {
			ps.warn(*w)
		}
		ps.opened = append(ps.opened, p.identity)
		if ps.serving {
			p.identity.Start()
		}
		p.unwatch = ps.files.Add(p.secret)
	}
	for key, p := range ps.inUse {
		if set[key] != p {
			ps.log.Info("profile retired", slog.String("profile", key.name))
			p.unwatch()
			p.identity.Retire()
		}
	}
	ps.inUse = set
}

// start logs in to the profiles in use, and to those that come later. Settings that are only
// checked cost no login.
func (ps *profiles) start() {
	ps.serving = true
	for _, p := range ps.inUse {
		p.identity.Start()
	}
}

// Close ends the background work and waits for it. No call may be in progress.
func (ps *profiles) Close() {
	for _, identity := range ps.opened {
		identity.Close()
	}
}
