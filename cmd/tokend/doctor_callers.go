package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// callerChecks log in with each profile, and ask each issuer. They go by the policy even if serve would not, because of another
// file.
func (c *doctorCommand) callerChecks(ctx context.Context, s *setup) []check {
	if c.PolicyFile == "" {
		if c.UserauthtokenFile == "" {
			return nil
		}
		return c.loginChecks(ctx, s, "--atlas-userauthtoken-file", []auth.Profile{{Name: defaultProfile, UserauthtokenFile: c.UserauthtokenFile}})
	}
	value, err := reload.New(reload.Files[*auth.Policy]{
		Paths: []string{c.PolicyFile},
		Parse: func(contents [][]byte) (*auth.Policy, error) { return auth.ParsePolicy(c.PolicyFile, contents[0]) },
	})
	if err != nil { // which serve has found as well
		find := func(context.Context) finding { return bad(err.Error(), "Correct the policy.") }
		return []check{{"profiles and issuers", []string{"--policy-file"}, find}}
	}
	policy := value.Get()
	checks := c.loginChecks(ctx, s, "", policy.Profiles())
	for _, url := range policy.Issuers() {
		checks = append(checks, check{"issuer " + url, []string{"--oidc-ca-file"}, func(ctx context.Context) finding {
			return findIssuer(ctx, s, url)
		}})
	}
	return checks
}

// loginChecks are one for each profile. A secret that several have is tried once: Atlas may lock an account after some logins
// that it has refused.
func (c *doctorCommand) loginChecks(ctx context.Context, s *setup, setting string, profiles []auth.Profile) []check {
	logins := map[atlas.UserAuthToken]func() (atlas.JWT, error){}
	checks := make([]check, 0, len(profiles))
	for _, p := range profiles {
		secret, err := reload.New(reload.Files[atlas.UserAuthToken]{Paths: []string{p.UserauthtokenFile}, Parse: parseSecret})
		find := func(context.Context) finding {
			return finding{Status: skipped, Detail: "not checked, because its userauthtoken_file cannot be used"} // which serve has found as well
		}
		if err == nil {
			logIn := logins[secret.Get()]
			if logIn == nil {
				logIn = sync.OnceValues(func() (atlas.JWT, error) {
					ctx, cancel := context.WithTimeout(ctx, c.Timeout)
					defer cancel()
					return s.atlas.LogIn(ctx, secret.Get())
				})
				logins[secret.Get()] = logIn
			}
			find = func(context.Context) finding {
				jwt, err := logIn()
				return findLogin(p.UserauthtokenFile, jwt, err)
			}
		}
		checks = append(checks, check{"login " + p.Name, []string{checkAtlasTLS, setting}, find})
	}
	return checks
}

// findLogin says how a login went.
func findLogin(file string, jwt atlas.JWT, err error) finding {
	var e *atlas.Error
	switch {
	case err == nil:
		claims := jwt.UnverifiedClaims() // of one that Atlas has just issued
		if claims.Expiry.IsZero() {
			return good("Atlas accepts the userauthtoken, org %s", claims.OrgID)
		}
		return good("Atlas accepts the userauthtoken, org %s, JWT for %v", claims.OrgID, time.Until(claims.Expiry).Round(time.Second))
	case !errors.As(err, &e) || e.Kind != atlas.KindStatus:
		return bad("the login failed: "+atlasCause(err), "Check what --atlas-url leads to; the log of a tokend that serves has the same cause.")
	}
	switch e.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return bad(fmt.Sprintf("Atlas refuses the userauthtoken in %s (HTTP %d)", file, e.StatusCode),
			"Put a valid userauthtoken of the bot into the file, and do that before the next try, since Atlas may lock an account.")
	case http.StatusTooManyRequests:
		return bad("Atlas throttles logins (HTTP 429)", fmt.Sprintf("Wait for %v before the next try.", max(e.RetryAfter, time.Second)))
	}
	return bad("the login failed: "+atlasCause(err), "Check that --atlas-url is Atlas's base URL, and whether Atlas is well.")
}

func findIssuer(ctx context.Context, s *setup, url string) finding {
	keys, err := auth.CheckIssuer(ctx, url, s.oidcCAs)
	switch {
	case errors.Is(err, auth.ErrNoUsableKey):
		return bad(err.Error(), "Have the issuer publish the keys that it signs with: RSA, ECDSA or Ed25519.")
	case err != nil:
		return bad(err.Error(), issuerRemedy(err))
	}
	return good("configuration read, keys: %d", keys)
}

func issuerRemedy(err error) string {
	if isCertificateError(err) {
		return certificateRemedy(err, "the issuer", "--oidc-ca-file", "the policy")
	}
	return "Start the issuer, have firewalls and proxies let this machine through, or correct its URL in the policy."
}
