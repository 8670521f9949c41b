package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// write puts everything into a folder: summary.md, results.json and the plots.
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

// writeResults puts files into a folder, and beside them what they were made of, as JSON under the
// name raw.
func writeResults(dir, raw string, results any, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // for everybody to read
		return err
	}
	encoded, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return err
	}
	files[raw] = string(encoded) + "\n"
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil { //nolint:gosec // for everybody to read
			return err
		}
	}
	return nil
}

// mainTable are the cases of it.
func (r *results) mainTable() []caseResult {
	return slices.DeleteFunc(slices.Clone(r.Cases), func(c caseResult) bool { return c.Variant != "" })
}

// byCallers are the cases that were measured with several numbers of callers, from few to many.
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

// summary is Markdown: what tokend costs beside what would be used instead, then every number.
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

// text is a spread with its unit; nothing if it was not measured.
func (m metric) text(s spread) string {
	if s.Max == 0 {
		return ""
	}
	if s.Min == s.Max {
		return strings.TrimSpace(digits(s.Median) + " " + m.unit)
	}
	return strings.TrimSpace(fmt.Sprintf("%s (%s–%s) %s", digits(s.Median), digits(s.Min), digits(s.Max), m.unit))
}

// digits is a number with three digits or so.
func digits(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
