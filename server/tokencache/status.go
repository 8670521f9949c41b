package tokencache

import (
	"cmp"
	"strconv"
	"strings"
	"time"
)

// Why a call went to Atlas (RFC 9211 §2.2).
const (
	ForwardMiss    = "miss"    // nothing usable was remembered
	ForwardRequest = "request" // the caller did not want what is remembered
)

// Status is how a create was answered.
type Status struct {
	Hit       bool          // from memory
	Stale     bool          // of a hit: kept beyond its TTL, because Atlas failed
	TTL       time.Duration // of a hit: how much longer it is fresh; negative if it is stale
	Age       time.Duration // of a hit: since Atlas was asked
	Forward   string        // if it is no hit: why Atlas was asked
	Collapsed bool          // others shared the call, and this was not the first
}

// String is the value of the Cache-Status header (RFC 9211).
func (s Status) String() string {
	var b strings.Builder
	b.WriteString("tokend")
	switch {
	case s.Stale:
		b.WriteString("; hit; detail=stale")
	case s.Hit:
		b.WriteString("; hit; ttl=" + strconv.FormatInt(int64(s.TTL/time.Second), 10))
	default:
		b.WriteString("; fwd=" + cmp.Or(s.Forward, ForwardMiss))
		if s.Collapsed {
			b.WriteString("; collapsed")
		}
	}
	return b.String()
}

// AgeSeconds is the value of the Age header of a hit (RFC 9111 §5.1).
func (s Status) AgeSeconds() string { return strconv.FormatInt(int64(s.Age/time.Second), 10) }
