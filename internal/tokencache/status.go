package tokencache

import (
	"cmp"
	"strconv"
	"time"
)

// Why a call went to Atlas (RFC 9211 §2.2).
const (
	ForwardMiss    = "miss"    // nothing usable was cached
	ForwardRequest = "request" // the caller did not want a cached token
)

// Status is how a create was answered. The zero Status is that of a miss.
type Status struct {
	Hit       bool          // from memory
	Stale     bool          // of a hit: kept beyond its TTL, because Atlas failed
	TTL       time.Duration // of a hit: how much longer it is fresh; negative if it is stale
	Age       time.Duration // of a hit: since Atlas was asked
	Forward   string        // if it is no hit: why Atlas was asked; "" means ForwardMiss
	Collapsed bool          // others shared the call, and this was not the first
}

// String is the value of the Cache-Status header (RFC 9211).
func (s Status) String() string {
	switch {
	case s.Stale:
		return "tokend; hit; detail=stale"
	case s.Hit:
		return "tokend; hit; ttl=" + strconv.FormatInt(int64(s.TTL/time.Second), 10)
	case s.Collapsed:
		return "tokend; fwd=" + cmp.Or(s.Forward, ForwardMiss) + "; collapsed"
	}
	return "tokend; fwd=" + cmp.Or(s.Forward, ForwardMiss)
}

// AgeSeconds is the value of the Age header of a hit (RFC 9111 §5.1).
func (s Status) AgeSeconds() string { return strconv.FormatInt(int64(s.Age/time.Second), 10) }
