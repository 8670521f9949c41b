package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
)

var marks = map[Status]string{Passed: "✓", Doubted: "!", Failed: "✗", Skipped: "-"}

// WriteTable writes the findings for people: a line for each, and one for what to do.
func WriteTable(w io.Writer, findings []Finding) error {
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
		Count(findings, Passed), Count(findings, Doubted), Count(findings, Failed), Count(findings, Skipped))
	return err
}

// oneLine replaces what would move text elsewhere in the table, or on a terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
}

// WriteJSON writes the findings for programs.
func WriteJSON(w io.Writer, findings []Finding) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		OK     bool      `json:"ok"` // nothing has failed
		Checks []Finding `json:"checks"`
	}{Count(findings, Failed) == 0, findings})
}
