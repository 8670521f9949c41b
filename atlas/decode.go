package atlas

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxTokenBytes is far above any token that Atlas makes, and still fits in a header or a URL.
const maxTokenBytes = 8 << 10

// What can be wrong with an answer. The texts are fixed, because those of encoding/json quote the
// input.
var (
	errNotUTF8        = errors.New("the answer is not UTF-8")
	errNotJSON        = errors.New("the answer is not one JSON value")
	errNotObject      = errors.New("the answer is not a JSON object")
	errDuplicateField = errors.New("the answer has a field twice")
	errTokenAbsent    = errors.New("the answer has no token")
	errTokenType      = errors.New("the token is not a string")
	errTokenEmpty     = errors.New("the token is empty")
	errTokenTooLong   = errors.New("the token is longer than 8 KiB")
	errTokenAltered   = errors.New("the token is not Unicode text")
	errTokenControl   = errors.New("the token has control characters")
)

// decodeToken returns the token of {"token": "…"}.
func decodeToken(body []byte) (Token, error) {
	value, err := field(body, "token")
	if err != nil {
		return "", err
	}
	if value == nil {
		return "", errTokenAbsent
	}
	if value[0] != '"' {
		return "", errTokenType
	}
	var token string
	if err := json.Unmarshal(value, &token); err != nil {
		return "", errTokenType
	}
	switch {
	case token == "":
		return "", errTokenEmpty
	case len(token) > maxTokenBytes:
		return "", errTokenTooLong
	case strings.ContainsRune(token, utf8.RuneError):
		// What encoding/json makes of half a surrogate pair, "\ud800": no longer what Atlas sent.
		return "", errTokenAltered
	case strings.ContainsFunc(token, unicode.IsControl):
		return "", errTokenControl
	}
	return Token(token), nil
}

// field returns the value of one field of the JSON object that is body, or nil if there is no such
// field.
//
// It is stricter than decoding into a struct: encoding/json also accepts the field "TOKEN", lets
// the last of two equal fields win, and replaces invalid UTF-8. An answer that two parsers could
// read as two tokens is refused.
func field(body []byte, name string) (json.RawMessage, error) {
	if !utf8.Valid(body) {
		return nil, errNotUTF8
	}
	if !json.Valid(body) { // one value and nothing after it
		return nil, errNotJSON
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if start, err := d.Token(); err != nil || start != json.Delim('{') {
		return nil, errNotObject
	}
	var value json.RawMessage
	seen := make(map[string]bool)
	for d.More() {
		var v json.RawMessage
		key, err := d.Token()
		if err == nil {
			err = d.Decode(&v)
		}
		k, ok := key.(string)
		if err != nil || !ok {
			return nil, errNotJSON
		}
		if seen[k] {
			return nil, errDuplicateField
		}
		seen[k] = true
		if k == name {
			value = v
		}
	}
	return value, nil
}

var errNotJWT = errors.New("the token is not a JWT")

// decodeJWT returns the JWT of {"token": "…"}.
func decodeJWT(body []byte) (JWT, error) {
	token, err := decodeToken(body)
	if err != nil {
		return "", err
	}
	if !isToken68(string(token)) || strings.Count(string(token), ".") != 2 {
		return "", errNotJWT
	}
	return JWT(token), nil
}
