package atlas

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSecretsPrintRedacted(t *testing.T) {
	const secret = "planted"
	type both struct {
		J JWT
		T Token
	}
	values := []any{JWT(secret), Token(secret), both{secret, secret}, &both{secret, secret}, []JWT{secret}, []Token{secret},
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
	if text, err := xml.Marshal(both{secret, secret}); err != nil || bytes.Contains(text, []byte(secret)) {
		t.Errorf("XML: %s, %v", text, err)
	}
	for _, s := range []string{JWT(secret).String(), JWT(secret).GoString(), Token(secret).String(), Token(secret).GoString()} {
		if s != redacted {
			t.Errorf("got %q, want %q", s, redacted)
		}
	}
	if got := fmt.Sprint(fmt.Errorf("x %w %v", fmt.Errorf("%v", JWT(secret)), Token(secret))); strings.Contains(got, secret) {
		t.Error(got)
	}
}
