package auth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Check is how one thing is that calls depend on. The names are of the operator's choosing.
type Check struct {
	Name string // such as "profile acme"
	Err  error  // nil if all is well; it begins with the name
}

// Checks has one for each profile, whether Atlas lets it in at present, and one for each issuer, whether its callers can be
// checked. They are sorted by kind and name.
func (a *Authenticator) Checks() []Check {
	s := a.state.Load()
	var checks []Check
	for _, profile := range slices.Sorted(maps.Keys(s.sources)) {
		c := Check{Name: "profile " + profile}
		if err := s.sources[profile].Err(); err != nil {
			c.Err = fmt.Errorf("%s: %w", c.Name, err)
		}
		checks = append(checks, c)
	}
	for _, url := range slices.Sorted(maps.Keys(s.issuers)) {
		checks = append(checks, Check{Name: "OIDC issuer " + url, Err: s.issuers[url].last.Load().check(url)})
	}
	return checks
}

// Check returns the errors of Checks, joined.
func (a *Authenticator) Check() error {
	var errs []error
	for _, c := range a.Checks() {
		errs = append(errs, c.Err)
	}
	return errors.Join(errs...)
}

// Profiles says how the profile of each name is.
func (a *Authenticator) Profiles() map[string]atlas.TokenStatus {
	status := map[string]atlas.TokenStatus{}
	for profile, source := range a.state.Load().sources {
		status[profile] = source.Status()
	}
	return status
}

// IssuerStatus is how an OIDC issuer is.
type IssuerStatus struct {
	OK   bool      // it answered when it was last asked for its keys
	Keys time.Time // when the keys came that are in use; zero if there are none
}

// Issuers says how the issuer of each URL is.
func (a *Authenticator) Issuers() map[string]IssuerStatus {
	status := map[string]IssuerStatus{}
	for url, issuer := range a.state.Load().issuers {
		last := issuer.last.Load()
		status[url] = IssuerStatus{OK: last.keys != nil && last.err == nil, Keys: last.keysAt}
	}
	return status
}
