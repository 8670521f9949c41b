package atlas

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted is all that a secret ever prints.
const redacted = "[redacted]"

// JWT is an Atlas JSON Web Token, the credential of one Atlas user.
//
// It is a secret: it prints as "[redacted]" under the fmt verbs, in log/slog and when marshalled as
// text or JSON; a conversion, string(jwt), is the one way to its characters. Three holes cannot be
// closed in a string type, so keep out of them: %p, an unexported struct field (fmt does not call
// the methods of one), and the key of a map that is marshalled (encoding/json takes string keys as
// they are).
type JWT string

// Token is an ephemeral user token. It is a secret and prints like [JWT].
type Token string

// String returns "[redacted]".
func (JWT) String() string { return redacted }

// GoString returns "[redacted]".
func (JWT) GoString() string { return redacted }

// Format writes "[redacted]" whatever the verb: with String alone, %x and %d would print the
// characters.
func (JWT) Format(s fmt.State, _ rune) { writeRedacted(s) }

// LogValue returns "[redacted]".
func (JWT) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (JWT) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// String returns "[redacted]".
func (Token) String() string { return redacted }

// GoString returns "[redacted]".
func (Token) GoString() string { return redacted }

// Format writes "[redacted]" whatever the verb.
func (Token) Format(s fmt.State, _ rune) { writeRedacted(s) }

// LogValue returns "[redacted]".
func (Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// UserAuthToken is the long-lived secret with which a bot logs in. It prints like [JWT].
type UserAuthToken string

// String returns "[redacted]".
func (UserAuthToken) String() string { return redacted }

// GoString returns "[redacted]".
func (UserAuthToken) GoString() string { return redacted }

// Format writes "[redacted]" whatever the verb.
func (UserAuthToken) Format(s fmt.State, _ rune) { writeRedacted(s) }

// LogValue returns "[redacted]".
func (UserAuthToken) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns "[redacted]".
func (UserAuthToken) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// writeRedacted ignores the error as fmt.State's own Write does: it only appends to a buffer.
func writeRedacted(w io.Writer) { _, _ = io.WriteString(w, redacted) }
