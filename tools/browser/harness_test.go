package browser

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience bounds every wait. It does not measure speed.
const patience = 3 * time.Minute

// built is the folder of the program under test.
var built string

func TestMain(m *testing.M) {
	var err error
	if built, err = os.MkdirTemp("", "tokend-browser"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

var tokendBinary = sync.OnceValues(func() (string, error) {
	binary := filepath.Join(built, "tokend")
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/tokend")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tokend: %w\n%s", err, out)
	}
	return binary, nil
})

// chromium returns the browser's path. Without it the test is skipped, or fails if REQUIRE_TOOLS is
// 1.
func chromium(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err == nil {
		return path
	}
	if os.Getenv("REQUIRE_TOOLS") == "1" {
		t.Fatal(err)
	}
	t.Skipf("no browser: %v", err)
	return ""
}

// service is a running tokend dev.
type service struct{ http, jwt string }

// output collects what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// guide matches the part of tokend dev's output that the tests use.
var guide = regexp.MustCompile(`(?s)export ATLAS_JWT=(\S+)\n.*http://(\S+)/v1/ephemeral-token\n.*/readyz\n`)

// startDev runs tokend dev until the test ends.
func startDev(t *testing.T, args ...string) service {
	t.Helper()
	binary, err := tokendBinary()
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr := &output{}, &output{}
	cmd := exec.Command(binary, append([]string{"dev", "--grpc-addr=", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0"}, args...)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool { return strings.HasPrefix(entry, "TOKEND_") })
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has exited
		_ = cmd.Wait()
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		if found := guide.FindStringSubmatch(stdout.String()); found != nil {
			return service{jwt: found[1], http: found[2]}
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("tokend dev does not start:\n%s%s", stdout, stderr)
		}
	}
}

// tab is a tab of a new browser.
type tab struct {
	ctx context.Context // chromedp's contexts are its tabs

	mu       sync.Mutex
	requests []string // guarded by mu: URLs of all requests
	problems []string // guarded by mu: errors and warnings of the console
}

func openTab(t *testing.T) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), chromedp.ExecPath(chromium(t)),
		chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.WindowSize(1200, 1600))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	tb := &tab{ctx: ctx}
	if err := chromedp.Listen(ctx, tb.note); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	return tb
}

// note records events. Violations of the Content-Security-Policy are errors in the log.
func (tb *tab) note(event any) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		tb.requests = append(tb.requests, e.Request.URL)
	case *log.EventEntryAdded:
		if e.Entry.Level == log.EntryLevelError || e.Entry.Level == log.EntryLevelWarning {
			tb.problems = append(tb.problems, e.Entry.Text+" "+e.Entry.URL)
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.ConsoleAPICalledTypeError || e.Type == runtime.ConsoleAPICalledTypeWarning {
			for _, arg := range e.Args {
				tb.problems = append(tb.problems, fmt.Sprintf("console: %s%s", arg.Value, arg.Description)) // objects have only a description
			}
		}
	case *runtime.EventExceptionThrown:
		tb.problems = append(tb.problems, e.ExceptionDetails.Text)
	}
}

// do runs actions in order.
func (tb *tab) do(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	for i, action := range actions {
		if _, err := within(tb, action); err != nil {
			t.Fatalf("step %d in the browser: %v\n%s", i+1, err, strings.Join(tb.told(), "\n"))
		}
	}
}

// get returns the result of an action.
func get[T any](t *testing.T, tb *tab, action chromedp.Action[T]) T {
	t.Helper()
	got, err := within(tb, action)
	if err != nil {
		t.Fatalf("in the browser: %v\n%s", err, strings.Join(tb.told(), "\n"))
	}
	return got
}

func within[T any](tb *tab, action chromedp.Action[T]) (T, error) {
	ctx, cancel := context.WithTimeout(tb.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, action)
}

// told returns the errors and warnings of the console.
func (tb *tab) told() []string {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	return slices.Clone(tb.problems)
}

// elsewhere returns the requests to other hosts, and the number of all requests.
func (tb *tab) elsewhere(host string) (foreign []string, all int) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, request := range tb.requests {
		u, err := url.Parse(request)
		if err != nil || u.Scheme != "data" && u.Host != host {
			foreign = append(foreign, request)
		}
	}
	return foreign, len(tb.requests)
}
