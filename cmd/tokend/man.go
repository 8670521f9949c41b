package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand writes what --help says as man pages. They are a page of our own: cobra's generator would bring a Markdown parser
// into every binary, and a page of roff needs none.
type manCommand struct{ Dir string }

func (c *manCommand) declare(flags flags) {
	flags.file(&c.Dir, "dir", "Directory to write tokend.1 and a page for each command into.")
}

func (c *manCommand) execute(_ context.Context, in *invocation) error {
	var missing error
	if c.Dir == "" {
		missing = fmt.Errorf("--dir: give the directory to write into")
	}
	if err := in.check(missing); err != nil {
		return err
	}
	for _, page := range append(in.root.Commands(), in.root) {
		if page.Hidden || cobras(page.Name()) {
			continue
		}
		name := strings.ReplaceAll(page.CommandPath(), " ", "-")
		if err := os.WriteFile(filepath.Join(c.Dir, name+".1"), []byte(manPage(name, page)), 0o644); err != nil { //nolint:gosec // to be read by everybody
			return err
		}
	}
	return nil
}

// manPage is a command's page in the macros of man(7).
func manPage(name string, c *cobra.Command) string {
	var page strings.Builder
	line := func(macro, text string) { fmt.Fprintf(&page, ".%s %s\n", macro, text) }
	line("TH", fmt.Sprintf("%q 1 \"\" \"tokend %s\"", strings.ToUpper(name), programVersion()))
	page.WriteString(".nh\n.ad l\n") // a name with a hyphen of the line's in it is another name
	line("SH", "NAME")
	page.WriteString(roff(name) + " \\- " + roff(c.Short) + "\n")
	line("SH", "SYNOPSIS")
	page.WriteString(roff(c.UseLine()) + "\n")
	var others []string
	for _, sub := range c.Root().Commands() {
		if sub != c && sub.IsAvailableCommand() && !cobras(sub.Name()) {
			others = append(others, "tokend-"+sub.Name()+"(1)")
		}
	}
	for _, topic := range topics {
		settings := settingsAbout(c, topic)
		if !settings.HasFlags() {
			continue
		}
		line("SH", strings.ToUpper(heading(topic)))
		settings.VisitAll(func(f *pflag.Flag) {
			placeholder, text := pflag.UnquoteUsage(f)
			line("TP", "")
			page.WriteString(strings.TrimSpace("\\fB\\-\\-"+roff(f.Name)+"\\fR \\fI"+roff(placeholder)+"\\fR") + "\n" + roff(text) + "\n")
		})
	}
	if c.HasParent() {
		others = append([]string{"tokend(1)"}, others...)
	}
	line("SH", "SEE ALSO")
	page.WriteString(roff(strings.Join(others, ", ")) + "\n")
	return page.String()
}

// roff has text appear as it is.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
