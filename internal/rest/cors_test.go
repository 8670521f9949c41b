package rest

import (
	"strings"
	"testing"
)

// TestValidateOrigin checks that origins that no browser sends, or that any page can have, are
// refused.
func TestValidateOrigin(t *testing.T) {
	for origin, want := range map[string]string{
		"https://app.example.com": "", "https://app.example.com:8443": "", "https://xn--bcher-kva.example": "", "https://192.0.2.1": "",
		"https://[2001:db8::1]": "", "http://localhost": "", "http://localhost:3000": "", "http://127.0.0.1:3000": "", "http://[::1]:3000": "", "http://app.localhost:3000": "",
		"*": "name each origin", "https://*.example.com": "name each origin", "null": "every sandboxed page",
		"app.example.com": "give scheme and host", "https://": "give scheme and host", "": "give scheme and host", "localhost:3000": "give scheme and host",
		"https://bücher.example": "xn--", "https://a b": "give scheme and host",
		"http://app.example.com": "pages over http can be changed", "http://localhost.example.com": "pages over http can be changed", "ftp://app.example.com": "give one with https",
		"https://app.example.com/": "browsers send https://app.example.com", "https://app.example.com/path?q#f": "browsers send https://app.example.com",
		"https://app.example.com:443": "browsers send https://app.example.com", "http://localhost:80": "browsers send http://localhost",
		"https://App.Example.com": "browsers send https://app.example.com", "HTTPS://app.example.com": "browsers send https://app.example.com",
		"https://user:hunter2@app.example.com": "browsers send https://app.example.com", "https://[2001:DB8:0::1]": "browsers send https://[2001:db8::1]",
		"https://app.example.com:": "browsers send https://app.example.com",
	} {
		err := ValidateOrigin(origin)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", origin, err, want)
		}
	}
}
