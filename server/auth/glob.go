package auth

import "strings"

// globMatch reports whether all of text is matched by all of pattern. A * in the pattern stands for any number of
// characters, also none, except those in separators; everything else stands for itself.
//
// It also tells whether one pattern covers another: given a pattern for text, only a * matches its *, and what a * can
// then stand for is just what it can be replaced with.
func globMatch(pattern, text, separators string) bool {
	// Every separator has to match itself, so a * can only be wrong about its own stretch between two of them, and going
	// back to the last * is enough.
	var p, t int
	star, resume := -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, resume = p, t
			p++
		case p < len(pattern) && pattern[p] == text[t]:
			p++
			t++
		case star >= 0 && strings.IndexByte(separators, text[resume]) < 0:
			resume++
			p, t = star+1, resume
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
