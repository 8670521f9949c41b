package doctor

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
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// callerChecks log in with each profile, and ask each issuer. They use the policy even if serve
// would refuse it because of another file.
func callerChecks(ctx context.Context, s *setup.Setup, timeout time.Duration) []check {
	set := &s.Settings
	if set.PolicyFile == "" {
		if set.UserauthtokenFile == "" {
			return nil
		}
		return loginChecks(ctx, s, timeout, []auth.Profile{{Name: setup.DefaultProfile, UserauthtokenFile: set.UserauthtokenFile}}, "--atlas-userauthtoken-file")
	}
	data, err := reload.Read(set.PolicyFile)
	var policy *auth.Policy
	if err == nil {
		policy, err = auth.ParsePolicy(set.PolicyFile, data)
	}
	if err != nil { // already reported
		find := func(context.Context) Finding { return bad(err.Error(), "Correct the policy.") }
		return []check{{"profiles and issuers", []string{"--policy-file"}, find}}
	}
	return append(loginChecks(ctx, s, timeout, policy.Profiles()), issuerChecks(s, policy)...)
}

func issuerChecks(s *setup.Setup, policy *auth.Policy) []check {
	var checks []check
	for _, url := range policy.Issuers() {
		checks = append(checks, check{"issuer " + url, []string{"--oidc-ca-file"}, func(ctx context.Context) Finding {
			return issuerFinding(ctx, s, url)
		}})
	}
	return checks
}

// loginChecks has a check for each profile. A secret that several share is tried once: Atlas may
// lock an account after a few refused logins.
func loginChecks(ctx context.Context, s *setup.Setup, timeout time.Duration, profiles []auth.Profile, settings ...string) []check {
	logins := map[atlas.UserAuthToken]func() (atlas.JWT, error){}
	checks := make([]check, 0, len(profiles))
	for _, p := range profiles {
		secret, err := setup.ReadSecret(p.UserauthtokenFile)
		find := func(context.Context) Finding {
			return Finding{Status: Skipped, Detail: "not checked, because its userauthtoken_file cannot be used"} // already reported
		}
		if err == nil {
			logIn := logins[secret]
			if logIn == nil {
				logIn = sync.OnceValues(func() (atlas.JWT, error) {
					ctx, cancel := context.WithTimeout(ctx, timeout)
					defer cancel()
					return s.Atlas.LogIn(ctx, secret)
				})
				logins[secret] = logIn
			}
			find = func(context.Context) Finding {
				jwt, err := logIn()
				return loginFinding(p.UserauthtokenFile, jwt, err)
			}
		}
		checks = append(checks, check{"login " + p.Name, append(settings, atlasTLS), find})
	}
	return checks
}

// loginFinding returns the finding of a login.
func loginFinding(file string, jwt atlas.JWT, err error) Finding {
	var e *atlas.Error
	switch {
	case err == nil:
		claims := jwt.UnverifiedClaims() // of one that Atlas has just issued
		if claims.Expiry.IsZero() {
			return good("Atlas accepts the userauthtoken, org %s", claims.OrgID)
		}
		return good("Atlas accepts the userauthtoken, org %s, JWT for %v", claims.OrgID, time.Until(claims.Expiry).Round(time.Second))
	case !errors.As(err, &e) || e.Kind != atlas.KindStatus:
		return bad("the login failed: "+atlasCause(err), "Check what --atlas-url leads to; the log of a running tokend has the same cause.")
	}
	switch e.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return bad(fmt.Sprintf("Atlas refuses the userauthtoken in %s (HTTP %d)", file, e.StatusCode),
			"Put a valid userauthtoken of the bot into the file, and do that before the next try, since Atlas may lock an account.")
	case http.StatusTooManyRequests:
		return bad("Atlas throttles logins (HTTP 429)", fmt.Sprintf("Wait for %v before the next try.", max(e.RetryAfter, time.Second)))
	}
	return bad("the login failed: "+atlasCause(err), "Check that --atlas-url is Atlas's base URL, and whether Atlas works.")
}

func issuerFinding(ctx context.Context, s *setup.Setup, url string) Finding {
	keys, err := auth.CheckIssuer(ctx, url, s.OIDCAuthorities)
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
