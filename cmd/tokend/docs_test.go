package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/auth"
)

// pages have command lines to paste.
var pages = []string{"README.md", "deploy/operating.md"}

func readPage(t *testing.T, page string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

var fence = regexp.MustCompile("(?ms)^ *```(\\w+)\n(.*?)\n *```$")

// blocks returns the contents of a page's code blocks in a language.
func blocks(page, language string) []string {
	var found []string
	for _, match := range fence.FindAllStringSubmatch(page, -1) {
		if match[1] == language {
			found = append(found, match[2]+"\n")
		}
	}
	return found
}

// TestPagesPolicies checks that the policies in the pages are valid, and meet the expectations that
// follow them.
func TestPagesPolicies(t *testing.T) {
	t.Parallel()
	policy, tested := filepath.Join(t.TempDir(), "policy.yaml"), 0
	for _, page := range pages {
		for _, block := range blocks(readPage(t, page), "yaml") {
			if !strings.HasPrefix(block, "- {caller:") {
				if err := os.WriteFile(policy, []byte(block), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := auth.ParsePolicy(page, []byte(block)); err != nil {
					t.Errorf("a policy is wrong:\n%v", err)
				}
				continue
			}
			tested++
			expected := filepath.Join(t.TempDir(), "expected.yaml")
			if err := os.WriteFile(expected, []byte(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := run(t.Context(), []string{"config", "--policy-file", policy, "--expect-file", expected}, nil, io.Discard, io.Discard); err != nil {
				t.Errorf("%s: %v", page, err)
			}
		}
	}
	if tested == 0 {
		t.Error("no page tests a policy")
	}
}

// TestPagesCommands checks that the command lines in the pages parse.
func TestPagesCommands(t *testing.T) {
	t.Parallel()
	for _, page := range pages {
		count := 0
		for _, block := range blocks(readPage(t, page), "sh") {
			for _, args := range tokendCommands(block) {
				count++
				if err := understand(args); err != nil {
					t.Errorf("%s: tokend %q: %v", page, args, err)
				}
			}
		}
		if count == 0 {
			t.Errorf("%s has no command line of tokend", page)
		}
	}
}

// understand parses a command line without running it.
func understand(args []string) error {
	c, rest, err := newRoot(nil).Find(args)
	if err != nil {
		return err
	}
	if err := c.ParseFlags(rest); err != nil {
		return err
	}
	return c.ValidateArgs(c.Flags().Args())
}

// tokendCommands returns the arguments of each tokend in a block of shell.
func tokendCommands(block string) [][]string {
	var found [][]string
	for line := range strings.Lines(strings.ReplaceAll(block, "\\\n", " ")) {
		words := shellWords(line)
		for i, word := range words {
			if word == "tokend" || word == "./cmd/tokend" && i > 0 && words[i-1] == "run" {
				found = append(found, words[i+1:])
				break
			}
			if !strings.Contains(word, "=") && word != "go" && word != "run" { // neither an assignment nor go run
				break
			}
		}
	}
	return found
}

// shellWords returns the words of a simple command.
func shellWords(line string) []string {
	var (
		words []string
		word  strings.Builder
		quote rune
		in    bool
	)
	end := func() {
		if in {
			words = append(words, word.String())
		}
		word.Reset()
		in = false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, in = r, true
		case r == ' ' || r == '\t' || r == '\n':
			end()
		case strings.ContainsRune("|&;<>()", r) || r == '#' && !in:
			end()
			return words
		default:
			word.WriteRune(r)
			in = true
		}
	}
	end()
	return words
}

// TestPagesLinks checks that each file and heading that a page links to exists.
func TestPagesLinks(t *testing.T) {
	t.Parallel()
	for _, pattern := range []string{"*.md", "docs/*.md", "deploy/*.md", "deploy/helm/tokend/*.md", "bench/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(pattern)))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: no page, %v", pattern, err)
		}
		for _, page := range found {
			for _, target := range brokenLinks(t, page) {
				t.Errorf("%s links to %s, which does not exist", page, target)
			}
		}
	}
}

var (
	pageLink    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	pageHeading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// brokenLinks returns the links of a page to files and headings that do not exist.
func brokenLinks(t *testing.T, page string) (broken []string) {
	t.Helper()
	read := func(path string) string {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return fence.ReplaceAllString(string(content), "")
	}
	for _, match := range pageLink.FindAllStringSubmatch(read(page), -1) {
		path, anchor, _ := strings.Cut(match[1], "#")
		if strings.Contains(path, "://") {
			continue
		}
		target := page
		if path != "" {
			target = filepath.Join(filepath.Dir(page), filepath.FromSlash(path))
		}
		if _, err := os.Stat(target); err != nil {
			broken = append(broken, match[1])
			continue
		}
		if anchor == "" {
			continue
		}
		there := false
		for _, heading := range pageHeading.FindAllStringSubmatch(read(target), -1) { // as GitHub makes anchors
			there = there || strings.ReplaceAll(notInAnchor.ReplaceAllString(strings.ToLower(heading[1]), ""), " ", "-") == anchor
		}
		if !there {
			broken = append(broken, match[1])
		}
	}
	return broken
}

// TestPagesSettings checks that each setting that the pages name exists.
func TestPagesSettings(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, command := range []string{"serve", "dev", "config", "doctor", "healthcheck", "create"} {
		var help strings.Builder
		if err := run(t.Context(), []string{command, "--help"}, nil, &help, io.Discard); err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`--[a-z-]+`).FindAllString(help.String(), -1) {
			known[name] = true
			known["TOKEND_"+strings.ToUpper(strings.ReplaceAll(name[2:], "-", "_"))] = true
		}
	}
	for _, page := range pages {
		prose := fence.ReplaceAllString(readPage(t, page), "")
		for _, match := range regexp.MustCompile("`(?:tokend \\w+ )?(--[a-z-]+)|(TOKEND_[A-Z_]+)").FindAllStringSubmatch(prose, -1) {
			if name := match[1] + match[2]; !known[name] {
				t.Errorf("%s: there is no setting %s", page, name)
			}
		}
	}
}
