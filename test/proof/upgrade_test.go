package proof

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// earlier is the last commit whose values in Redis are not bound to a Redis process.
const earlier = "1521fa9"

// TestRollingUpgrade has a replica of an earlier build and one of this build share a Redis. They
// honour each other's deletes, and neither takes the other's values for altered ones.
func TestRollingUpgrade(t *testing.T) {
	testutil.SkipUnlessLong(t)
	t.Parallel()
	w := newWorld(t, setup{replicas: 1, orgs: 10, ttl: proofTTL, redis: redistest.Start(t)})
	admin := w.startEarlier(t, buildEarlier(t))
	stopFaults := w.injectFaults(slowAnswers...)
	h := w.run(t, traffic{operations: 4000, clients: 16, deletes: .06, fresh: .1, madeUp: .05})
	stopFaults()
	check(t, h, w.failedOperations(t) > 0)
	hits := map[int]int{}
	for _, e := range h.Events {
		if e.Hit {
			hits[e.Replica]++
		}
	}
	if hits[0] == 0 || hits[1] == 0 {
		t.Errorf("%d hits in this build and %d in the earlier one: that proves little", hits[0], hits[1])
	}
	altered := regexp.MustCompile(`(?m)^tokend_cache_rejected_total\{reason="(seal|expired)"\} [1-9].*$`)
	if got := altered.FindString(w.replicas[0].Metrics(t)); got != "" {
		t.Errorf("this build: %s", got)
	}
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	// That build counts a value as expired that is read in the millisecond it expires.
	if got := regexp.MustCompile(`(?m)^tokend_cache_rejected_total\{reason="seal"\} [1-9].*$`).Find(metrics); got != nil {
		t.Errorf("the earlier build: %s", got)
	}
}

// buildEarlier builds tokend as it was, from the repository's history.
func buildEarlier(t *testing.T) (program string) {
	t.Helper()
	tree, program := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "tokend")
	repository := filepath.Dir(testutil.Path("go.mod"))
	if out, err := exec.Command("git", "-C", repository, "worktree", "add", "--detach", tree, earlier).CombinedOutput(); err != nil {
		t.Skipf("there is no history to build the earlier build from: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("git", "-C", repository, "worktree", "remove", "--force", tree).Run() })
	build := exec.Command("go", "build", "-o", program, "./cmd/tokend")
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the earlier build: %s", out)
	}
	return program
}

// startEarlier runs a replica of the earlier build, and returns the address of its metrics.
func (w *world) startEarlier(t *testing.T, program string) (admin string) {
	t.Helper()
	p := &replicaProcess{t: t, settings: replicaSettings{GRPCAddr: freeAddr(t), HTTPAddr: freeAddr(t)}}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, w.atlas.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	admin = freeAddr(t)
	p.cmd = exec.Command(program, "serve", "--plaintext", "--grpc-addr", p.settings.GRPCAddr, "--http-addr", p.settings.HTTPAddr,
		"--admin-addr", admin, "--drain-delay", "0s", "--atlas-url", w.atlas.URL(), "--atlas-ca-file", ca,
		"--atlas-timeout", proofAtlasTimeout.String(), "--cache-ttl", w.ttl.String(), "--cache-redis-url", w.redis.URL())
	p.cmd.Env = []string{} // tokend refuses a TOKEND_ variable that is no setting
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	testutil.Eventually(t, func() bool {
		resp, err := http.Get("http://" + admin + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	}, "the earlier build is not ready")
	w.callers = append(w.callers, p.callers(t))
	return admin
}
