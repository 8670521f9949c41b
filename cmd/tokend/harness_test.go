//go:build unix

// The tests of this package call the program as its users do, with arguments and environment, in
// this process. Those about signals, the process's environment or its end run the built program.
package main_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	tokendmain "github.com/ForstaLabs/ephemeral-token-service/cmd/tokend"
)

const (
	// repository is the root, as seen from here.
	repository = "../.."
	// patience bounds every wait for what has to happen. It is no measure of how long that should
	// take.
	patience = 30 * time.Second
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // as main does
	testscript.Main(leakChecked{m}, map[string]func(){"tokend": tokendmain.Main})
}

// leakChecked fails if the tests leave goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	// Most of these tests wait for other processes rather than work, so more of them can run at a
	// time than there are processors.
	flag.Parse()
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(4*runtime.GOMAXPROCS(0))) // it is a number
	}
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestCommandLines runs what is in testdata.
func TestCommandLines(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: func(env *testscript.Env) error {
		env.Setenv("GORACE", "atexit_sleep_ms=0") // or main ends the process before the race detector does
		return nil
	}})
}

// missingTool skips a test that needs a tool which is not here, or fails it where the tools have to
// be.
func missingTool(t *testing.T, why error) {
	t.Helper()
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// output is what a process has written so far.
type output struct {
	mu      sync.Mutex
	b       []byte        // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced when b grows
	read    func() error  // guarded by mu; called before each read: it may block, and an error closes the pipe; nil: reads on
}

// onRead replaces read.
func (o *output) onRead(read func() error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.read = read
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	read := o.read
	o.mu.Unlock()
	if read != nil {
		if err := read(); err != nil {
			return 0, err
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

func (o *output) String() string {
	text, _ := o.snapshot()
	return text
}

func (o *output) snapshot() (text string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b), o.changed
}

// process is a tokend that a test started. It is ended when the test ends.
type process struct {
	*os.Process // nil in this process
	stop        context.CancelFunc

	stdout, stderr *output
	ended          chan struct{} // closed when it has ended and all its output is here
	code           int           // after that; -1 if a signal ended it
}

// invocation is how a tokend is called.
type invocation struct {
	args []string
	env  []string // NAME=value, besides an environment without any TOKEND_ variable

	built   bool   // run it in a process of its own, as it also is if env has other variables than TOKEND_
	program string // in place of tokend
}

func (in invocation) start(t *testing.T) *process {
	t.Helper()
	p := &process{stdout: newOutput(), stderr: newOutput(), ended: make(chan struct{})}
	if in.built || in.program != "" || slices.ContainsFunc(in.env, func(entry string) bool { return !strings.HasPrefix(entry, "TOKEND_") }) {
		in.startProcess(t, p)
	} else {
		ctx, stop := context.WithCancel(context.Background())
		p.stop = stop
		go func() {
			defer close(p.ended)
			p.code = tokendmain.Execute(ctx, in.args, append(environment(), in.env...), p.stdout, p.stderr)
		}()
	}
	t.Cleanup(func() {
		p.stop()
		<-p.ended
		if stderr := p.stderr.String(); t.Failed() {
			t.Logf("tokend %s:\n%s%s", strings.Join(in.args, " "), p.stdout, stderr)
		} else if crash := crashed.FindString(stderr); crash != "" {
			t.Errorf("tokend %s crashed, %q:\n%s", strings.Join(in.args, " "), crash, stderr)
		}
	})
	return p
}

func (in invocation) startProcess(t *testing.T, p *process) {
	t.Helper()
	program := "tokend" // which testscript has put into PATH
	if in.program != "" {
		program = in.program
	}
	cmd := exec.Command(program, in.args...)
	cmd.Env = append(environment(), in.env...)
	cmd.Stdout, cmd.Stderr = p.stdout, p.stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.Process = cmd.Process
	p.stop = func() { _ = p.Kill() } // fails if it has ended
	go func() {
		_ = cmd.Wait() // its state says the same
		p.code = cmd.ProcessState.ExitCode()
		close(p.ended)
	}()
}

// crashed finds what the Go runtime writes when a program goes wrong.
var crashed = regexp.MustCompile(`(?m)^(panic:|fatal error:|WARNING: DATA RACE|goroutine \d+ \[)`)

// environment is the test's own, without settings of tokend and of OpenTelemetry. The race detector
// would hold up each process's end for a second.
func environment() []string {
	inherited := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "TOKEND_") || strings.HasPrefix(entry, "OTEL_")
	})
	return append(inherited, "GORACE=atexit_sleep_ms=0")
}

// awaitOutput returns as soon as o has a match, with its groups.
func (p *process) awaitOutput(t *testing.T, o *output, pattern *regexp.Regexp) []string {
	t.Helper()
	timeout := time.After(patience)
	for ended := false; ; {
		text, changed := o.snapshot()
		if match := pattern.FindStringSubmatch(text); match != nil {
			return match
		}
		if ended {
			t.Fatalf("tokend ended (%d) and never wrote %s:\n%s%s", p.code, pattern, p.stdout, p.stderr)
		}
		select {
		case <-changed:
		case <-p.ended:
			ended = true
		case <-timeout:
			t.Fatalf("tokend does not write %s:\n%s%s", pattern, p.stdout, p.stderr)
		}
	}
}

// awaitEnd returns the exit status, -1 if a signal ended it.
func (p *process) awaitEnd(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.code
	case <-time.After(patience):
		t.Fatalf("tokend does not end:\n%s%s", p.stdout, p.stderr)
		return 0
	}
}

// signal sends sig. In this process there is SIGTERM only.
func (p *process) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if p.Process == nil && sig == syscall.SIGTERM {
		p.stop()
		return
	}
	if err := p.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// result is what an ended program leaves behind.
type result struct {
	code           int
	stdout, stderr string
}

// run waits for a tokend that ends by itself.
func (in invocation) run(t *testing.T) result {
	t.Helper()
	p := in.start(t)
	code := p.awaitEnd(t)
	return result{code, p.stdout.String(), p.stderr.String()}
}

func tokend(t *testing.T, args ...string) result {
	t.Helper()
	return invocation{args: args}.run(t)
}

// command runs another program until it ends.
func command(t *testing.T, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = repository
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", name, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// freePorts are the flags that make the three listeners take any free port.
var freePorts = []string{"--grpc-addr=127.0.0.1:0", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"}

// service is a tokend that serves, and the Atlas that it asks.
type service struct {
	*process
	atlas             *emulator.Emulator
	grpc, http, admin string // addresses
}

// serving is the line that serve writes when its listeners are bound, in either format.
var serving = regexp.MustCompile(`msg"?[:=]"?serving.*grpc"?[:=]"?([^" ]+).*http"?[:=]"?([^" ]+).*admin"?[:=]"?([^" ]+)`)

// startServe starts tokend serve with an emulated Atlas, on free ports unless args say otherwise,
// and returns when it is ready.
func startServe(t *testing.T, args ...string) *service {
	t.Helper()
	return invocation{args: args}.startServe(t, startAtlas(t))
}

// startBuilt is startServe in a process of its own.
func startBuilt(t *testing.T, args ...string) *service {
	t.Helper()
	return invocation{args: args, built: true}.startServe(t, startAtlas(t))
}

func startAtlas(t *testing.T) *emulator.Emulator {
	t.Helper()
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return em
}

func (in invocation) startServe(t *testing.T, em *emulator.Emulator) *service {
	t.Helper()
	in.args = slices.Concat([]string{"serve", "--drain-delay=0s"}, freePorts, atlasFlags(t, em), in.args)
	return in.await(t, em)
}

// await starts a serve whose every argument is given, and returns when it is ready.
func (in invocation) await(t *testing.T, em *emulator.Emulator) *service {
	t.Helper()
	s := in.awaitServing(t, em)
	poll(t, "ready", func() bool { return s.readyz(t) == "200 ready" })
	return s
}

// awaitServing is await for a service that has something to say about its readiness.
func (in invocation) awaitServing(t *testing.T, em *emulator.Emulator) *service {
	t.Helper()
	s := &service{process: in.start(t), atlas: em}
	at := s.awaitOutput(t, s.stderr, serving)
	s.grpc, s.http, s.admin = at[1], at[2], at[3]
	return s
}

func atlasFlags(t *testing.T, em *emulator.Emulator) []string {
	t.Helper()
	return []string{"--atlas-url=" + em.URL(), "--atlas-ca-file=" + writeFile(t, "atlas-ca.pem", em.CAPEM())}
}

// poll waits until what is so.
func poll(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("in vain: %s", what)
		}
	}
}

// writeFile writes a file into a directory of its own.
func writeFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// socketPath is a path that is short enough for a socket, as t.TempDir's often are not.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tokend") //nolint:usetesting // t.TempDir has the test's name in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "grpc.sock")
}
