package atlas

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestDecodeToken(t *testing.T) {
	long := strings.Repeat("x", 8<<10)
	for _, tc := range []struct {
		body string
		want Token
		err  error
	}{
		{body: `{"token":"abc"}`, want: "abc"},
		{body: " \r\n\t{ \"token\" : \"abc\" } \n", want: "abc"},
		{body: `{"a":{"token":1,"token":2},"token":"abc","b":[{}],"c":null,"":1}`, want: "abc"},
		{body: `{"\u0074oken":"a\u0062c"}`, want: "abc"},
		{body: `{"token":"ä\ud83d\ude00/\/"}`, want: "ä😀//"},
		{body: `{"token":"` + long + `"}`, want: Token(long)},
		{body: `{"token":"abc","Token":"def","TOKEN":1}`, want: "abc"},

		{body: "", err: errNotJSON},
		{body: "{", err: errNotJSON},
		{body: `{"token":"abc"`, err: errNotJSON},
		{body: `{"token":"abc"}}`, err: errNotJSON},
		{body: `{"token":"abc"}{"token":"abc"}`, err: errNotJSON},
		{body: `{"token":"abc",}`, err: errNotJSON},
		{body: `{"token":'abc'}`, err: errNotJSON},
		{body: `{token:"abc"}`, err: errNotJSON},
		{body: "{\"token\":\"a\nc\"}", err: errNotJSON},
		{body: "{\"token\":\"a\x00c\"}", err: errNotJSON},
		{body: `{"token":"\x41"}`, err: errNotJSON},
		{body: "\ufeff" + `{"token":"abc"}`, err: errNotJSON},
		{body: strings.Repeat("[", 1<<16), err: errNotJSON},
		{body: "<html>", err: errNotJSON},

		{body: "{\"token\":\"\xff\"}", err: errNotUTF8},
		{body: "{\"token\":\"abc\"}\xc3", err: errNotUTF8},
		{body: "{\"\xed\xa0\x80\":1,\"token\":\"abc\"}", err: errNotUTF8}, // half a surrogate pair, as bytes

		{body: `null`, err: errNotObject},
		{body: `"abc"`, err: errNotObject},
		{body: `[{"token":"abc"}]`, err: errNotObject},
		{body: `1`, err: errNotObject},

		{body: `{"token":"abc","token":"abc"}`, err: errDuplicateField},
		{body: `{"token":"abc","\u0074oken":"def"}`, err: errDuplicateField},
		{body: `{"a":1,"token":"abc","a":2}`, err: errDuplicateField},

		{body: `{}`, err: errTokenAbsent},
		{body: `{"Token":"abc"}`, err: errTokenAbsent},
		{body: `{"to\u212Aen":"abc"}`, err: errTokenAbsent}, // the Kelvin sign, which encoding/json folds into k
		{body: `{"a":{"token":"abc"}}`, err: errTokenAbsent},

		{body: `{"token":null}`, err: errTokenType},
		{body: `{"token":1}`, err: errTokenType},
		{body: `{"token":true}`, err: errTokenType},
		{body: `{"token":["abc"]}`, err: errTokenType},
		{body: `{"token":{"token":"abc"}}`, err: errTokenType},

		{body: `{"token":""}`, err: errTokenEmpty},
		{body: `{"token":"` + long + `x"}`, err: errTokenTooLong},
		{body: `{"token":"a\ud800"}`, err: errTokenAltered},
		{body: `{"token":"a\udc00\ud800"}`, err: errTokenAltered},
		{body: `{"token":"a\ufffd"}`, err: errTokenAltered},
		{body: `{"token":"a\r\nb"}`, err: errTokenControl},
		{body: `{"token":"a\u0000"}`, err: errTokenControl},
		{body: `{"token":"\t"}`, err: errTokenControl},
		{body: `{"token":"\u007f"}`, err: errTokenControl},
		{body: `{"token":"\u0085"}`, err: errTokenControl},
	} {
		got, err := decodeToken([]byte(tc.body))
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("decodeToken(%.60q) = %.20q, %v, want %.20q, %v", tc.body, string(got), err, string(tc.want), tc.err)
		}
	}
}

// FuzzDecodeToken checks that a token that is taken is one by the rules and by a second decoder,
// and that an error is one of the fixed ones, which can hold nothing of the body.
func FuzzDecodeToken(f *testing.F) {
	for _, s := range []string{
		`{"token":"abc"}`, `{"token":"abc","token":"def"}`, `{"Token":"abc"}`, `{"\u0074oken":"a"}`, `{"token":null}`, `{}`,
		`{"token":"\ud800"}`, `{"token":"\u0000"}`, "{\"token\":\"\xff\"}", `{"a":[{"token":"x"}],"token":"y"}`, `[]`, ``,
		`{"token":"abc"} {`, `{"token":"a.b-c_d~e+f/0=="}`, `{"token":"a=b"}`, `{"token":"="}`, `{"token":"a","b":"c"}`, `{"token":"}`, `{"token":"a","TOKEN":"b"}`, `{"token":"😀"}`,
	} {
		f.Add([]byte(s))
	}
	causes := []error{
		errNotUTF8, errNotJSON, errNotObject, errDuplicateField, errTokenAbsent, errTokenType, errTokenEmpty, errTokenTooLong,
		errTokenAltered, errTokenControl,
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		token, err := decodeToken(body)
		if !bytes.Equal(before, body) {
			t.Error("the body was changed")
		}
		if plain := plainToken(body); plain != "" {
			if parsed, err := parseToken(body); parsed != plain || err != nil {
				t.Errorf("of %q the token is %q at a glance, and %q, %v when parsed", body, string(plain), string(parsed), err)
			}
		}
		want, valid := decodeStrictly(body)
		if err != nil {
			if token != "" {
				t.Errorf("token %q and an error", string(token))
			}
			if !slices.Contains(causes, err) {
				t.Errorf("error %q is not a fixed one", err)
			}
			if valid {
				t.Errorf("refused %q: %v", body, err)
			}
			return
		}
		if !valid || string(token) != want {
			t.Errorf("took %q, want %q, %v", string(token), want, valid)
		}
		if token == "" || len(token) > 8<<10 || !utf8.ValidString(string(token)) || strings.ContainsAny(string(token), "\r\n\x00\ufffd") {
			t.Errorf("token %q", string(token))
		}
	})
}

// decodeStrictly is a second opinion: it walks the tokens of the whole answer and knows nothing of
// the first.
func decodeStrictly(body []byte) (token string, valid bool) {
	if !utf8.Valid(body) {
		return "", false
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	depth, found := 0, 0
	isKey, wanted := false, false
	keys := map[string]int{}
	for {
		offset := d.InputOffset()
		tok, err := d.Token()
		if errors.Is(err, io.EOF) && depth == 0 && offset > 0 {
			break
		}
		if err != nil {
			return "", false
		}
		if delim, ok := tok.(json.Delim); ok {
			if offset == 0 && delim != '{' || depth == 0 && offset != 0 {
				return "", false
			}
			if strings.ContainsRune("{[", rune(delim)) {
				if depth == 1 && wanted {
					return "", false // the token is an object or an array
				}
				depth++
				isKey = depth == 1
				continue
			}
			depth--
			isKey = depth == 1
			continue
		}
		switch {
		case depth == 0:
			return "", false
		case depth > 1:
		case isKey:
			key := tok.(string)
			if keys[key]++; keys[key] > 1 {
				return "", false
			}
			isKey, wanted = false, key == "token"
		default:
			if wanted {
				s, ok := tok.(string)
				if !ok {
					return "", false
				}
				token, found = s, found+1
			}
			isKey, wanted = true, false
		}
	}
	for _, r := range token {
		if r < ' ' || 0x7f <= r && r <= 0x9f || r == '\ufffd' {
			return "", false
		}
	}
	return token, found == 1 && token != "" && len(token) <= 8<<10
}
