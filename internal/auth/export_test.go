package auth

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

// Impatient makes a failed fetch of an issuer's keys be tried again, and one for an unknown key be
// made, after that time.
func (c Config) Impatient(retry, keys time.Duration) Config {
	c.timing = timing{retryMin: retry, retryMax: retry, again: time.Hour, keys: keys}
	return c
}

// Check returns the errors of all profiles, by name, and issuers, joined.
func (a *Authenticator) Check() error {
	var errs []error
	profiles := a.Profiles()
	for _, name := range slices.Sorted(maps.Keys(profiles)) {
		if err := profiles[name].Err; err != nil {
			errs = append(errs, fmt.Errorf("profile %s: %w", name, err))
		}
	}
	for _, issuer := range a.Issuers() {
		errs = append(errs, issuer.Err)
	}
	return errors.Join(errs...)
}

// MaxIssuerWaits is maxIssuerWaits.
const MaxIssuerWaits = maxIssuerWaits

// What the tests compare with.
const (
	KindSPIFFE = kindSPIFFE
	KindDNS    = kindDNS
	KindOIDC   = kindOIDC
	KindAtlas  = kindAtlas

	KindCertificate = kindCertificate
)

type Issuer = issuerConfig

// IssuerConfigs are those whose OIDC tokens are accepted, in the order of the file.
func (p *Policy) IssuerConfigs() []Issuer { return p.issuers }

// Decision is the result of Decide.
type Decision struct {
	Profile string
	Rule    int // from 1; 0 if none matches
}

// Decide is decide, with the number of the rule.
func (p *Policy) Decide(callers []Caller, method string) (Decision, error) {
	i, _ := p.find(callers)
	_, profile, err := p.decide(callers, method)
	return Decision{profile, i + 1}, err
}

// MatchGlob and PeekIssuer are matchGlob and peekIssuer.
var (
	MatchGlob  = matchGlob
	PeekIssuer = peekIssuer
)

// ParseCredential is parseCredential, without its scheme.
func ParseCredential(values []string) (atlas.JWT, error) {
	jwt, _, err := parseCredential(values)
	return jwt, err
}
