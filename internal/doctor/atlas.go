package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// The checks that others need.
const (
	atlasDNS = "atlas DNS"
	atlasTCP = "atlas TCP"
	atlasTLS = "atlas TLS"
)

// Beyond clockDoubtful, JWTs seem to last shorter or longer than they do; beyond clockBad, tokens
// of OIDC issuers are refused, and so are certificates that have just been issued.
const (
	clockDoubtful = 5 * time.Second
	clockBad      = time.Minute
)

// atlasCheck is the state of the checks of Atlas.
type atlasCheck struct {
	client *atlas.Client
	proxy  bool
	// What the first steps connect to, and the setting that names it: Atlas or the proxy.
	name, host, port, setting string

	probed atlas.Probed
}

// atlasChecks connect to Atlas step by step, so that the first failure shows the cause.
func atlasChecks(s *setup.Setup) []check {
	a := &atlasCheck{client: s.Atlas, name: "Atlas", setting: "--atlas-url"}
	if target, err := url.Parse(s.Settings.AtlasURL); err == nil { // a wrong URL has been reported
		if proxy, err := http.ProxyFromEnvironment(&http.Request{URL: target}); err == nil && proxy != nil {
			target, a.proxy, a.name, a.setting = proxy, true, "the proxy", setup.ProxySetting
		}
		port := map[string]string{"http": "80", "socks5": "1080", "socks5h": "1080"}[target.Scheme]
		a.host, a.port = target.Hostname(), cmp.Or(target.Port(), port, "443")
	}
	settings := []string{"--atlas-url", setup.ProxySetting}
	return []check{
		{atlasDNS, settings, a.dns},
		{atlasTCP, append(settings, atlasDNS), a.tcp},
		{atlasTLS, append(settings, atlasTCP, "--atlas-ca-file", "--atlas-cert-file", "--atlas-key-file"), a.tls},
		{"atlas API", []string{atlasTLS}, a.api},
		{"atlas clock", []string{atlasTLS}, a.clock},
	}
}

func (a *atlasCheck) dns(ctx context.Context) Finding {
	found, err := net.DefaultResolver.LookupHost(ctx, a.host)
	if err != nil {
		return bad(fmt.Sprintf("the host of %s is not found: %v", a.name, err), "Correct the host in "+a.setting+", or this machine's resolver.")
	}
	return good("%s is at %s", a.name, strings.Join(found, ", "))
}

func (a *atlasCheck) tcp(ctx context.Context) Finding {
	addr := net.JoinHostPort(a.host, a.port)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return bad(fmt.Sprintf("cannot connect to %s: %v", a.name, err),
			"Allow the connection in firewalls, correct "+a.setting+", or name the proxy, if there is one, in "+setup.ProxySetting+".")
	}
	_ = conn.Close()
	return good("%s accepts connections at %s", a.name, addr)
}

// tls checks TLS and HTTP: it sends Atlas a request that needs no credential.
func (a *atlasCheck) tls(ctx context.Context) (f Finding) {
	var err error
	if a.probed, err = a.client.Probe(ctx); err != nil {
		return bad(atlasCause(err), a.remedy(err))
	}
	if a.probed.Certificate == nil {
		return bad("the connection has no certificate", "Correct --atlas-url.")
	}
	if f := expiryFinding(a.probed.Certificate, time.Now()); f.Status != Passed {
		return doubtful("Atlas's certificate: "+f.Detail, "Ask the operators of Atlas, or of the proxy in front of it, to renew it.")
	}
	return good("%s, %s, valid until %s", a.probed.Protocol, nameOf(a.probed.Certificate), utc(a.probed.Certificate.NotAfter))
}

// remedy is for failures between the connection and the answer.
func (a *atlasCheck) remedy(err error) string {
	var e *atlas.Error
	switch {
	case errors.As(err, &e) && e.Kind == atlas.KindTLS:
		return certificateRemedy(err, "Atlas", "--atlas-ca-file", "--atlas-url")
	case a.proxy:
		return "Have the proxy allow CONNECT to Atlas's host and port, with a user and password in HTTPS_PROXY if it wants them."
	}
	return "Check that Atlas answers at --atlas-url, and that nothing on the way breaks connections."
}

// certificateRemedy is for a server whose certificate is not accepted.
func certificateRemedy(err error, who, caFlag, urlSetting string) string {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		return "Check this machine's clock; if it is right, have the certificate of " + who + " renewed."
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "Put the authority that signed the certificate of " + who + ", or of a proxy that intercepts TLS, into " + caFlag + "."
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "Use a host in " + urlSetting + " that the certificate of " + who + " names."
	}
	return "Check that " + who + " answers there over TLS, and whether it asks for a client certificate."
}

// isCertificateError reports whether a server's certificate was not accepted, or its TLS.
func isCertificateError(err error) bool {
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	return certificate || record
}

// atlasCause returns why a call failed, without the operation.
func atlasCause(err error) string {
	var e *atlas.Error
	switch {
	case !errors.As(err, &e):
		return err.Error()
	case e.Kind == atlas.KindCanceled:
		return "no complete answer in time"
	case e.StatusCode != 0:
		return fmt.Sprintf("HTTP %d: %v", e.StatusCode, e.Err)
	}
	return e.Err.Error()
}

func (a *atlasCheck) api(context.Context) Finding {
	const check = "Correct --atlas-url: it is Atlas's base URL, such as https://atlas.forsta.io/v1."
	switch code := a.probed.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusMethodNotAllowed:
		return good("HTTP %d without a credential, as expected", code)
	case code == http.StatusTooManyRequests:
		return doubtful("HTTP 429: Atlas throttles this machine", "Wait, and find out what else calls Atlas from here.")
	case code >= 500:
		return bad(fmt.Sprintf("HTTP %d: Atlas, or something in front of it, fails", code), "Wait, or ask the operators of Atlas; tokend keeps trying.")
	case code >= 300 && code < 400:
		return bad(fmt.Sprintf("HTTP %d: a redirect, which tokend does not follow", code), check)
	default:
		return doubtful(fmt.Sprintf("HTTP %d without a credential, where Atlas would refuse: another server, or another path", code), check)
	}
}

func (a *atlasCheck) clock(context.Context) Finding {
	off := a.probed.Clock
	if !a.probed.HasClock {
		return doubtful("Atlas does not say what time it is", "Compare this machine's clock with another.")
	}
	direction := "behind"
	if off < 0 {
		off, direction = -off, "ahead of"
	}
	detail := fmt.Sprintf("this machine's clock is %v %s Atlas's", off.Round(time.Second), direction)
	const remedy = "Synchronise this machine's clock by NTP; if it is right, tell the operators of Atlas."
	switch {
	case off >= clockBad:
		return bad(detail, remedy)
	case off >= clockDoubtful:
		return doubtful(detail, remedy)
	}
	return good("this machine's clock agrees with Atlas's")
}
