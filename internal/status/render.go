package status

import (
	_ "embed"
	"fmt"
	"html"
	"strings"
)

//go:embed page.css
var styles string

// markup builds HTML. With html/template the linker would keep every method of the program, which
// makes the binary 9 MB larger.
type markup struct{ strings.Builder }

// add appends format with its verbs filled in. Every argument is escaped.
func (m *markup) add(format string, args ...string) {
	escaped := make([]any, len(args))
	for i, arg := range args {
		escaped[i] = html.EscapeString(arg)
	}
	fmt.Fprintf(m, format, escaped...)
}

// render returns the page.
func render(v view) string {
	m := &markup{}
	m.add(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>tokend: %s</title>
<style>
`, v.State)
	m.WriteString(styles)
	m.add(`</style>
</head>
<body>
<header><h1>tokend</h1> <span class="state %s">%s</span> <span class="dim">%s, up %s, %s</span></header>
<main class="grid">
`, class(v.OK), v.State, v.Version, v.Uptime, v.Now)
	m.section("", "Checks", v.Checks)
	m.section("", "Now", v.Facts)
	m.section("", "Identities at Atlas", v.Identities)
	m.section("", "Certificates", v.Certificates)
	for _, p := range v.Plots {
		m.plot(p)
	}
	m.section("", "Failed calls of the last hour, by reason", v.Failures)
	m.section("wide", "Settings in force", v.Settings)
	m.add(`</main>
<footer class="dim"><p>Also here: <a href="readyz">/readyz</a> (text, or JSON by its Accept header), <a href="metrics">/metrics</a>, <a href="healthz">/healthz</a>. Reload for newer figures.</p></footer>
</body>
</html>
`)
	return m.String()
}

// section adds a table with a heading, if there are rows.
func (m *markup) section(width, heading string, rows []row) {
	if len(rows) == 0 {
		return
	}
	m.add("<section class=\"%s\">\n<h2>%s</h2>\n<table>\n", width, heading)
	for _, r := range rows {
		m.add(`<tr><th scope="row">%s</th><td class="%s">%s</td><td class="dim">%s</td></tr>`+"\n", r.Name, r.Class, r.Value, r.Note)
	}
	m.add("</table>\n</section>\n")
}

func (m *markup) plot(p plot) {
	m.add(`<section>
<figure>
<figcaption><b>%s</b><span>%s</span></figcaption>
<svg viewBox="0 -2 300 64" preserveAspectRatio="none" role="img" aria-label="%s, last hour, at most %s"><polyline points="%s"/></svg>
<figcaption class="dim"><span>1 h ago</span><span>top: %s</span><span>now</span></figcaption>
</figure>
</section>
`, p.Title, p.Latest, p.Title, p.Most, p.Line, p.Most)
}

// class returns the CSS class of a state.
func class(ok bool) string {
	if ok {
		return "good"
	}
	return "bad"
}
