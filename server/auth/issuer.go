package auth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

// What is wrong with a caller's OIDC token, or with asking about it.
var (
	// ErrCallerRejected: the token is not one that is accepted. The error that wraps it says why, for the log.
	ErrCallerRejected = errors.New("the caller's OIDC token is not accepted")
	// ErrCallerCheckUnavailable: whether it is, cannot be told, because its issuer cannot be reached. Waiting helps.
	ErrCallerCheckUnavailable = errors.New("the caller's OIDC token cannot be checked")
)

// clockLeeway is how far ahead an issuer's clock may be. Nothing is added to the other end: expired is expired.
const clockLeeway = time.Minute

// signingAlgorithms are those accepted, whatever an issuer offers: asymmetric ones, so that a public key is never taken for
// a secret (RFC 8725 §3.1).
var signingAlgorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512,
	oidc.PS256, oidc.PS384, oidc.PS512,
	oidc.ES256, oidc.ES384, oidc.ES512,
	oidc.EdDSA,
}

// timing is how often an issuer is asked; tests are less patient.
type timing struct {
	retryMin, retryMax time.Duration // between attempts at discovery, doubling, with jitter
	again              time.Duration // between discoveries when all is well: an issuer may move its keys
	keys               time.Duration // at least, between fetches of the keys
}

var defaultTiming = timing{retryMin: time.Second, retryMax: time.Minute, again: time.Hour, keys: 2 * time.Second}

// issuer verifies the OIDC tokens of one issuer. Where its keys are, it finds out in the background.
type issuer struct {
	Issuer

	transport http.RoundTripper
	timing    timing
	log       *slog.Logger

	ready  atomic.Pointer[verifier]
	failed atomic.Pointer[error] // why the last discovery failed, nil if it did not
}

type verifier struct {
	*oidc.IDTokenVerifier

	keysURL string
}

// run discovers the issuer's keys until ctx is done, first until it succeeds and then from time to time.
func (i *issuer) run(ctx context.Context) {
	transport := issuerTransport{base: i.transport, life: ctx}
	delay := i.timing.retryMin
	for {
		wait := i.timing.again
		if err := i.discover(ctx, transport); ctx.Err() != nil {
			return
		} else if err != nil {
			wait = delay/2 + rand.N(delay/2+1) //nolint:gosec // jitter needs no secrecy
			delay = min(2*delay, i.timing.retryMax)
			if last := i.failed.Swap(&err); last == nil || (*last).Error() != err.Error() {
				i.log.WarnContext(ctx, "OIDC issuer cannot be used, trying again", slog.String("issuer", i.URL), slog.Any("error", err))
			}
		} else {
			i.failed.Store(nil)
			delay = i.timing.retryMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// discover reads the issuer's configuration. A verifier that is in use stays, with the keys it has, unless they moved.
func (i *issuer) discover(ctx context.Context, transport issuerTransport) error {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, issuerClient(transport)), i.URL)
	var other *oidc.IssuerMismatchError
	if errors.As(err, &other) {
		return fmt.Errorf("its configuration is that of %s", quotable(other.Discovered))
	} else if err != nil {
		return err
	}
	var document struct {
		KeysURL string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return err
	}
	if u, err := url.Parse(document.KeysURL); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%w: its jwks_uri is not one", errNotHTTPS)
	}
	if v := i.ready.Load(); v != nil && v.keysURL == document.KeysURL {
		return nil
	}
	client := issuerClient(&keyTransport{base: transport, every: i.timing.keys})
	keys := oidc.NewRemoteKeySet(oidc.ClientContext(ctx, client), document.KeysURL)
	i.ready.Store(&verifier{
		IDTokenVerifier: oidc.NewVerifier(i.URL, sharedKeys{keys}, &oidc.Config{
			ClientID:             i.Audience,
			SupportedSigningAlgs: signingAlgorithms,
		}),
		keysURL: document.KeysURL,
	})
	i.log.InfoContext(ctx, "OIDC issuer is ready", slog.String("issuer", i.URL), slog.String("audience", i.Audience))
	return nil
}

func issuerClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport: transport,
		// Never anywhere else than where the issuer said.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// sharedKeys is go-oidc's key set, which fetches the keys once for all who wait for them, detached from each of them. It
// tells the one who waits how that went: go-oidc flattens it into the text of an error.
type sharedKeys struct{ *oidc.RemoteKeySet }

type outcomeKey struct{}

// keyOutcome is how it went for one token.
type keyOutcome struct {
	verified bool
	fetch    error // why the keys could not be fetched
}

func (k sharedKeys) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	payload, err := k.RemoteKeySet.VerifySignature(ctx, jwt)
	if outcome, ok := ctx.Value(outcomeKey{}).(*keyOutcome); ok {
		outcome.verified = err == nil
		// A signature that does not verify is an error that wraps nothing, keys that cannot be fetched one that does.
		outcome.fetch = errors.Unwrap(err)
	}
	return payload, err
}

// verify returns the caller for whom the issuer has made the token. No error quotes what has not been verified.
func (i *issuer) verify(ctx context.Context, token string) (Caller, error) {
	v := i.ready.Load()
	if v == nil {
		if err := i.failed.Load(); err != nil {
			return Caller{}, fmt.Errorf("%w: issuer %s: %w", ErrCallerCheckUnavailable, i.URL, *err)
		}
		return Caller{}, fmt.Errorf("%w: issuer %s has not answered yet", ErrCallerCheckUnavailable, i.URL)
	}
	var outcome keyOutcome
	verified, err := v.Verify(context.WithValue(ctx, outcomeKey{}, &outcome), token)
	if err == nil {
		err = i.check(verified)
	}
	var expired *oidc.TokenExpiredError
	switch {
	case err == nil:
		return Caller{Kind: KindOIDC, Name: i.URL + "#" + verified.Subject}, nil
	case outcome.fetch != nil && ctx.Err() != nil:
		return Caller{}, ctx.Err()
	case outcome.fetch != nil:
		return Caller{}, fmt.Errorf("%w: keys of issuer %s: %w", ErrCallerCheckUnavailable, i.URL, unquoted(outcome.fetch))
	case !outcome.verified:
		return Caller{}, fmt.Errorf("%w: no key of issuer %s verifies it", ErrCallerRejected, i.URL)
	case errors.As(err, &expired) && expired.Expiry.Unix() <= 0:
		return Caller{}, fmt.Errorf("%w: it has no exp", ErrCallerRejected)
	}
	return Caller{}, fmt.Errorf("%w: %w", ErrCallerRejected, err)
}

// unquoted is why keys could not be fetched. Of a document that it cannot read, go-oidc quotes all.
func unquoted(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		return request
	}
	return errKeysUnreadable
}

// check is what go-oidc leaves to us, or sees less strictly.
func (i *issuer) check(token *oidc.IDToken) error {
	// Whoever else a token is for could use it here (OpenID Connect Core §3.1.3.7).
	if len(token.Audience) != 1 {
		return errors.New("it is for several audiences")
	}
	if err := checkSubject(token.Subject); err != nil {
		return err
	}
	latest := time.Now().Add(clockLeeway)
	if token.IssuedAt.After(latest) {
		return errors.New("it was issued in the future")
	}
	var claims struct {
		NotBefore *float64 `json:"nbf"`
	}
	if err := token.Claims(&claims); err != nil {
		return errors.New("its nbf is not a number")
	}
	if claims.NotBefore != nil && *claims.NotBefore > float64(latest.Unix()) {
		return errors.New("it is not valid yet")
	}
	return nil
}
