package auth

import (
	"errors"
	"fmt"
	"regexp"

	"go.yaml.in/yaml/v4"
)

// line is an entry and the line that it begins in.
type line[T any] struct {
	entry  T
	number int
}

// UnmarshalYAML implements the YAML library's Unmarshaler.
func (l *line[T]) UnmarshalYAML(node *yaml.Node) error {
	l.number = node.Line
	return node.Load(&l.entry, yaml.WithKnownFields())
}

// maxErrors is how many mistakes are reported; more are only counted.
const maxErrors = 100

// fileErrors has the mistakes in a YAML file.
type fileErrors struct {
	name string
	errs []error
}

func (e *fileErrors) errorf(line int, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf("%s:%d: %s", e.name, max(line, 1), fmt.Sprintf(format, args...)))
}

func (e *fileErrors) err() error {
	if more := len(e.errs) - maxErrors; more > 0 {
		e.errs = append(e.errs[:maxErrors], fmt.Errorf("%s: and %d more errors", e.name, more))
	}
	return errors.Join(e.errs...)
}

// leftOut matches what is left out of an error of the YAML library: a value of the file, which may
// be a secret, and the name of a type of this package.
var leftOut = regexp.MustCompile("(?s) `.*`| in type auth\\.[A-Za-z]+")

// load decodes a file and reports whether its structure is right.
func (e *fileErrors) load(data []byte, into any) bool {
	var root yaml.Node
	err := yaml.Load(data, &root)
	if err == nil {
		e.checkPlain(&root)
	}
	if err == nil && len(e.errs) == 0 {
		err = root.Load(into, yaml.WithKnownFields())
	}
	one, many := &yaml.LoadError{}, &yaml.LoadErrors{}
	switch {
	case err == nil:
	case errors.As(err, &many):
		for _, mistake := range many.Errors {
			e.errorf(mistake.Mark.Line, "%s", leftOut.ReplaceAllString(mistake.Message, ""))
		}
	case errors.As(err, &one):
		e.errorf(one.Mark.Line, "not YAML: %s", one.Message)
	default:
		e.errorf(1, "not YAML: %v", err)
	}
	return len(e.errs) == 0
}

// checkPlain reports all that is not a mapping, list or scalar written out.
func (e *fileErrors) checkPlain(n *yaml.Node) {
	if n.Kind == yaml.AliasNode || n.Anchor != "" || n.ShortTag() == "!!merge" || n.Style&yaml.TaggedStyle != 0 {
		e.errorf(n.Line, "YAML's anchors, aliases, tags and merge keys are not accepted")
	}
	for _, child := range n.Content {
		e.checkPlain(child)
	}
}
