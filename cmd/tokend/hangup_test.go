//go:build unix

package main_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// hangup has the files read again, and returns the line that says so.
func (s *service) hangup(t *testing.T) string {
	t.Helper()
	const said = `"msg":"files read again on SIGHUP`
	before := strings.Count(s.stderr.String(), said)
	s.signal(t, syscall.SIGHUP)
	poll(t, "the files are read again", func() bool { return strings.Count(s.stderr.String(), said) > before })
	log := s.stderr.String()
	line, _, _ := strings.Cut(log[strings.LastIndex(log, said):], "\n")
	return line
}

// A hangup ends nothing: the files are read, and what is wrong with one of them is said in the same
// line.
func TestHangup(t *testing.T) {
	t.Parallel()
	certs, em := makeCertificates(t), startAtlas(t)
	secret := writeFile(t, "secret", []byte(em.Org(0).UserAuthToken()))
	policy := func(allow string) string {
		return fmt.Sprintf("profiles:\n  acme: {userauthtoken_file: %s}\ncallers:\n  - {dns_san: web.internal, allow: [%s], profile: acme}\n", secret, allow)
	}
	policyFile, audit := writeFile(t, "policy.yaml", []byte(policy("CreateToken"))), filepath.Join(t.TempDir(), "audit.json")
	s := invocation{built: true, args: certs.flags("--policy-file="+policyFile, "--audit-file="+audit)}.startServe(t, em)
	line := s.hangup(t)
	for _, file := range []string{certs.serverCert, certs.serverKey, certs.caFile, policyFile, secret, audit} {
		if !strings.Contains(line, file) {
			t.Errorf("%s is not read: %s", file, line)
		}
	}
	if !strings.Contains(line, `"changed":[]`) {
		t.Errorf("nothing has changed: %s", line)
	}
	if got := certificateCall(t, s, certs, http.MethodDelete); got.status != http.StatusForbidden {
		t.Errorf("before the policy is replaced: %d %s", got.status, got.body)
	}
	replace(t, policyFile, policy("CreateToken, DeleteToken"))
	s.hangup(t)
	if got := certificateCall(t, s, certs, http.MethodDelete); got.status != http.StatusNoContent {
		t.Errorf("after: %d %s", got.status, got.body)
	}
	replace(t, policyFile, policy("Everything"))
	if line := s.hangup(t); !strings.Contains(line, "the last good ones stay") || !strings.Contains(line, policyFile+":4: unknown method") {
		t.Errorf("a wrong policy: %s", line)
	}
	if got := certificateCall(t, s, certs, http.MethodDelete); got.status != http.StatusNoContent {
		t.Errorf("after a wrong policy: %d %s", got.status, got.body)
	}
	s.signal(t, syscall.SIGTERM)
	if code := s.awaitEnd(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// The audit file is rotated as logrotate does it, by renaming it and then sending SIGHUP, while
// calls are made: each call has one record, in one of the files.
func TestAuditRotation(t *testing.T) {
	t.Parallel()
	audit := filepath.Join(t.TempDir(), "audit.json")
	s := startBuilt(t, "--audit-file="+audit)
	var (
		made atomic.Int64
		quit = make(chan struct{})
		load sync.WaitGroup
	)
	stop := sync.OnceFunc(func() { close(quit); load.Wait() })
	t.Cleanup(stop)
	for range 4 {
		client := newHTTPClient(t, nil)
		load.Go(func() {
			for made.Load() < 20_000 {
				select {
				case <-quit:
					return
				default:
				}
				id := fmt.Sprintf("call-%d", made.Add(1))
				req := newRequest(t, http.MethodPost, "http://"+s.http+restPath, "", "Authorization", "JWT "+s.atlas.Org(0).JWT(), "X-Request-Id", id)
				if got, err := do(client, req); err != nil || got.status != http.StatusCreated {
					t.Errorf("%s: %v, %d %s", id, err, got.status, got.body)
				}
			}
		})
	}
	files := []string{audit}
	for n := range 4 {
		calls := made.Load()
		poll(t, "more calls", func() bool { return made.Load() > calls+20 })
		kept := fmt.Sprintf("%s.%d", audit, n)
		if err := os.Rename(audit, kept); err != nil {
			t.Fatal(err)
		}
		files = append(files, kept)
		s.hangup(t)
		if _, err := os.Stat(audit); err != nil {
			t.Fatalf("the file is not made again: %v", err)
		}
	}
	stop()
	s.signal(t, syscall.SIGTERM)
	s.awaitEnd(t)
	records := map[string]int{}
	for _, file := range files {
		content := readFile(t, file)
		if content == "" {
			t.Errorf("%s is empty", file)
		}
		for line := range strings.Lines(content) {
			var record struct {
				ID string `json:"request_id"`
			}
			if err := json.Unmarshal([]byte(line), &record); err != nil {
				t.Fatalf("%s: %v in %q", file, err, line)
			}
			records[record.ID]++
		}
	}
	for n := range made.Load() {
		if id := fmt.Sprintf("call-%d", n+1); records[id] != 1 {
			t.Errorf("%s has %d records", id, records[id])
		}
	}
	t.Logf("%d calls, %d files", made.Load(), len(files))
}

// A hangup in a drain does not end it early either.
func TestHangupWhileStopping(t *testing.T) {
	t.Parallel()
	s := startBuilt(t)
	calls := s.hold(t)
	s.signal(t, syscall.SIGTERM)
	poll(t, "readyz says that it drains", func() bool { return s.readyz(t) == "503 draining" })
	s.hangup(t)
	calls.gate.Release()
	if got := []string{<-calls.rest, <-calls.grpc}; slices.Contains(got, "") {
		t.Errorf("the calls had %q", got)
	}
	if code := s.awaitEnd(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
}
