//go:build unix

package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
)

// renewals are the logins and refreshes of a profile that are in the log, oldest first: "refresh done", "login failed".
func (s *service) renewals(profile string) (all []string) {
	for line := range strings.Lines(s.stderr.String()) {
		var record struct{ Msg, Profile, Operation string }
		if json.Unmarshal([]byte(line), &record) != nil || record.Profile != profile {
			continue
		}
		switch record.Msg {
		case "Atlas identity renewed":
			all = append(all, record.Operation+" done")
		case "Atlas identity failed":
			all = append(all, record.Operation+" failed")
		}
	}
	return all
}

// refuseOneRound has Atlas refuse refresh and login, until both profiles have met with that, and returns when both have a new
// JWT. It reports whether they have it by a refresh: whoever was slow has it by a login, because the JWT had expired.
func (s *service) refuseOneRound(t *testing.T) (byRefresh bool) {
	t.Helper()
	before := map[string]int{}
	each := func(what string, so func(since []string) bool) {
		t.Helper()
		for _, profile := range []string{"one", "two"} {
			poll(t, fmt.Sprintf("profile %s: %s", profile, what), func() bool { return so(s.renewals(profile)[before[profile]:]) })
		}
	}
	for _, profile := range []string{"one", "two"} {
		before[profile] = len(s.renewals(profile))
	}
	accept := s.atlas.Inject(emulator.Fault{On: emulator.Refresh, Status: 403})
	acceptToo := s.atlas.Inject(emulator.Fault{On: emulator.Login, Status: 403})
	each("a refused login", func(since []string) bool { return slices.Contains(since, "login failed") })
	accept()
	acceptToo()
	byRefresh = true
	each("a new JWT", func(since []string) bool {
		for i, renewal := range since {
			if i > 0 && strings.HasSuffix(renewal, " done") && since[i-1] == "login failed" {
				byRefresh = byRefresh && renewal == "refresh done"
				return true
			}
		}
		return false
	})
	return byRefresh
}

// asked are the tokens that the callers of one profile were given.
type asked struct {
	mu     sync.Mutex
	tokens map[string]int // guarded by mu; how often
	all    int            // guarded by mu
}

func (a *asked) add(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token != "" {
		a.tokens[token]++
		a.all++
	}
}

func (a *asked) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all
}

// TestProfilesRefused: Atlas refuses refresh and login of two profiles for a round, and takes them again. Before, meanwhile and
// after, no caller of the one org is given the other's token.
func TestProfilesRefused(t *testing.T) {
	t.Parallel()
	for _, ttl := range []string{"0s", "1s"} {
		t.Run("cache-ttl "+ttl, func(t *testing.T) {
			certs, em := makeCertificates(t), startHurriedAtlas(t)
			em.Inject(emulator.Fault{On: emulator.Create, Delay: 3 * time.Millisecond}) // so that calls meet
			policy := fmt.Sprintf(`
profiles:
  one: {userauthtoken_file: %s}
  two: {userauthtoken_file: %s}
callers:
  - {dns_san: web.internal, allow: [CreateToken], profile: one}
  - {dns_san: batch.internal, allow: [CreateToken], profile: two}
`, writeFile(t, "one", []byte(em.Org(0).UserAuthToken())), writeFile(t, "two", []byte(em.Org(1).UserAuthToken())))
			s := invocation{hurried: true, args: []string{
				"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey, "--tls-client-ca-file=" + certs.caFile,
				"--policy-file=" + writeFile(t, "policy.yaml", []byte(policy)), "--cache-ttl=" + ttl,
			}}.startServe(t, em)

			batch := &x509.Certificate{DNSNames: []string{"batch.internal"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
			key := sign(t, batch, certs.ca, certs.caKey)
			var load sync.WaitGroup
			ctx, stop := context.WithCancel(t.Context())
			defer func() {
				stop()
				load.Wait()
			}()
			callers := []*asked{{tokens: map[string]int{}}, {tokens: map[string]int{}}}
			for org, cert := range []tls.Certificate{certs.client, {Certificate: [][]byte{batch.Raw}, PrivateKey: key}} {
				s.callAs(ctx, t, &load, &tls.Config{RootCAs: certs.pool, Certificates: []tls.Certificate{cert}}, callers[org])
			}
			more := func(n int) {
				t.Helper()
				for org, c := range callers {
					before := c.count()
					poll(t, fmt.Sprintf("callers of org %d to be answered", org), func() bool { return c.count() >= before+n })
				}
			}
			more(1)
			rounds := 1
			for ; !s.refuseOneRound(t); rounds++ {
				if rounds == 10 {
					t.Fatal("no JWT outlived the round: that proves nothing")
				}
			}
			more(100)
			stop()
			load.Wait()
			s.checkOwnTokens(t, callers)
			t.Logf("%d and %d answers, %d rounds", callers[0].count(), callers[1].count(), rounds)
		})
	}
}

// callAs has callers with a client certificate call until ctx ends, over both transports.
func (s *service) callAs(ctx context.Context, t *testing.T, load *sync.WaitGroup, config *tls.Config, answers *asked) {
	t.Helper()
	client := newHTTPClient(t, config)
	conn, err := grpc.NewClient("passthrough:///"+s.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	rpc := ephemeraltokenv1.NewEphemeralTokenServiceClient(conn)
	for range 4 {
		load.Go(func() {
			for ctx.Err() == nil {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.http+restPath, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := do(client, req); err == nil {
					answers.add(got.token())
				}
				got, _ := rpc.CreateToken(ctx, &ephemeraltokenv1.CreateTokenRequest{}) // refused while there is no JWT
				answers.add(got.GetToken())
			}
		})
	}
}

// checkOwnTokens checks that the callers of each profile were given tokens of their own org and no other.
func (s *service) checkOwnTokens(t *testing.T, callers []*asked) {
	t.Helper()
	orgOf := map[string]string{}
	for _, token := range s.atlas.Tokens() {
		orgOf[token.Value] = token.OrgID
	}
	for org, c := range callers {
		for token, n := range c.tokens {
			if orgOf[token] != s.atlas.Org(org).ID {
				t.Errorf("%d of %d answers to callers of org %d had a token that is not its own", n, c.all, org)
			}
		}
	}
}
