//go:build linux

package main_test

import (
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestUnitIsHardened checks that systemd understands the unit, and rates its exposure as 2.0 of 10
// at most.
func TestUnitIsHardened(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		missingTool(t, err)
	}
	got := command(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", "deploy/tokend.service")
	if got.code != 0 || got.stderr != "" {
		t.Errorf("exit status %d\n%s%s", got.code, got.stderr, got.stdout)
	}
	t.Log(got.stdout[strings.LastIndex(got.stdout, "→"):])
}

// TestUnit checks that the unit and the chart give a drain enough time, and that the unit reloads
// by SIGHUP.
func TestUnit(t *testing.T) {
	t.Parallel()
	unit := readFile(t, repository+"/deploy/tokend.service")
	value := func(name string) string {
		t.Helper()
		found := regexp.MustCompile(`(?m)^`+name+`=(.*)$`).FindAllStringSubmatch(unit, -1)
		if len(found) != 1 {
			t.Fatalf("%s is there %d times", name, len(found))
		}
		return found[0][1]
	}
	if got := value("Type"); got != "notify" {
		t.Errorf("Type=%s", got)
	}
	if got := value("ExecReload"); !strings.Contains(got, "-HUP $MAINPID") {
		t.Errorf("ExecReload=%s", got)
	}
	stop, err := strconv.Atoi(value("TimeoutStopSec"))
	if err != nil {
		t.Fatal(err)
	}
	drain := 2 * time.Second // a second for the last responses and one for the last traces
	for _, s := range readSettings(t, invocation{args: []string{"config"}}) {
		if s.flag == "--drain-delay" || s.flag == "--drain-timeout" {
			d, err := time.ParseDuration(s.value)
			if err != nil {
				t.Fatal(err)
			}
			drain += d
		}
	}
	if time.Duration(stop)*time.Second <= drain {
		t.Errorf("TimeoutStopSec=%d, and a stop may take %v", stop, drain)
	}
	pod := regexp.MustCompile(`terminationGracePeriodSeconds: \{\{ add \(int \.Values\.drain\.delaySeconds\) \(int \.Values\.drain\.timeoutSeconds\) (\d+) \}\}`)
	if !pod.MatchString(readFile(t, repository+"/deploy/helm/tokend/templates/deployment.yaml")) {
		t.Error("the chart does not give a stop its two times and three seconds at least")
	}
}
