package auth

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// load returns the root of the one document in data, nil after a mistake.
func (p *policyParser) load(data []byte) *yaml.Node {
	switch {
	case len(data) > maxPolicySize:
		p.mistake(1, "the file is larger than 1 MiB")
		return nil
	case !utf8.Valid(data):
		p.mistake(1, "the file is not UTF-8")
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		p.syntax(err)
		return nil
	}
	var document, second yaml.Node
	if err := loader.Load(&document); errors.Is(err, io.EOF) || err == nil && len(document.Content) == 0 {
		p.mistake(1, "the file is empty")
		return nil
	} else if err != nil {
		p.syntax(err)
		return nil
	}
	if err := loader.Load(&second); err == nil {
		p.mistake(second.Line, "a second YAML document: a policy is one")
		return nil
	} else if !errors.Is(err, io.EOF) {
		p.syntax(err)
		return nil
	}
	if root := document.Content[0]; p.plain(root) {
		return root
	}
	return nil
}

func (p *policyParser) syntax(err error) {
	var at *yaml.LoadError
	if errors.As(err, &at) {
		p.mistake(at.Mark.Line, "not YAML: %s", quotable(at.Message))
		return
	}
	p.mistake(1, "not YAML")
}

// plain reports whether there is nothing but mappings, lists and scalars below a node: what it says is what is written
// there, and no file says more than it has bytes.
func (p *policyParser) plain(n *yaml.Node) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		p.mistake(n.Line, "YAML's anchors and aliases are not accepted: write it out")
		return false
	case n.Style&yaml.TaggedStyle != 0:
		p.mistake(n.Line, "YAML's tags are not accepted")
		return false
	}
	ok := true
	for _, child := range n.Content {
		ok = p.plain(child) && ok
	}
	return ok
}

// fields are the values of a mapping, by key. What is wrong with the keys is reported.
func (p *policyParser) fields(n *yaml.Node, what string, known ...string) (map[string]*yaml.Node, bool) {
	if n.Kind != yaml.MappingNode {
		p.mistake(n.Line, "%s must be a mapping", what)
		return nil, false
	}
	fields, ok := make(map[string]*yaml.Node, len(n.Content)/2), true
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		switch _, taken := fields[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str":
			p.mistake(key.Line, "a key in %s must be text", what)
			ok = false
		case taken:
			p.mistake(key.Line, "%s is twice in %s", quotable(key.Value), what)
			ok = false
		case known != nil && !slices.Contains(known, key.Value):
			p.mistake(key.Line, "unknown key %s in %s: it can have %s", quotable(key.Value), what, strings.Join(known, ", "))
			ok = false
		default:
			fields[key.Value] = value
		}
	}
	return fields, ok
}

// text is the value of a field that must be there and be text. The line is the mapping's, for when it is not.
func (p *policyParser) text(fields map[string]*yaml.Node, key, what string, line int) (string, bool) {
	n := fields[key]
	switch {
	case n == nil:
		p.mistake(line, "%s has no %s", what, key)
		return "", false
	case n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str":
		p.mistake(n.Line, "%s in %s must be text: quote it if it is", key, what)
		return "", false
	case n.Value == "":
		p.mistake(n.Line, "%s in %s is empty", key, what)
		return "", false
	}
	return n.Value, true
}
