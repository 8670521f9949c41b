package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// TestQuickRun checks that a short run measures every server.
func TestQuickRun(t *testing.T) {
	out := t.TempDir()
	if err := run(t.Context(), []string{"-quick", "-out", out}, t.Output()); err != nil {
		t.Fatal(err)
	}
	var got results
	if err := json.Unmarshal(read(t, out, "results.json"), &got); err != nil {
		t.Fatal(err)
	}
	want := cases()
	if len(got.Cases) != len(want) {
		t.Fatalf("%d cases are in the results, want %d", len(got.Cases), len(want))
	}
	summary := string(read(t, out, "summary.md"))
	for i, c := range want {
		for n, s := range c.servers() {
			row := got.Cases[i].Rows[n]
			if row.Server != s.name {
				t.Errorf("%s: row %d is %q, want %q", c.name, n, row.Server, s.name)
			}
			checkRow(t, c, row)
			if line := "| " + c.name + " | " + s.name + " |"; !strings.Contains(summary, line) {
				t.Errorf("the summary has no line %q", line)
			}
		}
	}
	for _, name := range []string{"cpu.svg", "latency.svg"} {
		checkXML(t, name, read(t, out, name))
	}
}

func checkRow(t *testing.T, c testCase, row rowResult) {
	t.Helper()
	name := c.name + ": " + row.Server
	if row.Missing != "" {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Errorf("%s: %s", name, row.Missing)
		}
		t.Log(name, row.Missing)
		return
	}
	if len(row.Rounds) != 1 {
		t.Fatalf("%s: %d rounds, want 1", name, len(row.Rounds))
	}
	s := row.Rounds[0]
	if c.how != idle && c.compared.of(s) <= 0 { // the heap may have shrunk
		t.Errorf("%s: no %s: %+v", name, c.compared.name, s)
	}
	if c.how == underLoad && (s.Calls == 0 || s.CPUMicros <= 0 || s.Rate <= 0 || s.P50 <= 0 || s.P99 < s.P50 || s.P999 < s.P99 || s.Resident <= 0) {
		t.Errorf("%s: not measured in full: %+v", name, s)
	}
	if s.AtlasCalls > 0 && (s.AtlasRate <= 0 || s.AtlasMost < 1) || c.oneCredential && strings.HasPrefix(row.Server, "tokend") && s.AtlasMost > 4 {
		t.Errorf("%s: %.0f calls to Atlas a second, %d at a time", name, s.AtlasRate, s.AtlasMost)
	}
	remembers := strings.Contains(c.name, "remembered in memory")
	if remembers && s.AtlasCalls > 0 || c.how == underLoad && !remembers && s.AtlasCalls > s.Calls {
		t.Errorf("%s: %d of %d calls have reached Atlas", name, s.AtlasCalls, s.Calls)
	}
}

// TestVariants checks that a variant differs from its case in one setting and in its title.
func TestVariants(t *testing.T) {
	titles := map[string]bool{}
	for _, c := range append(cases(), variants()...) {
		if titles[c.title()] {
			t.Errorf("two cases are called %q", c.title())
		}
		titles[c.title()] = true
	}
}

// TestMistakes checks that mistakes are reported before a server starts.
func TestMistakes(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-duration", "0s"}, {"-only", "("}, {"-only", "no such case"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%v is taken", args)
		}
	}
}

func TestMissingServerHasItsRow(t *testing.T) {
	absent := server{name: "absent", needs: "no-such-server"}
	if got, want := absent.missing(), "no-such-server is not installed: on Debian, apt-get install no-such-server"; got != want {
		t.Fatalf("missing is %q, want %q", got, want)
	}
	c := caseResult{Name: "case", compared: cpuPerCall, Rows: []rowResult{
		{Server: "tokend", Rounds: []sample{{CPUMicros: 3}}}, {Server: "absent", Missing: absent.missing()},
	}}
	c.compare()
	got := (&results{Cases: []caseResult{c}}).summary()
	if strings.Count(got, absent.missing()) != 2 {
		t.Errorf("the tables do not say what is missing:\n%s", got)
	}
}

// TestRatios checks that ratios compare the numbers of a round, not medians.
func TestRatios(t *testing.T) {
	c := caseResult{compared: cpuPerCall, Rows: []rowResult{
		{Server: "tokend", Rounds: []sample{{CPUMicros: 10}, {CPUMicros: 30}, {CPUMicros: 20}}},
		{Server: "other", Rounds: []sample{{CPUMicros: 5}, {CPUMicros: 10}, {CPUMicros: 20}}},
	}}
	c.compare()
	if got, want := *c.Rows[1].Ratio, (spread{Median: 2, Min: 1, Max: 3}); got != want {
		t.Errorf("ratio %v, want %v", got, want)
	}
}

func TestSpread(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		want   spread
	}{
		{nil, spread{}},
		{[]float64{7}, spread{7, 7, 7}},
		{[]float64{3, 1, 2}, spread{2, 1, 3}},
		{[]float64{4, 1, 2, 3}, spread{2.5, 1, 4}},
	} {
		if got := spreadOf(tc.values); got != tc.want {
			t.Errorf("spread of %v: %v, want %v", tc.values, got, tc.want)
		}
	}
}

func TestQuantiles(t *testing.T) {
	var o outcome
	for i := range 1000 {
		o.latencies = append(o.latencies, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0.5: 500, 0.99: 990, 0.999: 999, 1: 999} {
		if got := o.quantile(q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
}

// TestCPUTime checks that the CPU clock agrees with /proc/PID/stat.
func TestCPUTime(t *testing.T) {
	before, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	cpu, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	after, err := readStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	const tick = 10 * time.Millisecond
	if least, most := time.Duration(before.ticks-2)*tick, time.Duration(after.ticks+3)*tick; cpu < least || cpu > most {
		t.Errorf("CPU time %v, want %v to %v", cpu, least, most)
	}
	if before.parent != os.Getppid() || before.pages <= 0 {
		t.Errorf("parent %d and %d pages, want parent %d", before.parent, before.pages, os.Getppid())
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func checkXML(t *testing.T, name string, content []byte) {
	t.Helper()
	for decoder := xml.NewDecoder(bytes.NewReader(content)); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
}

// TestQuickScaling checks that a short run of the scaling has every point.
func TestQuickScaling(t *testing.T) {
	if _, err := find("redis-server"); err != nil {
		if os.Getenv("REQUIRE_TOOLS") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out := t.TempDir()
	if err := run(t.Context(), []string{"-quick", "-scaling", "-out", out}, t.Output()); err != nil {
		t.Fatal(err)
	}
	var got scaling
	if err := json.Unmarshal(read(t, out, "scaling.json"), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Points) != 8 { // with and without Redis, one replica and two, one caller and ten
		t.Errorf("%d points", len(got.Points))
	}
	for _, p := range got.Points {
		if p.Rate <= 0 || p.Model <= 0 || p.P50 <= 0 || !p.Redis && p.Atlas <= 0 {
			t.Errorf("a number is missing: %+v", p)
		}
	}
	if rows := strings.Count(string(read(t, out, "scaling.md")), "\n| no | "); rows != 4 {
		t.Errorf("the table has %d rows without Redis, want 4", rows)
	}
	checkXML(t, "scaling.svg", read(t, out, "scaling.svg"))
}

func TestBefore(t *testing.T) {
	var started []string
	s := server{name: "tokend", start: func(_ context.Context, l *lab, _ bool) (*running, error) {
		started = append(started, l.tokend)
		return &running{}, nil
	}}
	l := &lab{tokend: "now"}
	for _, s := range []server{s.before("then"), s} {
		if _, err := s.start(t.Context(), l, false); err != nil {
			t.Fatal(err)
		}
	}
	if len(started) != 2 || started[0] != "then" || started[1] != "now" {
		t.Errorf("started %v, want the other build, then this one", started)
	}
}

func TestProfile(t *testing.T) {
	var profile bytes.Buffer
	if err := pprof.Lookup("heap").WriteTo(&profile, 0); err != nil { // another kind of profile in the same format
		t.Fatal(err)
	}
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/debug/pprof/profile" || r.URL.Query().Get("seconds") != "1" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(profile.Bytes())
	}))
	t.Cleanup(admin.Close)
	file := filepath.Join(t.TempDir(), "cpu.pprof")
	r := &running{admin: admin.Listener.Addr().String()}
	if err := takeProfile(t.Context(), r, file, time.Millisecond)(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Dir(file), filepath.Base(file)); !bytes.Equal(got, profile.Bytes()) {
		t.Error("the file is not what tokend has answered")
	}
	if got := read(t, filepath.Dir(file), "cpu.txt"); strings.Count(string(got), "flat%") != 2 {
		t.Errorf("the explanation is %s", got)
	}
	err := takeProfile(t.Context(), r, file, 2*time.Second)()
	if err == nil || !strings.Contains(err.Error(), "run without -profile") {
		t.Errorf("without such a page: %v", err)
	}
	if err := takeProfile(t.Context(), &running{}, file, time.Second)(); err != nil {
		t.Errorf("a server without an admin address: %v", err)
	}
}
