package auth

import "time"

// Impatient makes discovery be retried, and keys be fetched again, after that time.
func (c Config) Impatient(retry, keys time.Duration) Config {
	c.timing = timing{retryMin: retry, retryMax: retry, again: time.Hour, keys: keys}
	return c
}

// GlobMatch and PeekIssuer are globMatch and peekIssuer.
var (
	GlobMatch  = globMatch
	PeekIssuer = peekIssuer
)
