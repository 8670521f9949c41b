package auth

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxSubject is the longest subject in bytes (OpenID Connect Core section 2).
const maxSubject = 255

// checkStars refuses **, which in other languages crosses separators.
func checkStars(pattern string) error {
	if strings.Contains(pattern, "**") {
		return errors.New("** is not supported: each * stays within its own part of the name")
	}
	return nil
}

// onlyStars reports whether a part of a pattern matches everything.
func onlyStars(part string) bool { return strings.Trim(part, "*") == "" }

// checkSPIFFEID checks the SPIFFE ID of a caller.
func checkSPIFFEID(id string) error {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return fmt.Errorf("not a SPIFFE ID: %w", err)
	}
	if parsed.Path() == "" {
		return errors.New("the SPIFFE ID has no path: it names a trust domain, not a caller")
	}
	return nil
}

// splitSPIFFEPattern checks a spiffe_id of a policy, and returns its literal prefix and the path.
func splitSPIFFEPattern(pattern string) (prefix, path string, err error) {
	domain, path, _ := strings.Cut(strings.TrimPrefix(pattern, "spiffe://"), "/")
	if strings.Contains(domain, "*") {
		return "", "", errors.New("the trust domain must not have a * in it")
	}
	if err := cmp.Or(checkSPIFFEID(strings.ReplaceAll(pattern, "*", "x")), checkStars(path)); err != nil {
		return "", "", err
	}
	for segment := range strings.SplitSeq(path, "/") {
		if !onlyStars(segment) {
			return "spiffe://" + domain + "/", path, nil
		}
	}
	return "", "", errors.New("it would match every caller in the trust domain: at least one segment must be more than a *")
}

// checkDNSName checks a host name in lower case.
func checkDNSName(name string) error {
	if len(name) == 0 || len(name) > 253 {
		return errors.New("not a DNS name: it must have 1 to 253 characters")
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) == 0 || len(label) > 63 || strings.IndexFunc(label, notLabelRune) >= 0 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("not a DNS name: each label must have 1 to 63 letters, digits, underscores and inner hyphens")
		}
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("not a DNS name but an IP address")
	}
	return nil
}

func notLabelRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}

// checkDNSPattern checks a dns_san of a policy, in lower case.
func checkDNSPattern(pattern string) error {
	label, rest, _ := strings.Cut(pattern, ".")
	if strings.Contains(rest, "*") {
		return errors.New("only the leftmost label may have a * in it")
	}
	if err := cmp.Or(checkStars(label), checkDNSName(strings.ReplaceAll(label, "*", "x")+strings.TrimPrefix(pattern, label))); err != nil {
		return err
	}
	switch {
	case !strings.Contains(label, "*"):
		return nil
	case rest == "":
		return errors.New("a * needs a domain after it")
	case onlyStars(label) && !strings.Contains(rest, "."):
		return errors.New("it would match every name in a top-level domain: write at least two labels after the *")
	}
	return nil
}

// checkIssuer checks the URL of an OIDC issuer (OpenID Connect Core section 2).
func checkIssuer(issuer string) error {
	if err := checkPrintable("issuer", issuer, 2048); err != nil {
		return err
	}
	u, err := url.Parse(issuer)
	switch {
	case err != nil:
		return errors.New("the issuer is not a URL") // the error of url.Parse quotes it
	case u.Scheme != "https":
		return errors.New("the issuer must be an https URL")
	case u.Hostname() == "" || u.Opaque != "":
		return errors.New("the issuer has no host")
	case u.User != nil:
		return errors.New("the issuer must not have a user or password in it")
	case strings.ContainsAny(issuer, "?#"):
		return errors.New("the issuer must not have a query or fragment")
	case strings.Contains(issuer, "*"):
		return errors.New("the issuer must not have a * in it")
	}
	return nil
}

func checkAudience(audience string) error {
	if strings.Contains(audience, "*") {
		return errors.New("the audience must not have a * in it")
	}
	return checkPrintable("audience", audience, 2048)
}

// checkSubject checks that the subject of a token can be logged and parsed again.
func checkSubject(subject string) error { return checkPrintable("subject", subject, maxSubject) }

func checkSubjectPattern(pattern string) error {
	if err := cmp.Or(checkSubject(pattern), checkStars(pattern)); err != nil {
		return err
	}
	switch {
	case !strings.ContainsFunc(pattern, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }):
		return errors.New("the subject would match every caller of the issuer: it must have a letter or digit besides each *")
	case strings.Contains(pattern, "*") && strings.ContainsAny(pattern, `?[\`):
		return errors.New(`?, [ and \ cannot be combined with a *: only * is special`)
	}
	return nil
}

func checkPrintable(what, s string, most int) error {
	switch {
	case s == "":
		return fmt.Errorf("the %s is missing", what)
	case len(s) > most:
		return fmt.Errorf("the %s is longer than %d bytes", what, most)
	case strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) >= 0:
		return fmt.Errorf("the %s must be printable ASCII", what)
	case strings.TrimSpace(s) != s:
		return fmt.Errorf("the %s must not begin or end with a space", what)
	}
	return nil
}

var profileName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func checkProfileName(name string) error {
	switch {
	case name == Passthrough:
		return errors.New("the name is reserved for the caller's own Atlas JWT")
	case !profileName.MatchString(name):
		return errors.New("a name must have 1 to 63 lower-case letters, digits and hyphens, and not begin with a hyphen")
	}
	return nil
}
