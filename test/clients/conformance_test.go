package clients

import (
	"crypto/tls"
	"encoding/xml"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"google.golang.org/grpc"

	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestHTTP2Conformance runs h2spec's 145 cases against both listeners, REST with and without TLS.
// grpc-go and net/http fail some of them, so ours may only fail cases that the bare library fails.
func TestHTTP2Conformance(t *testing.T) {
	testutil.SkipUnlessLong(t)
	t.Parallel()
	h2spec := h2specBinary(t)
	s := testutil.Start(t, testutil.ServerTLS)
	plain := testutil.Start(t, testutil.Plaintext)
	pair, err := tls.LoadX509KeyPair(s.Certs.CertFile, s.Certs.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		ours  net.Addr
		bare  func(t *testing.T) net.Addr
		flags []string
	}{
		{"gRPC", plain.GRPCAddr(), bareGRPC, nil},
		{"REST", s.HTTPAddr(), func(t *testing.T) net.Addr { return bareHTTP(t, &pair) }, []string{"--tls", "--insecure"}},
		{"REST without TLS", plain.HTTPAddr(), func(t *testing.T) net.Addr { return bareHTTP(t, nil) }, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var (
				wg         sync.WaitGroup
				cases      int
				bare, ours map[h2case]bool
			)
			wg.Go(func() { cases, bare = runH2spec(t, h2spec, test.bare(t), test.flags) })
			wg.Go(func() { _, ours = runH2spec(t, h2spec, test.ours, test.flags) })
			wg.Wait()
			t.Logf("of %d cases the library passes %d, and we pass %d", cases, cases-len(bare), cases-len(ours))
			for c := range ours {
				if bare[c] {
					continue
				}
				// Some cases have a time limit, so retry on a busy machine.
				fails := true
				for try := 0; fails && try < 3; try++ {
					_, again := runH2spec(t, h2spec, test.ours, append(slices.Clone(test.flags), c.section))
					fails = again[c]
				}
				if fails {
					t.Errorf("fails four times, but not with the library alone: %s: %s", c.section, c.name)
				}
			}
			if cases < 140 || len(bare) > 40 {
				t.Errorf("of %d cases the library fails %d: too few cases, or too many failures", cases, len(bare))
			}
		})
	}
}

var buildH2spec = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "h2spec")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "h2spec")
	cmd := exec.Command("go", "build", "-modfile=tools/go.mod", "-o", path, "github.com/summerwind/h2spec/cmd/h2spec")
	cmd.Dir = testutil.Path(".")
	return path, cmd.Run()
})

func h2specBinary(t *testing.T) string {
	t.Helper()
	path, err := buildH2spec()
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(path)) })
	if err != nil {
		t.Fatalf("h2spec cannot be built: %v", err)
	}
	return path
}

// h2case is a case of h2spec.
type h2case struct{ section, name string }

// runH2spec returns the number of cases, and those that fail.
func runH2spec(t *testing.T, h2spec string, at net.Addr, args []string) (cases int, failed map[h2case]bool) {
	t.Helper()
	host, port, err := net.SplitHostPort(at.String())
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "report.xml")
	cmd := exec.CommandContext(t.Context(), h2spec, append(slices.Clone(args), "--host", host, "--port", port, "--junit-report", report)...)
	_ = cmd.Run() // it fails if a case does
	data, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var suites struct {
		Suites []struct {
			Cases []struct {
				Package string  `xml:"package,attr"`
				Name    string  `xml:"classname,attr"`
				Failure *string `xml:"failure"`
				Error   *string `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(data, &suites); err != nil {
		t.Fatal(err)
	}
	failed = map[h2case]bool{}
	for _, suite := range suites.Suites {
		for _, c := range suite.Cases {
			cases++
			if c.Failure != nil || c.Error != nil && !closedByReset(*c.Error) {
				failed[h2case{c.Package, c.Name}] = true
			}
		}
	}
	return cases, failed
}

// closedByReset reports whether a case that expects a closed connection failed because of a reset.
// The kernel sends one if a server closes with bytes unread, and h2spec does not expect it.
func closedByReset(report string) bool {
	expected, actual, _ := strings.Cut(report, "Error: ")
	return strings.Contains(expected, "Connection closed") &&
		(strings.HasSuffix(actual, syscall.ECONNRESET.Error()) || strings.HasSuffix(actual, syscall.EPIPE.Error()))
}

// bareGRPC serves the service with grpc-go alone, and our stream limit, without which h2spec omits
// case 5.1.2.
func bareGRPC(t *testing.T) net.Addr {
	t.Helper()
	listener := listenLocal(t)
	srv := grpc.NewServer(grpc.MaxConcurrentStreams(100))
	ephemeraltokenv1.RegisterEphemeralTokenServiceServer(srv, ephemeraltokenv1.UnimplementedEphemeralTokenServiceServer{})
	go func() { _ = srv.Serve(listener) }()
	t.Cleanup(srv.Stop)
	return listener.Addr()
}

// bareHTTP is a net/http server, without TLS if pair is nil.
func bareHTTP(t *testing.T, pair *tls.Certificate) net.Addr {
	t.Helper()
	listener := listenLocal(t)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "{}")
		}),
		Protocols: new(http.Protocols),
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	srv.Protocols.SetHTTP1(true) // as for REST
	if pair == nil {
		srv.Protocols.SetUnencryptedHTTP2(true)
		go func() { _ = srv.Serve(listener) }()
	} else {
		srv.Protocols.SetHTTP2(true)
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*pair}}
		go func() { _ = srv.ServeTLS(listener, "", "") }()
	}
	t.Cleanup(func() { _ = srv.Close() })
	return listener.Addr()
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}
