// Command faults runs the tests of the fault table and prints the table with the results. It exits
// with 1 if a row has no test, or one that failed or was skipped.
//
//	go run -C tools ./faults
//
// With -list it only checks that each row has a test.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// table is the document with the rows, relative to the repository's root.
const table = "deploy/faults.md"

func main() {
	list := flag.Bool("list", false, "only check that each row has a test")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *list); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, list bool) error {
	document, err := os.ReadFile("../" + table)
	if err != nil {
		return fmt.Errorf("run it as go run -C tools ./faults: %w", err)
	}
	rows := parseTable(string(document))
	if list {
		return checkNames(ctx, out, rows)
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-count=1", "-run=^TestFault", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "TOKEND_LONG=1", "REQUIRE_TOOLS=1")
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	results, err := read(events)
	if err != nil {
		return err
	}
	_ = cmd.Wait() // fails if a test does, which the rows report
	return printTable(out, rows, results)
}

// checkNames returns an error if a row has no test.
func checkNames(ctx context.Context, out io.Writer, rows []row) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-list=^TestFault", "./...")
	cmd.Dir = ".."
	cmd.Stderr = os.Stderr
	names, err := cmd.Output()
	if err != nil {
		return err
	}
	tests := map[int]bool{}
	for line := range strings.Lines(string(names)) {
		if number, ok := rowOf(line); ok {
			tests[number] = true
		}
	}
	missing := 0
	for _, row := range rows {
		if !tests[row.number] {
			fmt.Fprintf(out, "%d has no test: %s\n", row.number, row.fault)
			missing++
		}
	}
	fmt.Fprintf(out, "%d of %d rows have tests\n", len(rows)-missing, len(rows))
	if missing > 0 {
		return fmt.Errorf("%d rows have no test", missing)
	}
	return nil
}

// row is a row of the table.
type row struct {
	number int
	fault  string
}

var tableRow = regexp.MustCompile(`(?m)^\| (\d+)[^|]* \| ([^|]+) \|`)

func parseTable(document string) []row {
	var rows []row
	for _, match := range tableRow.FindAllStringSubmatch(document, -1) {
		number, _ := strconv.Atoi(match[1]) // it is digits
		rows = append(rows, row{number, match[2]})
	}
	return rows
}

// result is the result of a row's tests.
type result struct {
	tests      map[string]bool // names of the top-level tests
	cases      int
	bad        []string // tests that failed or were skipped
	transports map[string]bool
}

var testName = regexp.MustCompile(`^TestFault(\d\d)`)

// rowOf returns the number of a test's row, if it has one.
func rowOf(test string) (number int, ok bool) {
	match := testName.FindStringSubmatch(test)
	if match == nil {
		return 0, false
	}
	number, _ = strconv.Atoi(match[1]) // it is digits
	return number, true
}

// read reads the events of go test -json.
func read(events io.Reader) (map[int]*result, error) {
	results := map[int]*result{}
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct{ Action, Test string }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, err
		}
		number, ok := rowOf(event.Test)
		if !ok || !slices.Contains([]string{"pass", "fail", "skip"}, event.Action) {
			continue
		}
		r := results[number]
		if r == nil {
			r = &result{tests: map[string]bool{}, transports: map[string]bool{}}
			results[number] = r
		}
		parts := strings.Split(event.Test, "/")
		r.tests[parts[0]] = true
		r.cases++
		if event.Action == "fail" || event.Action == "skip" && len(parts) == 1 {
			r.bad = append(r.bad, event.Action+" "+event.Test)
		}
		for _, part := range parts[1:] {
			for _, transport := range []string{"gRPC", "REST"} {
				if strings.HasPrefix(part, transport) {
					r.transports[transport] = true
				}
			}
		}
	}
	return results, lines.Err()
}

// printTable writes the table, and returns an error if not every row passed.
func printTable(out io.Writer, rows []row, results map[int]*result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	passed := 0
	for _, row := range rows {
		r, verdict := results[row.number], "pass"
		switch {
		case r == nil:
			fmt.Fprintf(w, "%d\tMISSING\t\t%s\t\n", row.number, row.fault)
			continue
		case len(r.bad) > 0:
			verdict = "FAIL"
		default:
			passed++
		}
		over := strings.Join(slices.Sorted(maps.Keys(r.transports)), "+")
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s (%d cases)\n", row.number, verdict, over, row.fault, strings.Join(slices.Sorted(maps.Keys(r.tests)), ", "), r.cases)
		for _, bad := range r.bad {
			fmt.Fprintf(w, "\t\t\t  %s\t\n", bad)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d of %d rows pass\n", passed, len(rows))
	if passed < len(rows) {
		return fmt.Errorf("%d rows do not pass", len(rows)-passed)
	}
	return nil
}
