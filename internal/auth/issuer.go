package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// What is wrong with a caller's OIDC token, or with asking about it.
var (
	// ErrCallerRejected: the token is not one that is accepted. The error that wraps it says why, for the log.
	ErrCallerRejected = errors.New("the caller's OIDC token is not accepted")
	// ErrCallerCheckUnavailable: whether it is, cannot be told, because its issuer cannot be reached. Waiting helps.
	ErrCallerCheckUnavailable = errors.New("the caller's OIDC token cannot be checked")
	// ErrNoUsableKey is the error of [CheckIssuer] if the issuer answers, but not with a key that could verify a token.
	ErrNoUsableKey = errors.New("it publishes no key of a kind that is known")
)

// signingAlgorithms are those accepted, whatever an issuer offers: asymmetric ones, so that a public key is never taken for
// a secret (RFC 8725 §3.1).
var signingAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// The bounds of a request to an issuer.
const (
	issuerTimeout     = 5 * time.Second
	maxIssuerResponse = 1 << 20
)

// maxIssuerWaits is how many calls may wait for an issuer's keys at a time. A client can make up any number of tokens with an unknown
// key, and each of these calls takes one of the places for calls in progress.
const maxIssuerWaits = 32

// timing is how often an issuer is asked; tests are less patient.
type timing struct {
	retryMin, retryMax time.Duration // between attempts that fail, doubling, with jitter
	again              time.Duration // between fetches when all is well: an issuer may withdraw a key
	keys               time.Duration // at least, between fetches for tokens with a key that is not known
}

var defaultTiming = timing{retryMin: time.Second, retryMax: time.Minute, again: time.Hour, keys: 2 * time.Second}

// issuer verifies the OIDC tokens of one issuer. Its keys are fetched in the background, by run alone, so that no caller's
// deadline ends what others wait for.
type issuer struct {
	issuerConfig

	roots  func() *x509.CertPool // nil: the system's
	timing timing
	log    *slog.Logger

	stop    context.CancelFunc
	stopped <-chan struct{}
	wanted  chan struct{} // asks for a fetch
	waiting chan struct{} // has an entry for each call that waits for one
	last    atomic.Pointer[fetched]
}

// fetched is how things are after a fetch.
type fetched struct {
	keys   []jose.JSONWebKey // nil until a fetch has succeeded; those of the last one that did
	keysAt time.Time         // when that one began
	err    error             // nil if this one succeeded
	began  time.Time         // zero until the first one
	next   chan struct{}     // closed when there is a newer one
}

// run fetches the issuer's keys until ctx is done: until it succeeds, then from time to time, and when a token needs it.
func (i *issuer) run(ctx context.Context) {
	delay := i.timing.retryMin
	for {
		last, now := i.last.Load(), &fetched{began: time.Now(), next: make(chan struct{})}
		wait := i.timing.again
		if now.keys, now.err = i.fetch(ctx); ctx.Err() != nil {
			return
		} else if now.err != nil {
			now.keys, now.keysAt = last.keys, last.keysAt
			wait = delay/2 + rand.N(delay/2+1) //nolint:gosec // jitter needs no secrecy
			delay = min(2*delay, i.timing.retryMax)
			if last.err == nil || last.err.Error() != now.err.Error() {
				i.log.WarnContext(ctx, "OIDC issuer cannot be used, trying again", slog.String("issuer", i.URL), slog.Any("error", now.err))
			}
		} else {
			now.keysAt, delay = now.began, i.timing.retryMin
			if last.keys == nil || last.err != nil {
				i.log.InfoContext(ctx, "OIDC issuer is ready", slog.String("issuer", i.URL), slog.String("audience", i.Audience))
			}
		}
		i.last.Store(now)
		close(last.next)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		case <-i.wanted:
		}
	}
}

// CheckIssuer asks an issuer once, as an [Authenticator] does, and returns how many keys of a kind that is understood it
// publishes. roots are the authorities to believe; if nil, they are the system's.
func CheckIssuer(ctx context.Context, url string, roots func() *x509.CertPool) (keys int, err error) {
	i := &issuer{issuerConfig: issuerConfig{URL: url}, roots: roots}
	found, err := i.fetch(ctx)
	return len(found), err
}

// fetch reads the issuer's configuration (OpenID Connect Discovery §4), and the keys that this points to. Connections do not
// outlive it: the next one believes the authorities that there are then.
func (i *issuer) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if i.roots != nil {
		tlsConfig.RootCAs = i.roots()
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport, Timeout: issuerTimeout,
		// Never anywhere else than where the issuer said.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var configuration struct {
		Issuer  string `json:"issuer"`
		KeysURL string `json:"jwks_uri"`
	}
	if err := getJSON(ctx, client, strings.TrimSuffix(i.URL, "/")+"/.well-known/openid-configuration", &configuration); err != nil {
		return nil, err
	}
	if configuration.Issuer != i.URL {
		return nil, fmt.Errorf("its configuration is that of %s", quotable(configuration.Issuer))
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := getJSON(ctx, client, configuration.KeysURL, &set); err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	keys := make([]jose.JSONWebKey, 0, len(set.Keys))
	for _, text := range set.Keys {
		var key jose.JSONWebKey
		if json.Unmarshal(text, &key) == nil && key.IsPublic() { // unknown kinds are to be ignored (RFC 7517 section 5)
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, ErrNoUsableKey
	}
	return keys, nil
}

// getJSON fetches a document over HTTPS, whole or not at all. No error quotes it.
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
	case json.Unmarshal(body, to) != nil:
		return errors.New("the issuer's answer is not the JSON that it should be")
	}
	return nil
}

// check is why no token can be verified at present, nil if tokens can be.
func (f *fetched) check(url string) error {
	switch {
	case f.keys != nil:
		return nil
	case f.err != nil:
		return fmt.Errorf("OIDC issuer %s: %w", url, f.err)
	}
	return fmt.Errorf("OIDC issuer %s has not answered yet", url)
}

// newer waits for a fetch after last, unless that is recent: tokens that no key verifies must not flood the issuer. It does not wait
// if too many calls do.
func (i *issuer) newer(ctx context.Context, last *fetched) (*fetched, error) {
	if time.Since(last.began) < i.timing.keys {
		return last, nil
	}
	select {
	case i.waiting <- struct{}{}:
		defer func() { <-i.waiting }()
	default:
		return nil, fmt.Errorf("%w: %d calls wait for the keys of issuer %s already", ErrCallerCheckUnavailable, maxIssuerWaits, i.URL)
	}
	wanted := i.wanted
	for {
		select {
		case wanted <- struct{}{}:
			wanted = nil // run has it
		case <-last.next:
			return i.last.Load(), nil
		case <-i.stopped:
			return nil, fmt.Errorf("%w: issuer %s is no longer asked", ErrCallerCheckUnavailable, i.URL)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// verify returns the caller for whom the issuer has made the token. No error quotes what has not been verified.
func (i *issuer) verify(ctx context.Context, token string) (Caller, error) {
	last := i.last.Load()
	if err := last.check(i.URL); err != nil {
		return Caller{}, fmt.Errorf("%w: %w", ErrCallerCheckUnavailable, err)
	}
	subject, err := i.parse(token, last.keys)
	if errors.Is(err, errNoKey) { // there may be new ones (OpenID Connect Core §10.1.1)
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

// errNoKey: the token cannot be verified with the keys that there are.
var errNoKey = errors.New("no key verifies it")

// parse returns the subject of a token. It verifies the signature with one of the keys, and only then looks at the claims.
func (i *issuer) parse(token string, keys []jose.JSONWebKey) (string, error) {
	signed, err := jose.ParseSignedCompact(token, signingAlgorithms)
	if err != nil {
		return "", errors.New("it is not a JWT, or signed in a way that is not accepted")
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
