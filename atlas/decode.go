package atlas

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	josejson "github.com/go-jose/go-jose/v4/json" // case-sensitive, and refuses a name that is there twice
)

// maxTokenBytes is far above any token that Atlas makes, and still fits in a header or a URL.
const maxTokenBytes = 8 << 10

// What can be wrong with an answer. The texts are fixed, because those of the library quote the
// input.
var (
	errNotUTF8      = errors.New("the answer is not UTF-8")
	errNotJSON      = errors.New("the answer is not one JSON value, or has a field twice")
	errTokenType    = errors.New("the answer is not a JSON object, or its token not a string")
	errTokenAbsent  = errors.New("the answer has no token")
	errTokenTooLong = errors.New("the token is longer than 8 KiB")
	errTokenText    = errors.New("the token has control characters or is not Unicode text")
	errNotJWT       = errors.New("the token is not a JWT")
)

// decodeToken returns the token of {"token": "…"}. An answer that two parsers could read as two
// tokens is refused.
func decodeToken(body []byte) (Token, error) {
	if !utf8.Valid(body) { // josejson would replace the invalid bytes
		return "", errNotUTF8
	}
	var answer struct {
		Token string `json:"token"`
	}
	if err := josejson.Unmarshal(body, &answer); err != nil {
		if _, ok := errors.AsType[*josejson.UnmarshalTypeError](err); ok {
			return "", errTokenType
		}
		return "", errNotJSON
	}
	token := answer.Token
	switch {
	case token == "":
		return "", errTokenAbsent
	case len(token) > maxTokenBytes:
		return "", errTokenTooLong
	case strings.ContainsRune(token, utf8.RuneError), // half a surrogate pair, "\ud800", is decoded to it
		strings.ContainsFunc(token, unicode.IsControl):
		return "", errTokenText
	}
	return Token(token), nil
}

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
