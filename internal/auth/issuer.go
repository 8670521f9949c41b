package auth

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json" // case-sensitive, and refuses duplicate names
	"github.com/go-jose/go-jose/v4/jwt"
)

// The errors of a caller's OIDC token.
var (
	// ErrCallerRejected: the token is not accepted. The error that wraps it says why, for the log.
	ErrCallerRejected = errors.New("the caller's OIDC token is not accepted")
	// ErrCallerCheckUnavailable: the token cannot be verified because its issuer cannot be reached.
	ErrCallerCheckUnavailable = errors.New("the caller's OIDC token cannot be checked")
	// ErrNoUsableKey: the issuer answers, but without a key that could verify a token.
	ErrNoUsableKey = errors.New("it publishes no key of a known kind")
)

// signingAlgorithms are asymmetric, whatever an issuer offers, so that a public key is never used
// as a secret (RFC 8725 section 3.1).
var signingAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// Limits of a request to an issuer.
const (
	issuerTimeout     = 5 * time.Second
	maxIssuerResponse = 1 << 20
)

// maxIssuerWaits limits the calls that wait for an issuer's keys. A client can invent any number of
// tokens with an unknown key, and each of these calls is in progress.
const maxIssuerWaits = 32

// timing says how often an issuer is asked. Tests shorten it.
type timing struct {
	retryMin, retryMax time.Duration // backoff after a failed fetch, doubling, with jitter
	again              time.Duration // interval of successful fetches, which find withdrawn keys
	keys               time.Duration // shortest interval of fetches for tokens with an unknown key
}

var defaultTiming = timing{retryMin: time.Second, retryMax: time.Minute, again: time.Hour, keys: 2 * time.Second}

// issuer verifies the OIDC tokens of one issuer. Only run fetches its keys, in the background, so
// that no caller's deadline cancels a fetch that others wait for. go-oidc keeps withdrawn keys,
// does not limit its fetches and reads unbounded answers.
type issuer struct {
	issuerConfig

	roots  func() *x509.CertPool // nil: the system's
	timing timing
	log    *slog.Logger
	stop   context.CancelFunc // ends run

	wanted  chan struct{} // requests a fetch
	waiting atomic.Int32  // calls that wait for one
	last    atomic.Pointer[fetched]
}

// fetched is the state after a fetch.
type fetched struct {
	keys   []jose.JSONWebKey // of the last successful fetch; nil before
	keysAt time.Time         // when that fetch began
	err    error             // nil if this one succeeded
	began  time.Time         // zero before the first fetch
	next   chan struct{}     // closed after the next fetch, and when there is no other
}

// errStopped is the error of an issuer after run has ended.
var errStopped = errors.New("the issuer is no longer asked")

// run fetches the issuer's keys until ctx is done: with backoff until it succeeds, then at
// intervals and when a token has an unknown key.
func (i *issuer) run(ctx context.Context) {
	delay := i.timing.retryMin
	for {
		last := i.last.Load()
		now := &fetched{keys: last.keys, keysAt: last.keysAt, began: time.Now(), next: make(chan struct{})}
		keys, err := fetchKeys(ctx, i.URL, i.roots)
		wait, stopped := i.timing.again, ctx.Err() != nil
		switch {
		case stopped:
			now.err, now.next = errStopped, last.next
		case err != nil:
			now.err = err
			wait = delay/2 + rand.N(delay/2+1) //nolint:gosec // jitter needs no secrecy
			delay = min(2*delay, i.timing.retryMax)
			if last.err == nil || last.err.Error() != err.Error() {
				i.log.WarnContext(ctx, "OIDC issuer cannot be used, retrying", slog.String("issuer", i.URL), slog.Any("error", err))
			}
		default:
			now.keys, now.keysAt = keys, now.began
			delay = i.timing.retryMin
			if last.keys == nil || last.err != nil {
				i.log.InfoContext(ctx, "OIDC issuer is ready", slog.String("issuer", i.URL), slog.String("audience", i.Audience))
			}
		}
		i.last.Store(now)
		close(last.next)
		if stopped {
			return
		}
		select {
		case <-ctx.Done(): // the next fetch fails at once
		case <-time.After(wait):
		case <-i.wanted:
		}
	}
}

// CheckIssuer fetches an issuer's keys as an [Authenticator] does, and returns the number of usable
// keys. If roots is nil, it trusts the system's authorities.
func CheckIssuer(ctx context.Context, url string, roots func() *x509.CertPool) (keys int, err error) {
	found, err := fetchKeys(ctx, url, roots)
	return len(found), err
}

// fetchKeys reads an issuer's configuration (OpenID Connect Discovery section 4) and keys. It does
// not keep connections, because the trusted authorities may change.
func fetchKeys(ctx context.Context, url string, roots func() *x509.CertPool) ([]jose.JSONWebKey, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if roots != nil {
		tlsConfig.RootCAs = roots()
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport, Timeout: issuerTimeout,
		// Redirects are not followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var configuration struct {
		Issuer  string `json:"issuer"`
		KeysURL string `json:"jwks_uri"`
	}
	if err := getJSON(ctx, client, strings.TrimSuffix(url, "/")+"/.well-known/openid-configuration", &configuration); err != nil {
		return nil, err
	}
	if configuration.Issuer != url {
		return nil, fmt.Errorf("its configuration is for issuer %.200q", configuration.Issuer)
	}
	var set struct {
		Keys []josejson.RawMessage `json:"keys"`
	}
	if err := getJSON(ctx, client, configuration.KeysURL, &set); err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	keys := make([]jose.JSONWebKey, 0, len(set.Keys))
	for _, text := range set.Keys {
		var key jose.JSONWebKey
		if josejson.Unmarshal(text, &key) == nil && key.IsPublic() { // unknown kinds are ignored (RFC 7517 section 5)
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, ErrNoUsableKey
	}
	return keys, nil
}

// getJSON fetches a JSON document over HTTPS. No error quotes it.
func getJSON(ctx context.Context, client *http.Client, url string, to any) error {
	if !strings.HasPrefix(url, "https://") {
		return errors.New("the issuer's documents must be at https URLs")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the issuer answered with status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxIssuerResponse+1))
	switch {
	case err != nil:
		return err
	case len(body) > maxIssuerResponse:
		return errors.New("the issuer's answer is larger than 1 MiB")
	case josejson.Unmarshal(body, to) != nil:
		return errors.New("the issuer's answer is not the expected JSON")
	}
	return nil
}

// check returns an error if there is no key to verify tokens with.
func (f *fetched) check(url string) error {
	switch {
	case f.keys != nil:
		return nil
	case f.err != nil:
		return fmt.Errorf("OIDC issuer %s: %w", url, f.err)
	}
	return fmt.Errorf("OIDC issuer %s has not answered yet", url)
}

// newer waits for a fetch after last. It returns last if that is recent, so that invalid tokens do
// not flood the issuer, and an error if too many calls are waiting.
func (i *issuer) newer(ctx context.Context, last *fetched) (*fetched, error) {
	if time.Since(last.began) < i.timing.keys {
		return last, nil
	}
	defer i.waiting.Add(-1)
	if i.waiting.Add(1) > maxIssuerWaits {
		return nil, fmt.Errorf("%w: %d calls are already waiting for the keys of issuer %s", ErrCallerCheckUnavailable, maxIssuerWaits, i.URL)
	}
	wanted := i.wanted
	for {
		select {
		case wanted <- struct{}{}:
			wanted = nil // run has received it
		case <-last.next:
			return i.last.Load(), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// verify returns the caller that a token identifies. No error quotes unverified claims.
func (i *issuer) verify(ctx context.Context, token string) (Caller, error) {
	last := i.last.Load()
	if err := last.check(i.URL); err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrCallerCheckUnavailable, err)
	}
	subject, err := i.parse(token, last.keys)
	if errors.Is(err, errNoKey) { // there may be a new one (OpenID Connect Core section 10.1.1)
		if last, err = i.newer(ctx, last); err != nil {
			return Caller{}, err
		}
		if subject, err = i.parse(token, last.keys); errors.Is(err, errNoKey) && last.err != nil {
			return Caller{}, fmt.Errorf("%w: keys of issuer %s: %w", ErrCallerCheckUnavailable, i.URL, last.err)
		}
	}
	if err != nil {
		return Caller{}, fmt.Errorf("%w: issuer %s: %w", ErrCallerRejected, i.URL, err)
	}
	return Caller{Kind: kindOIDC, Name: i.URL + "#" + subject}, nil
}

// errNoKey means that none of the known keys verifies the token.
var errNoKey = errors.New("no key verifies it")

// parse verifies the signature of a token and returns its subject.
func (i *issuer) parse(token string, keys []jose.JSONWebKey) (string, error) {
	signed, err := jose.ParseSignedCompact(token, signingAlgorithms)
	if err != nil {
		return "", errors.New("it is not a JWT, or its signature algorithm is not accepted")
	}
	kid := signed.Signatures[0].Header.KeyID
	for _, key := range keys {
		if kid != "" && kid != key.KeyID {
			continue
		}
		if payload, err := signed.Verify(key.Key); err == nil {
			return i.subject(payload)
		}
	}
	return "", errNoKey
}

// clockLeeway is how far ahead an issuer's clock may be. It does not extend an expiry.
const clockLeeway = time.Minute

// registeredClaims are the claims of RFC 7519 section 4.1.
var registeredClaims = []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"}

// peekIssuer returns the unverified issuer of a JWT, to choose the keys that verify it. It is empty
// for a JWT without one, such as Atlas's, and for one that cannot be read. An issuer that is not a
// string is ErrMalformed.
//
// A registered claim that occurs twice or in another case, such as SUB, is ErrCallerRejected,
// because an issuer may let users choose the names of further claims.
func peekIssuer(token string) (string, error) {
	_, rest, _ := strings.Cut(token, ".")
	payload, _, _ := strings.Cut(rest, ".")
	decoded, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || !bytes.HasPrefix(bytes.TrimSpace(decoded), []byte("{")) {
		return "", nil //nolint:nilerr // Atlas decides whether it is valid
	}
	var claims map[string]josejson.RawMessage
	if josejson.Unmarshal(decoded, &claims) != nil {
		return "", fmt.Errorf("%w: its claims are not JSON, or one is there twice", ErrCallerRejected)
	}
	for name := range claims {
		if slices.ContainsFunc(registeredClaims, func(r string) bool { return name != r && strings.EqualFold(name, r) }) {
			return "", fmt.Errorf("%w: it has a claim in another case", ErrCallerRejected)
		}
	}
	if claims["iss"] == nil {
		return "", nil
	}
	var issuer string
	if err := josejson.Unmarshal(claims["iss"], &issuer); err != nil || issuer == "" {
		return "", ErrMalformed
	}
	return issuer, nil
}

// subject checks the claims of a token whose signature is verified, and returns its subject.
// peekIssuer has checked their names.
func (i *issuer) subject(payload []byte) (string, error) {
	var claims jwt.Claims
	if josejson.Unmarshal(payload, &claims) != nil {
		return "", errors.New("a claim has the wrong type")
	}
	switch {
	case claims.Expiry == nil:
		return "", errors.New("it has no expiry")
	case !time.Now().Before(claims.Expiry.Time()): // without the leeway
		return "", fmt.Errorf("it expired at %s", claims.Expiry.Time().UTC().Format(time.RFC3339))
	case len(claims.Audience) != 1: // another audience could replay it here (OpenID Connect Core section 3.1.3.7)
		return "", errors.New("it is for several audiences, or for none")
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{Issuer: i.URL, AnyAudience: jwt.Audience{i.Audience}}, clockLeeway); err != nil {
		return "", err
	}
	return claims.Subject, checkSubject(claims.Subject)
}
