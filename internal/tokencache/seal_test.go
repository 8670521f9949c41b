package tokencache

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
)

var (
	epochA = epoch(strings.Repeat("a", epochLen))
	epochB = epoch(strings.Repeat("b", epochLen))
)

// sample is a value and all that it takes to open it.
type sample struct {
	header sealed
	cred   atlas.Credential
	name   string
	token  atlas.Token
	now    int64
}

func newSample() sample {
	cred := own(newJWT(orgA, "u", time.Time{}))
	return sample{
		header: sealed{since: 1000, fresh: 2000, until: 3000, all: epochA, org: epochB},
		cred:   cred, name: tokenKey(cred), token: "0123456789abcdef", now: 1500,
	}
}

func (s sample) seal() []byte { return s.header.seal(newAEAD(s.cred), s.name, s.token) }

func (s sample) open(value []byte) (atlas.Token, sealed, error) {
	return open(value, newAEAD(s.cred), s.name, s.now, s.header.all, s.header.org)
}

func TestSealedTokensOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		anEpoch := rapid.StringMatching(`[0-9a-f]{32}`)
		since := rapid.Int64Range(0, 1<<50).Draw(t, "since")
		until := since + rapid.Int64Range(1, 1<<40).Draw(t, "life")
		s := sample{
			header: sealed{
				since: since, fresh: rapid.Int64Range(since, until).Draw(t, "fresh"), until: until,
				all: epoch(anEpoch.Draw(t, "all")), org: epoch(anEpoch.Draw(t, "org")),
			},
			cred: atlas.Credential{
				JWT: atlas.JWT(rapid.String().Draw(t, "JWT")), Profile: rapid.String().Draw(t, "profile"),
				Secret: atlas.UserAuthToken(rapid.String().Draw(t, "secret")),
			},
			name:  rapid.String().Draw(t, "name"),
			token: atlas.Token(rapid.StringN(1, -1, -1).Draw(t, "token")),
			now:   rapid.Int64Range(since, until-1).Draw(t, "now"),
		}
		token, header, err := s.open(s.seal())
		if err != nil || token != s.token || header != s.header {
			t.Fatalf("got %q, %+v, %v; want %q, %+v", string(token), header, err, string(s.token), s.header)
		}
	})
}

func TestWhatIsNotOpened(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*sample)
		want   error
	}{
		"another name":       {func(s *sample) { s.name += "x" }, errSeal},
		"another credential": {func(s *sample) { s.cred.JWT += "x" }, errSeal},
		"of a profile":       {func(s *sample) { s.cred.Profile, s.cred.Secret = "acme", atlas.UserAuthToken(s.cred.JWT) }, errSeal},
		"another org epoch":  {func(s *sample) { s.header.org = epochA }, errMoved},
		"another epoch":      {func(s *sample) { s.header.all = epochB }, errMoved},
		"no epoch":           {func(s *sample) { s.header.all, s.header.org = "", "" }, errMoved},
		"expired":            {func(s *sample) { s.now = 3000 }, errExpired},
		"from the future":    {func(s *sample) { s.now = 999 }, errExpired},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSample()
			value := s.seal()
			tc.change(&s)
			if token, _, err := s.open(value); !errors.Is(err, tc.want) || token != "" {
				t.Errorf("got %q, %v; want %v", string(token), err, tc.want)
			}
		})
	}
}

func TestAnAlteredValueIsNotOpened(t *testing.T) {
	s := newSample()
	value := s.seal()
	for i := range len(value) * 8 {
		altered := bytes.Clone(value)
		altered[i/8] ^= 1 << (i % 8)
		if _, _, err := s.open(altered); !errors.Is(err, errSeal) {
			t.Errorf("bit %d flipped: %v, want errSeal", i, err)
		}
	}
	for n := range len(value) {
		if _, _, err := s.open(value[:n]); !errors.Is(err, errSeal) {
			t.Errorf("cut to %d bytes: %v, want errSeal", n, err)
		}
	}
	if _, _, err := s.open(append(bytes.Clone(value), 0)); !errors.Is(err, errSeal) {
		t.Errorf("one byte more: %v, want errSeal", err)
	}
	s.token = ""
	if _, _, err := s.open(s.seal()); !errors.Is(err, errSeal) {
		t.Errorf("no token: %v, want errSeal", err)
	}
}

func TestASealedValueTellsNothing(t *testing.T) {
	s := newSample()
	one, two := s.seal(), s.seal()
	if bytes.Equal(one[headerLen:], two[headerLen:]) {
		t.Error("two seals of the same token are the same")
	}
	for _, secret := range []string{string(s.token), string(s.cred.JWT), s.cred.Claims().OrgID} {
		if bytes.Contains(one, []byte(secret)) || strings.Contains(s.name, secret) {
			t.Error("a secret is in the value or in its name")
		}
	}
}

// Names and keys of a credential have nothing to do with each other, nor with those of another one, whatever the two have in
// common.
func TestDerivedValuesDiffer(t *testing.T) {
	creds := []atlas.Credential{
		own("secret"), profile("secret", newJWT(orgA, "u", time.Time{})), profile("secret", newJWT(orgB, "u", time.Time{})),
		{JWT: newJWT(orgA, "u", time.Time{}), Profile: "other", Secret: "secret"},
		{JWT: newJWT("meorgA", "u", time.Time{}), Profile: "ac", Secret: "secret"},
		{JWT: newJWT("orgA", "u", time.Time{}), Profile: "acme", Secret: "secret"},
	}
	seen := map[string]bool{}
	for _, cred := range creds {
		for _, purpose := range []string{"name", "seal"} {
			seen[string(derive(cred, purpose, 16))] = true
		}
	}
	if len(seen) != 2*len(creds) {
		t.Errorf("%d values, want %d", len(seen), 2*len(creds))
	}
}

// sealedSample is what newSample was sealed to once, without the header: replicas of two versions read the same.
const sealedSample = "027d40b1c5305ee5e4accb03c86f6dd3df6c21fb3f298268" +
	"2a5027ca6482ee3b1b870c7b9b29513e8db9dd84"

func FuzzOpen(f *testing.F) {
	s := newSample()
	encrypted, err := hex.DecodeString(sealedSample)
	if err != nil {
		f.Fatal(err)
	}
	value := append(s.header.header(), encrypted...)
	f.Add([]byte(nil))
	f.Add(value)
	f.Add(value[:headerLen])
	f.Add(append(s.header.header(), make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		token, _, err := s.open(b)
		if bytes.Equal(b, value) {
			if err != nil || token != s.token {
				t.Errorf("what was sealed does not open: %v", err)
			}
			return
		}
		if err == nil || token != "" {
			t.Errorf("opened what was not sealed: %q, %v", string(token), err)
		}
	})
}
