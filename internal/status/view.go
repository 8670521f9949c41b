package status

import (
	"cmp"
	_ "embed"
	"fmt"
	"html"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// row is a row of a table.
type row struct {
	Name, Value, Note string
	Class             string // of the value: good, bad or none
}

// render returns the page.
func (p *Page) render(now time.Time) string {
	state := p.cfg.State()
	ok := state == "ready"
	var checks, settings []row
	for _, c := range p.cfg.Checks() {
		r := row{Name: c.Name, Value: "OK", Note: "for " + span(now.Sub(c.Since)), Class: class(c.Err == nil)}
		if c.Err != nil {
			r.Value, ok = c.Err.Error(), false
		}
		checks = append(checks, r)
	}
	for _, s := range p.cfg.Settings {
		settings = append(settings, row{Name: s.Name, Value: s.Value, Note: s.Source})
	}
	current := gather(p.cfg.Metrics)
	samples := append(p.history(), current.sample(now))

	m := &markup{}
	m.add(pageStart, state)
	_, _ = m.WriteString(styles)
	m.add(pageHead, class(ok), state, p.cfg.Version, span(now.Sub(p.started)), now.UTC().Format(time.RFC3339))
	m.section("", "Checks", checks)
	m.section("", "Now", current.facts())
	m.section("", "Identities at Atlas", current.identities(now))
	m.section("", "Certificates", current.certificates(now))
	for _, p := range plots(samples) {
		m.plot(p)
	}
	m.section("", "Failures of the last hour", failures(samples))
	m.section("wide", "Settings in force", settings)
	m.add(pageEnd)
	return m.String()
}

// facts describes a few gauges in words.
func (m metrics) facts() []row {
	var facts []row
	either := func(name, metric, ifSet, otherwise string) {
		if value, ok := m.value(metric, ""); ok && value == 1 {
			facts = append(facts, row{Name: name, Value: ifSet})
		} else if ok {
			facts = append(facts, row{Name: name, Value: otherwise})
		}
	}
	either("Circuit breaker", "tokend_atlas_breaker_open", "open: calls fail fast, and Atlas is probed once a second", "closed")
	if inFlight, ok := m.value("tokend_atlas_in_flight", ""); ok {
		limit, _ := m.value("tokend_atlas_in_flight_limit", "")
		waiting, _ := m.value("tokend_atlas_waiting", "")
		facts = append(facts, row{Name: "Calls at Atlas", Value: number(inFlight) + " of " + number(limit) + ", " + number(waiting) + " queued"})
	}
	either("Redis", "tokend_cache_redis_up", "up", "down: creates go to Atlas")
	for _, open := range m["tokend_connections_open"] {
		listener := label(open, "listener")
		limit, _ := m.value("tokend_connections_open_limit", listener)
		facts = append(facts, row{Name: "Connections, " + listener, Value: number(valueOf(open)) + " of " + number(limit)})
	}
	return facts
}

// identities returns a row for each profile.
func (m metrics) identities(now time.Time) []row {
	var rows []row
	for _, identity := range m["tokend_identity_valid"] {
		profile, valid := label(identity, "profile"), valueOf(identity) == 1
		r := row{Name: profile, Value: "no JWT", Class: class(valid)}
		if valid {
			r.Value = "logged in"
		}
		if refused, _ := m.value("tokend_identity_refused", profile); refused == 1 {
			r.Value, r.Class = "refused by Atlas", class(false)
		}
		if next, ok := m.value("tokend_identity_next_renewal_timestamp_seconds", profile); ok {
			r.Note = "next renewal " + in(unix(next).Sub(now))
		}
		rows = append(rows, r)
	}
	return rows
}

// certificates returns a row for each certificate and bundle.
func (m metrics) certificates(now time.Time) []row {
	var rows []row
	for _, expiry := range m["tokend_certificate_expiry_timestamp_seconds"] {
		left := unix(valueOf(expiry)).Sub(now)
		r := row{Name: label(expiry, "certificate"), Value: "valid", Class: class(left > 0), Note: "expires " + in(left)}
		if left <= 0 {
			r.Value, r.Note = "expired", "expired "+in(left)
		}
		rows = append(rows, r)
	}
	return rows
}

// failures returns the failures of the last hour by reason, the most frequent first.
func failures(samples []sample) []row {
	before := samples[0].failures
	counts := maps.Clone(samples[len(samples)-1].failures)
	for reason := range counts {
		counts[reason] -= before[reason]
	}
	var rows []row
	for _, reason := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
	}) {
		if counts[reason] > 0 {
			rows = append(rows, row{Name: reason, Value: number(counts[reason])})
		}
	}
	return rows
}

func unix(seconds float64) time.Time { return time.UnixMilli(int64(seconds * 1000)) }

func number(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// in formats a time relative to now.
func in(d time.Duration) string {
	if d < 0 {
		return span(-d) + " ago"
	}
	return "in " + span(d)
}

// span formats a duration with at most its two largest units.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 10*day:
		return fmt.Sprintf("%d days", d/day)
	case d >= day:
		return fmt.Sprintf("%d d %d h", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	default:
		return fmt.Sprintf("%d s", int(math.Max(0, d.Seconds())))
	}
}

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

const (
	pageStart = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>tokend: %s</title>
<style>
`
	pageHead = `</style>
</head>
<body>
<header><h1>tokend</h1> <span class="state %s">%s</span> <span class="dim">%s, up %s, %s</span></header>
<main class="grid">
`
	pageEnd = `</main>
<footer class="dim"><p>Also here: <a href="readyz">/readyz</a> (text, or JSON by its Accept header), <a href="metrics">/metrics</a>, <a href="healthz">/healthz</a>. Reload for newer figures.</p></footer>
</body>
</html>
`
)

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
<svg viewBox="0 -2 300 64" preserveAspectRatio="none" role="img" aria-label="%s, last hour, %s"><polyline points="%s"/></svg>
<figcaption class="dim"><span>1 h ago</span><span>%s</span><span>now</span></figcaption>
</figure>
</section>
`, p.Title, p.Latest, p.Title, p.Top, p.Line, p.Top)
}

// class returns the CSS class of a state.
func class(ok bool) string {
	if ok {
		return "good"
	}
	return "bad"
}
