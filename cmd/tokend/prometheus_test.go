//go:build unix

package main_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
)

// requireTool skips the test if the program is missing, or fails it where the tools have to be.
func requireTool(t *testing.T, name, debianPackage string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missingTool(t, fmt.Errorf("%w: on Debian, apt-get install %s", err, debianPackage))
	}
}

// prometheus is a real one, which scrapes one target every second.
type prometheus struct {
	base   string
	client *http.Client
}

var listens = regexp.MustCompile(`address=(127\.0\.0\.1:[1-9]\d*)`)

// startPrometheus has the rules evaluated too.
func startPrometheus(t *testing.T, target, rules string) *prometheus {
	t.Helper()
	requireTool(t, "prometheus", "prometheus")
	rules, err := filepath.Abs(rules)
	if err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, "prometheus.yml", fmt.Appendf(nil, `
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs: [{job_name: tokend, static_configs: [{targets: [%q]}]}]
`, rules, target))
	p := invocation{program: "prometheus", args: []string{
		"--config.file=" + config, "--storage.tsdb.path=" + t.TempDir(), "--web.listen-address=127.0.0.1:0", "--enable-feature=exemplar-storage",
	}}.start(t)
	t.Cleanup(func() {
		p.signal(t, syscall.SIGTERM)
		p.awaitEnd(t)
	})
	prom := &prometheus{base: "http://" + p.awaitOutput(t, p.stderr, listens)[1], client: newHTTPClient(t, nil)}
	poll(t, "Prometheus to be ready", func() bool {
		got, err := do(prom.client, newRequest(t, http.MethodGet, prom.base+"/-/ready", ""))
		return err == nil && got.status == http.StatusOK
	})
	return prom
}

// get asks the API and decodes what it says, or returns what went wrong.
func (p *prometheus) get(t *testing.T, path string, to any) error {
	t.Helper()
	got, err := do(p.client, newRequest(t, http.MethodGet, p.base+path, ""))
	if err != nil {
		return err
	}
	if got.status != http.StatusOK {
		return fmt.Errorf("%d %s", got.status, got.body)
	}
	return json.Unmarshal([]byte(got.body), to)
}

// query returns the values that an expression has now, without those that are no number.
func (p *prometheus) query(t *testing.T, expr string) ([]float64, error) {
	t.Helper()
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any
			}
		}
	}
	if err := p.get(t, "/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return nil, err
	}
	var values []float64
	for _, series := range answer.Data.Result {
		text, _ := series.Value[1].(string)
		if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) {
			values = append(values, v)
		}
	}
	return values, nil
}
