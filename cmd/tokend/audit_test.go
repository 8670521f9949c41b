//go:build linux

package main_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
)

// Audit records that cannot be written are reported, once and not for each, and the calls go on.
func TestAuditRecordsLost(t *testing.T) {
	t.Parallel()
	const full = "/dev/full" // takes nothing: ENOSPC
	if _, err := os.Stat(full); err != nil {
		lacking(t, err)
	}
	s := startServe(t, "--audit-file="+full)
	client := newHTTPClient(t, nil)
	for range 3 {
		got, err := do(client, newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+s.atlas.Org(0).JWT()))
		if err != nil || got.status != http.StatusCreated {
			t.Fatalf("%v, %d %s", err, got.status, got.body)
		}
	}
	log := s.stderr.String()
	if strings.Count(log, `"level":"ERROR","msg":"audit records are lost","cause":"write /dev/full: no space left on device"`) != 1 {
		t.Errorf("the log does not say it once:\n%s", log)
	}
}
