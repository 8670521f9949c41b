//go:build linux

package main_test

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Audit records that cannot be written are reported, once and not for each, and the calls go on.
func TestAuditRecordsLost(t *testing.T) {
	t.Parallel()
	const full = "/dev/full" // takes nothing: ENOSPC
	if _, err := os.Stat(full); err != nil {
		missingTool(t, err)
	}
	s := startServe(t, "--audit-file="+full)
	client := newHTTPClient(t, nil)
	for range 3 {
		got, err := do(client, newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+s.atlas.Org(0).JWT()))
		if err != nil || got.status != http.StatusCreated {
			t.Fatalf("%v, %d %s", err, got.status, got.body)
		}
	}
	if metrics := probe(t, s.admin, "/metrics"); !strings.Contains(metrics, "\ntokend_audit_records_lost_total 3\n") {
		t.Error("/metrics does not count three lost records")
	}
	log := s.stderr.String()
	if strings.Count(log, `"level":"ERROR","msg":"audit records are lost","cause":"write /dev/full: no space left on device"`) != 1 {
		t.Errorf("the log does not say it once:\n%s", log)
	}
}

// TestConfigMakesNoAuditFile checks that config neither makes an audit file nor changes one.
func TestConfigMakesNoAuditFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "audit.json")
	if got := tokend(t, "config", "--audit-file="+file); got.code != 0 {
		t.Fatalf("%d\n%s", got.code, got.stderr)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after config: %v, want no file", err)
	}
	if err := os.WriteFile(file, []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := tokend(t, "config", "--audit-file="+file); got.code != 0 {
		t.Fatalf("%d\n%s", got.code, got.stderr)
	}
	if got := readFile(t, file); got != "{}\n" {
		t.Errorf("after config it has %q", got)
	}
	if got := tokend(t, "config", "--audit-file="+filepath.Join(file, "x")); got.code != 1 || !strings.Contains(got.stderr, "--audit-file: ") {
		t.Errorf("a file that cannot be made: %d\n%s", got.code, got.stderr)
	}
}
