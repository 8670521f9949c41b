package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// write writes summary.md, results.json and the plots to a folder.
func (r *results) write(dir string) error {
	files := map[string]string{
		"summary.md":  r.summary(),
		"cpu.svg":     plot(cpuPerCall, r.mainTable()),
		"latency.svg": plot(p99, r.mainTable()),
	}
	if varied := r.byCallers(); len(varied) > 0 {
		files["callers.svg"] = plot(cpuPerCall, varied)
	}
	return writeResults(dir, "results.json", r, files)
}

// writeResults writes files to a folder, and their source as JSON to the file raw.
func writeResults(dir, raw string, results any, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // world-readable
		return err
	}
	encoded, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	files[raw] = string(encoded) + "\n"
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil { //nolint:gosec // world-readable
			return err
		}
	}
	return nil
}

// mainTable returns the cases of the main table.
func (r *results) mainTable() []caseResult {
	return slices.DeleteFunc(slices.Clone(r.Cases), func(c caseResult) bool { return c.Variant != "" })
}

// byCallers returns the cases with several numbers of callers, in ascending order.
func (r *results) byCallers() []caseResult {
	var found []caseResult
	for _, base := range r.mainTable() {
		group := []caseResult{base}
		for _, c := range r.Cases {
			if c.Name == base.Name && strings.Contains(c.Variant, "caller") {
				group = append(group, c)
			}
		}
		if len(group) > 1 {
			group[0].Variant = fmt.Sprintf("%d callers", base.Callers)
			slices.SortFunc(group, func(a, b caseResult) int { return a.Callers - b.Callers })
			found = append(found, group...)
		}
	}
	return found
}

// summary returns a Markdown table of tokend and its alternatives, followed by every number.
func (r *results) summary() string {
	var b strings.Builder
	fmt.Fprintf(&b, "<!-- Written by `go run -C bench .`; do not edit. -->\n\n")
	fmt.Fprintf(&b, "%s. Medians (minimum–maximum) of %d rounds, %v per measurement.\n", r.Machine, r.Effort.Rounds, r.Effort.Duration)
	fmt.Fprintf(&b, "\n| case | beside | compared | tokend | the other | tokend ÷ the other |\n|---|---|---|---|---|---|\n")
	for _, c := range r.mainTable() {
		c.writeComparison(&b)
	}
	fmt.Fprintf(&b, "\n## All numbers\n\nCPU is user and system time of the server's process alone. Memory is resident, after the calls.\n")
	writeNumbersHead(&b)
	for _, c := range r.Cases {
		c.writeNumbers(&b)
	}
	return b.String()
}

func (c caseResult) writeComparison(b *strings.Builder) {
	tokend := c.Rows[0]
	for _, row := range c.Rows[1:] {
		fmt.Fprintf(b, "| %s | %s | %s | ", c.Name, row.Server, c.Compared)
		switch {
		case tokend.Missing != "":
			fmt.Fprintf(b, "%s | | |\n", tokend.Missing)
		case row.Missing != "":
			fmt.Fprintf(b, "%s | %s | |\n", c.compared.text(tokend.spread(c.compared)), row.Missing)
		default:
			ratio := "–"
			if row.Ratio != nil {
				ratio = fmt.Sprintf("**%.2f** (%.2f–%.2f)", row.Ratio.Median, row.Ratio.Min, row.Ratio.Max)
			}
			fmt.Fprintf(b, "%s | %s | %s |\n", c.compared.text(tokend.spread(c.compared)), c.compared.text(row.spread(c.compared)), ratio)
		}
	}
}

// numbers are the columns of the second table.
var numbers = []metric{cpuPerCall, rate, median, p99, p999, atlasRate, atlasMost, resident, perConnection, untilReady}

func writeNumbersHead(b *strings.Builder) {
	b.WriteString("\n| case | server |")
	for _, m := range numbers {
		fmt.Fprintf(b, " %s |", m.name)
	}
	b.WriteString(" calls that reached Atlas | refused |\n|---|---|" + strings.Repeat("---|", len(numbers)+2) + "\n")
}

func (c caseResult) writeNumbers(b *strings.Builder) {
	for _, row := range c.Rows {
		fmt.Fprintf(b, "| %s | %s |", c.title(), row.Server)
		if row.Missing != "" {
			fmt.Fprintf(b, " %s |%s\n", row.Missing, strings.Repeat(" |", len(numbers)+1))
			continue
		}
		for _, m := range numbers {
			fmt.Fprintf(b, " %s |", m.text(row.spread(m)))
		}
		calls, refused, atlas := 0, 0, 0
		for _, s := range row.Rounds {
			calls += s.Calls
			refused += s.Refused
			atlas += s.AtlasCalls
		}
		if calls == 0 {
			b.WriteString(" | |\n")
			continue
		}
		fmt.Fprintf(b, " %d of %d | %d |\n", atlas, calls, refused)
	}
}

// text formats a spread with its unit; empty if it was not measured.
func (m metric) text(s spread) string {
	if s.Max == 0 {
		return ""
	}
	if s.Min == s.Max {
		return strings.TrimSpace(digits(s.Median) + " " + m.unit)
	}
	return strings.TrimSpace(fmt.Sprintf("%s (%s–%s) %s", digits(s.Median), digits(s.Min), digits(s.Max), m.unit))
}

// digits formats a number with about three digits.
func digits(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// results is the content of results.json.
type results struct {
	Machine machine      `json:"machine"`
	Effort  effort       `json:"effort"`
	Cases   []caseResult `json:"cases"`
}

// machine describes the machine.
type machine struct {
	Date    string `json:"date"`
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Go      string `json:"go"`
	System  string `json:"system"`
	LoadAvg string `json:"load_average_at_start"` // of other programs
}

type caseResult struct {
	Name     string      `json:"name"`
	Variant  string      `json:"variant,omitempty"`
	Callers  int         `json:"callers,omitempty"`
	Compared string      `json:"compared"`
	Rows     []rowResult `json:"rows"` // tokend first

	compared metric
}

// rowResult is the results of one server.
type rowResult struct {
	Server  string   `json:"server"`
	Missing string   `json:"missing,omitempty"` // why it was not measured
	Rounds  []sample `json:"rounds,omitempty"`
	// Ratio is tokend's value divided by this server's of the same round.
	Ratio *spread `json:"tokend_over_this,omitempty"`
}

func (r rowResult) spread(m metric) spread {
	var values []float64
	for _, s := range r.Rounds {
		values = append(values, m.of(s))
	}
	return spreadOf(values)
}

// compare sets the ratios.
func (c *caseResult) compare() {
	tokend := c.Rows[0]
	for i := range c.Rows[1:] {
		row := &c.Rows[i+1]
		var ratios []float64
		for n := range min(len(row.Rounds), len(tokend.Rounds)) {
			if other := c.compared.of(row.Rounds[n]); other > 0 {
				ratios = append(ratios, c.compared.of(tokend.Rounds[n])/other)
			}
		}
		if len(ratios) > 0 {
			s := spreadOf(ratios)
			row.Ratio = &s
		}
	}
}

func (c caseResult) title() string { return testCase{name: c.Name, variant: c.Variant}.title() }

func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores (%s), %s, %s, load average %s at the start", m.Date, m.Cores, m.CPU, m.Go, m.System, m.LoadAvg)
}

func thisMachine() machine {
	return machine{
		Date: time.Now().UTC().Format(time.DateOnly), CPU: cpuModel(), Cores: runtime.NumCPU(),
		Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH, LoadAvg: loadAverage(),
	}
}

func cpuModel() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if name, model, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return "unknown"
}

// loadAverage returns the load average of the last minute.
func loadAverage() string {
	content, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(content), " ")
	return first
}

// Measures of a plot, in pixels.
const (
	plotWidth  = 860
	labelWidth = 270
	barWidth   = 440 // of the longest bar
	barHeight  = 16
	rowHeight  = 22
	headHeight = 30
)

// plot draws a metric of some cases as an SVG bar chart: bars for the medians, with lines from
// minimum to maximum. Each case has its own scale.
func plot(m metric, cases []caseResult) string {
	var body strings.Builder
	y := 2 * headHeight
	for _, c := range cases {
		y = c.drawBars(&body, m, y)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", plotWidth, y, plotWidth, y)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/>`+"\n")
	fmt.Fprintf(&b, `<text x="12" y="26" font-size="17" font-weight="bold">%s, %s: less is better</text>`+"\n", html.EscapeString(m.name), html.EscapeString(m.unit))
	b.WriteString(body.String())
	b.WriteString("</svg>\n")
	return b.String()
}

// drawBars draws a case at y and returns the y below it. It omits a case without the metric.
func (c caseResult) drawBars(b *strings.Builder, m metric, y int) int {
	longest := 0.0
	for _, row := range c.Rows {
		longest = max(longest, row.spread(m).Max)
	}
	if longest == 0 {
		return y
	}
	fmt.Fprintf(b, `<text x="12" y="%d" font-weight="bold">%s</text>`+"\n", y, html.EscapeString(c.title()))
	y += 8
	for i, row := range c.Rows {
		drawBar(b, row, m, y, barWidth/longest, i == 0)
		y += rowHeight
	}
	return y + headHeight
}

func drawBar(b *strings.Builder, row rowResult, m metric, y int, scale float64, own bool) {
	text := y + barHeight - 4
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, text, html.EscapeString(row.Server))
	if row.Missing != "" {
		fmt.Fprintf(b, `<text x="%d" y="%d" fill="#888">not measured</text>`+"\n", labelWidth, text)
		return
	}
	s, color := row.spread(m), "#a9b4c2"
	if own {
		color = "#1f6fb2"
	}
	at := func(v float64) float64 { return labelWidth + v*scale }
	fmt.Fprintf(b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y, s.Median*scale, barHeight, color)
	middle := y + barHeight/2
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#333" stroke-width="1.5"/>`+"\n", at(s.Min), at(s.Max), middle, middle)
	fmt.Fprintf(b, `<text x="%.1f" y="%d">%s</text>`+"\n", at(s.Max)+8, text, digits(s.Median))
}
