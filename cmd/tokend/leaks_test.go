//go:build unix

package main_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// secrets finds pieces of planted secrets in a text, in the forms in which programs print strings
// by mistake: as they are, in base64, in hexadecimal, as numbers; in either case, since header
// names lose theirs.
type secrets struct {
	mu     sync.Mutex
	pieces map[string]string // guarded by mu; lower case, pieceLength bytes each → what it is a piece of
}

// pieceLength is short enough to find a JWT's signature, or a secret that was cut, and too long for
// chance.
const pieceLength = 16

// plant has all pieces of value looked for.
func (s *secrets) plant(name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pieces == nil {
		s.pieces = map[string]string{}
	}
	for form, text := range printedForms(value) {
		text = strings.ToLower(text)
		for i := 0; i+pieceLength <= len(text); i++ {
			s.pieces[text[i:i+pieceLength]] = name + " " + form
		}
	}
}

func printedForms(value string) map[string]string {
	forms := map[string]string{
		"as it is":        value,
		"in hex":          hex.EncodeToString([]byte(value)),
		"in spaced hex":   fmt.Sprintf("% x", value),
		"in numbers":      strings.Trim(fmt.Sprintf("%d", []byte(value)), "[]"),
		"in JSON numbers": strings.ReplaceAll(strings.Trim(fmt.Sprintf("%d", []byte(value)), "[]"), " ", ","),
	}
	// Base64 has three forms of what is inside of something longer, such as a user name and a
	// password.
	for shift := range 3 {
		inside := strings.Repeat("x", shift) + value
		for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			text := encoding.EncodeToString([]byte(inside))
			forms[fmt.Sprintf("in %s, shifted by %d", name, shift)] = text[(shift*8+5)/6 : len(text)-2]
		}
	}
	return forms
}

// find returns what of the planted secrets is in text.
func (s *secrets) find(text string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text = strings.ToLower(text)
	var found []string
	for i := 0; i+pieceLength <= len(text); i++ {
		if name, ok := s.pieces[text[i:i+pieceLength]]; ok && !slices.Contains(found, name) {
			found = append(found, name)
		}
	}
	return found
}
