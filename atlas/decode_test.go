package atlas

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
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

		{body: `null`, err: errTokenAbsent},
		{body: `"abc"`, err: errTokenType},
		{body: `[{"token":"abc"}]`, err: errTokenType},
		{body: `1`, err: errTokenType},

		{body: `{"token":"abc","token":"abc"}`, err: errNotJSON},
		{body: `{"token":"abc","\u0074oken":"def"}`, err: errNotJSON},
		{body: `{"a":1,"token":"abc","a":2}`, err: errNotJSON},

		{body: `{}`, err: errTokenAbsent},
		{body: `{"Token":"abc"}`, err: errTokenAbsent},
		{body: `{"to\u212Aen":"abc"}`, err: errTokenAbsent}, // the Kelvin sign, which encoding/json folds into k
		{body: `{"a":{"token":"abc"}}`, err: errTokenAbsent},
		{body: `{"token":null}`, err: errTokenAbsent},
		{body: `{"token":""}`, err: errTokenAbsent},

		{body: `{"token":1}`, err: errTokenType},
		{body: `{"token":true}`, err: errTokenType},
		{body: `{"token":["abc"]}`, err: errTokenType},
		{body: `{"token":{"token":"abc"}}`, err: errTokenType},

		{body: `{"token":"` + long + `x"}`, err: errTokenTooLong},
		{body: `{"token":"a\ud800"}`, err: errTokenText},
		{body: `{"token":"a\udc00\ud800"}`, err: errTokenText},
		{body: `{"token":"a\ufffd"}`, err: errTokenText},
		{body: `{"token":"a\r\nb"}`, err: errTokenText},
		{body: `{"token":"a\u0000"}`, err: errTokenText},
		{body: `{"token":"\t"}`, err: errTokenText},
		{body: `{"token":"\u007f"}`, err: errTokenText},
		{body: `{"token":"\u0085"}`, err: errTokenText},
	} {
		got, err := decodeToken([]byte(tc.body))
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("decodeToken(%.60q) = %.20q, %v, want %.20q, %v", tc.body, string(got), err, string(tc.want), tc.err)
		}
	}
}

// FuzzDecodeToken checks that a token that is accepted is one by the rules and by encoding/json,
// and that an error is one of the fixed ones, which cannot quote the body.
func FuzzDecodeToken(f *testing.F) {
	for _, s := range []string{
		`{"token":"abc"}`, `{"token":"abc","token":"def"}`, `{"Token":"abc"}`, `{"\u0074oken":"a"}`, `{"token":null}`, `{}`,
		`{"token":"\ud800"}`, `{"token":"\u0000"}`, "{\"token\":\"\xff\"}", `{"a":[{"token":"x"}],"token":"y"}`, `[]`, ``,
	} {
		f.Add([]byte(s))
	}
	causes := []error{errNotUTF8, errNotJSON, errTokenType, errTokenAbsent, errTokenTooLong, errTokenText}
	f.Fuzz(func(t *testing.T, body []byte) {
		token, err := decodeToken(body)
		if err != nil {
			if token != "" || !slices.Contains(causes, err) {
				t.Errorf("token %q, error %q", string(token), err)
			}
			return
		}
		var all map[string]any
		if err := json.Unmarshal(body, &all); err != nil || all["token"] != string(token) {
			t.Errorf("accepted %q, want %q, %v", string(token), all["token"], err)
		}
		if token == "" || len(token) > 8<<10 || !utf8.ValidString(string(token)) || strings.ContainsAny(string(token), "\r\n\x00\ufffd") {
			t.Errorf("token %q", string(token))
		}
	})
}

func TestSecretsPrintRedacted(t *testing.T) {
	const secret = "planted"
	type both struct {
		J JWT
		T Token
		U UserAuthToken
	}
	values := []any{JWT(secret), Token(secret), both{secret, secret, secret}, &both{secret, secret, secret}, []JWT{secret}, []Token{secret},
		map[string]any{"j": JWT(secret), "t": Token(secret)}}

	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%#q", "%x", "%X", "% x", "%d", "%t", "%U", "%20s", "%.3s"} {
			text := fmt.Sprintf(verb, v)
			hex := fmt.Sprintf("%x", secret)
			if strings.Contains(text, secret) || strings.Contains(strings.ToLower(text), hex) || strings.Contains(text, "pla") {
				t.Errorf("%s of a %T: %s", verb, v, text)
			}
			if !strings.Contains(text, redacted) {
				t.Errorf("%s of a %T is not marked: %s", verb, v, text)
			}
		}
		text, err := json.Marshal(v)
		if err != nil || bytes.Contains(text, []byte(secret)) {
			t.Errorf("JSON of a %T: %s, %v", v, text, err)
		}
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		if strings.Contains(log.String(), secret) || strings.Count(log.String(), redacted) < 2 {
			t.Errorf("slog of a %T: %s", v, log.String())
		}
	}
	if text, err := xml.Marshal(both{secret, secret, secret}); err != nil || bytes.Contains(text, []byte(secret)) {
		t.Errorf("XML: %s, %v", text, err)
	}
	if got := fmt.Sprint(fmt.Errorf("x %w %v", fmt.Errorf("%v", JWT(secret)), Token(secret))); strings.Contains(got, secret) {
		t.Error(got)
	}
}
