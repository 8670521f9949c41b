package redis

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
)

// sealed is the value in Redis for a token: a header in clear text, which says until when and with
// which fences the token may be used, and the token, encrypted with a key that is derived from the
// credential. The encryption authenticates the header and the name of the value as well, so a
// header cannot be changed and a value cannot be moved to another name.
//
//	version 1 | since 8 | fresh 8 | until 8 | epoch of all 32 | epoch of the org 32 | nonce 12 | token | tag 16
//
// Times are milliseconds of Redis's clock, so that those of the replicas do not matter.
type sealed struct {
	since, fresh, until int64
	all, org            string
}

const (
	sealVersion = 1
	epochLen    = 32
	headerLen   = 1 + 3*8 + 2*epochLen
	// replayMargin is how long after its end a value counts as replayed. Redis removes it then, and
	// may do so a moment late.
	replayMargin = 1000 // ms
)

// Why a value is not used.
var (
	errVersion  = errors.New("the value has the format of another version")
	errMoved    = errors.New("the value is from before the fence moved")
	errExpired  = errors.New("the value has expired")
	errReplayed = errors.New("the value still exists long after it has expired")
	errSeal     = errors.New("the value does not open")
)

func (s sealed) header() []byte {
	b := make([]byte, 0, headerLen)
	b = append(b, sealVersion)
	for _, t := range []int64{s.since, s.fresh, s.until} {
		b = binary.BigEndian.AppendUint64(b, uint64(t)) //nolint:gosec // open converts it back
	}
	b = append(b, s.all...)
	return append(b, s.org...)
}

// seal returns the value to store under name for token.
func (s sealed) seal(aead cipher.AEAD, name, token string) []byte {
	header := s.header()
	return aead.Seal(header, nil, []byte(token), append([]byte(name), header...)) //nolint:gosec // it makes its own nonce
}

// open returns the token and the header of a value that was found under name, if it belongs to the
// current epochs.
func open(value []byte, aead cipher.AEAD, name string, now int64, all, org string) (string, sealed, error) {
	if len(value) > 0 && value[0] != sealVersion {
		return "", sealed{}, errVersion
	}
	if len(value) < headerLen {
		return "", sealed{}, errSeal
	}
	header := value[:headerLen:headerLen]
	at := func(i int) int64 { return int64(binary.BigEndian.Uint64(header[1+8*i:])) } //nolint:gosec // as above
	s := sealed{
		since: at(0), fresh: at(1), until: at(2),
		all: string(header[25 : 25+epochLen]), org: string(header[25+epochLen:]),
	}
	token, err := aead.Open(nil, nil, value[headerLen:], append([]byte(name), header...))
	switch {
	case err != nil || len(token) == 0: // checked first: an altered header must not count as an old one
		return "", sealed{}, errSeal
	case s.all != all || s.org != org:
		return "", sealed{}, errMoved
	case now-s.until > replayMargin:
		return "", sealed{}, errReplayed
	case now >= s.until, now < s.since: // Redis's clock may have been set back
		return "", sealed{}, errExpired
	}
	return string(token), s, nil
}

// newAEAD returns AES-256-GCM with random nonces. A credential would have to store 2^32 tokens for
// them to be used up.
func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // cannot happen: the key has 32 bytes
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // cannot happen: AES has GCM's block size
	}
	return aead
}
