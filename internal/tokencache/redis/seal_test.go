package redis

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var (
	epochA = strings.Repeat("a", epochLen)
	epochB = strings.Repeat("b", epochLen)
)

// sample is a value and the arguments that open it.
type sample struct {
	header sealed
	key    [32]byte
	name   string
	token  string
	now    int64
}

func newSample() sample {
	return sample{
		header: sealed{since: 1000, fresh: 2000, until: 3000, all: epochA, org: epochB},
		key:    [32]byte{1}, name: keyTokenPrefix + "0123", token: "0123456789abcdef", now: 1500,
	}
}

func (s sample) seal() []byte { return s.header.seal(newAEAD(s.key[:]), s.name, s.token) }

func (s sample) open(value []byte) (string, sealed, error) {
	return open(value, newAEAD(s.key[:]), s.name, s.now, s.header.all, s.header.org)
}

func TestSealedTokensOpen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		anEpoch := rapid.StringMatching(`[0-9a-f]{32}`)
		since := rapid.Int64Range(0, 1<<50).Draw(t, "since")
		until := since + rapid.Int64Range(1, 1<<40).Draw(t, "life")
		s := sample{
			header: sealed{
				since: since, fresh: rapid.Int64Range(since, until).Draw(t, "fresh"), until: until,
				all: anEpoch.Draw(t, "all"), org: anEpoch.Draw(t, "org"),
			},
			key:   [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")),
			name:  rapid.String().Draw(t, "name"),
			token: rapid.StringN(1, -1, -1).Draw(t, "token"),
			now:   rapid.Int64Range(since, until-1).Draw(t, "now"),
		}
		token, header, err := s.open(s.seal())
		if err != nil || token != s.token || header != s.header {
			t.Fatalf("got %q, %+v, %v; want %q, %+v", token, header, err, s.token, s.header)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*sample)
		want   error
	}{
		"another name":       {func(s *sample) { s.name += "x" }, errSeal},
		"another credential": {func(s *sample) { s.key[0]++ }, errSeal},
		"another org epoch":  {func(s *sample) { s.header.org = epochA }, errMoved},
		"another epoch":      {func(s *sample) { s.header.all = epochB }, errMoved},
		"no epoch":           {func(s *sample) { s.header.all, s.header.org = "", "" }, errMoved},
		"expired":            {func(s *sample) { s.now = 3000 }, errExpired},
		"removed late":       {func(s *sample) { s.now = 3000 + replayMargin }, errExpired},
		"replayed":           {func(s *sample) { s.now = 3001 + replayMargin }, errReplayed},
		"from the future":    {func(s *sample) { s.now = 999 }, errExpired},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSample()
			value := s.seal()
			tc.change(&s)
			if token, _, err := s.open(value); !errors.Is(err, tc.want) || token != "" {
				t.Errorf("got %q, %v; want %v", token, err, tc.want)
			}
		})
	}
}

func TestOpenRefusesAlteredValues(t *testing.T) {
	s := newSample()
	value := s.seal()
	for i := range len(value) * 8 {
		altered := bytes.Clone(value)
		altered[i/8] ^= 1 << (i % 8)
		want := errSeal
		if i < 8 {
			want = errVersion
		}
		if _, _, err := s.open(altered); !errors.Is(err, want) {
			t.Errorf("bit %d flipped: %v, want %v", i, err, want)
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

func TestSealedValueHidesToken(t *testing.T) {
	s := newSample()
	one, two := s.seal(), s.seal()
	if bytes.Equal(one[headerLen:], two[headerLen:]) {
		t.Error("two seals of the same token are the same")
	}
	for _, secret := range []string{s.token, string(s.key[:])} {
		if bytes.Contains(one, []byte(secret)) || strings.Contains(s.name, secret) {
			t.Error("a secret is in the value or in its name")
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := newSample()
	value := s.seal()
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
			t.Errorf("opened what was not sealed: %q, %v", token, err)
		}
	})
}
