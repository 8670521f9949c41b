package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// results are everything that a run has found out, as it is in results.json.
type results struct {
	Machine machine      `json:"machine"`
	Effort  effort       `json:"effort"`
	Cases   []caseResult `json:"cases"`
}

// machine is where it ran.
type machine struct {
	Date    string `json:"date"`
	CPU     string `json:"cpu"`
	Cores   int    `json:"cores"`
	Go      string `json:"go"`
	System  string `json:"system"`
	LoadAvg string `json:"load_average_at_start"` // what others were doing
}

type caseResult struct {
	Name     string      `json:"name"`
	Variant  string      `json:"variant,omitempty"`
	Callers  int         `json:"callers,omitempty"`
	Compared string      `json:"compared"`
	Rows     []rowResult `json:"rows"` // tokend's first

	compared metric
}

// rowResult is one server's.
type rowResult struct {
	Server  string   `json:"server"`
	Missing string   `json:"missing,omitempty"` // why it was not measured
	Rounds  []sample `json:"rounds,omitempty"`
	// Ratio is tokend's number over this server's, both of the same round.
	Ratio *spread `json:"tokend_over_this,omitempty"`
}

func (r rowResult) spread(m metric) spread {
	var values []float64
	for _, s := range r.Rounds {
		values = append(values, m.of(s))
	}
	return spreadOf(values)
}

// compare fills the ratios in.
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

// loadAverage is of the last minute.
func loadAverage() string {
	content, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(content), " ")
	return first
}
