package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
)

var marks = map[status]string{passed: "✓", doubted: "!", failed: "✗", skipped: "-"}

// showTable is for people: a line for each check, and one for what to do.
func showTable(w io.Writer, findings []finding) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", marks[f.Status], oneLine(f.Check), oneLine(f.Detail))
		if f.Remedy != "" {
			fmt.Fprintf(table, "\t\t→ %s\n", oneLine(f.Remedy))
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d ✓  %d !  %d ✗  %d not checked\n",
		count(findings, passed), count(findings, doubted), count(findings, failed), count(findings, skipped))
	return err
}

// oneLine leaves nothing in a text that would move it elsewhere in the table, or on a terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// showJSON is for programs.
func showJSON(w io.Writer, findings []finding) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		OK     bool      `json:"ok"` // nothing has failed
		Checks []finding `json:"checks"`
	}{count(findings, failed) == 0, findings})
}
