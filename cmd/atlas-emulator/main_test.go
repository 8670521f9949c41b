package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// asProgram makes the test binary behave as the program itself.
const asProgram = "ATLAS_EMULATOR_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), self, args...)
	command.Env = append(os.Environ(), asProgram+"=1")
	return command
}

func TestSignalsEndTheProgram(t *testing.T) {
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		command := program(t, "--ca-file", filepath.Join(t.TempDir(), "ca.pem"))
		stdout, err := command.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.HasPrefix(line, "ATLAS_URL=https://") {
			t.Errorf("first line is %q, %v", line, err)
		}
		if err := command.Process.Signal(signal); err != nil {
			t.Error(err)
		}
		if err := command.Wait(); err != nil {
			t.Errorf("%v: %v", signal, err)
		}
	}
}

func TestFailureExitsWithStatus1(t *testing.T) {
	command := program(t, "--ca-file", t.TempDir(), "--addr", "0.0.0.0:0")
	said, err := command.CombinedOutput()
	if command.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	want := `atlas-emulator: address "0.0.0.0:0": not a loopback address, such as 127.0.0.1:0 or [::1]:0` + "\n"
	if string(said) != want {
		t.Errorf("it said %q, want %q", said, want)
	}
}

// start runs the program and returns its lines, and what stops it.
func start(t *testing.T, args ...string) (lines []string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stdout, stdoutWriter := io.Pipe()
	stderr, stderrWriter := io.Pipe() // written after standard output
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, args, stdoutWriter, stderrWriter)
		_ = stdoutWriter.Close()
		_ = stderrWriter.Close()
		ended <- err
	}()
	first := make([]byte, 1<<16)
	n, err := stdout.Read(first) // run writes all lines at once
	if err != nil {
		t.Fatalf("no output: %v", <-ended)
	}
	notice, err := bufio.NewReader(stderr).ReadString('\n')
	if err != nil || !strings.Contains(notice, "NOT REAL") {
		t.Errorf("standard error: %q, %v", notice, err)
	}
	stop = func() error {
		cancel()
		return <-ended
	}
	return strings.Split(strings.TrimSuffix(string(first[:n]), "\n"), "\n"), stop
}

// parseLines is how a program reads the lines.
func parseLines(t *testing.T, lines []string) (keys []string, values map[string]string) {
	t.Helper()
	values = map[string]string{}
	for _, line := range lines {
		key, value, ok := strings.Cut(line, "=")
		if !ok || value == "" {
			t.Errorf("line %q", line)
		}
		keys = append(keys, key)
		values[key] = value
	}
	return keys, values
}

func TestRun(t *testing.T) {
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	lines, stop := start(t, "--ca-file", caFile, "--orgs", "2")
	keys, values := parseLines(t, lines)
	want := "ATLAS_URL ATLAS_CA_FILE ATLAS_ORG_ID ATLAS_USERAUTHTOKEN ATLAS_JWT ATLAS_ORG_ID_2 ATLAS_USERAUTHTOKEN_2 ATLAS_JWT_2"
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("keys are %s", got)
	}
	if values["ATLAS_CA_FILE"] != caFile {
		t.Errorf("CA file is %s", values["ATLAS_CA_FILE"])
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	defer transport.CloseIdleConnections()
	post := func(path, jwt, body string) (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, values["ATLAS_URL"]+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", "JWT "+jwt)
		request.Header.Set("Content-Type", "application/json")
		response, err := transport.RoundTrip(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	for _, suffix := range []string{"", "_2"} {
		if status, err := post("/ephemeral-token", values["ATLAS_JWT"+suffix], ""); status != http.StatusCreated {
			t.Errorf("create: %d, %v", status, err)
		}
		if status, err := post("/login/", "", `{"userauthtoken": "`+values["ATLAS_USERAUTHTOKEN"+suffix]+`"}`); status != http.StatusOK {
			t.Errorf("login: %d, %v", status, err)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := post("/ephemeral-token", "", ""); err == nil {
		t.Error("still serving")
	}
}

// TestLinesSurviveShellEval has a CA file whose path has characters special to a shell.
func TestLinesSurviveShellEval(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell here")
	}
	dir := filepath.Join(t.TempDir(), `it's $HOME; "a" dir`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Skip(err)
	}
	caFile := filepath.Join(dir, "ca.pem")
	lines, stop := start(t, "--ca-file", caFile)
	defer func() { _ = stop() }()
	script := strings.Join(lines, "\n") + "\nprintf '%s|%s' \"$ATLAS_CA_FILE\" \"$ATLAS_JWT_2\""
	got, err := exec.CommandContext(t.Context(), shell, "-c", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	_, values := parseLines(t, lines)
	if want := caFile + "|" + values["ATLAS_JWT_2"]; string(got) != want {
		t.Errorf("the shell has %s, want %s", got, want)
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, &stdout, &stderr); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"NOT REAL", "--addr", "--ca-file", "--orgs"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("help does not say %s:\n%s", want, stdout.String())
		}
	}
}

func TestRunRefuses(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	dir := t.TempDir()
	caFile := filepath.Join(dir, "ca.pem")
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no CA file":          {nil, "--ca-file: its value is missing"},
		"unknown flag":        {[]string{"--ca-file", caFile, "--x"}, "unknown flag: --x"},
		"argument":            {[]string{"--ca-file", caFile, "x"}, `unexpected argument "x"`},
		"all interfaces":      {[]string{"--ca-file", caFile, "--addr", "0.0.0.0:0"}, "not a loopback address"},
		"port taken":          {[]string{"--ca-file", caFile, "--addr", busy.Addr().String()}, "address already in use"},
		"no orgs":             {[]string{"--ca-file", caFile, "--orgs", "0"}, "--orgs: want 1 or more"},
		"bad lifetime":        {[]string{"--ca-file", caFile, "--jwt-lifetime", "1ms"}, "--jwt-lifetime: want 1s or more"},
		"bad window":          {[]string{"--ca-file", caFile, "--refresh-window", "0s"}, "--refresh-window: want a positive duration"},
		"no such folder":      {[]string{"--ca-file", filepath.Join(dir, "x", "ca.pem")}, "ca.pem: no such file or directory"},
		"CA file is a folder": {[]string{"--ca-file", dir}, filepath.Base(dir) + ": is a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			err := run(t.Context(), test.args, &stdout, &stderr)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v, want one line with %q", err, test.want)
			}
			if stdout.Len() > 0 || stderr.Len() > 0 {
				t.Errorf("it said %s%s", stdout.String(), stderr.String())
			}
		})
	}
	if _, err := os.Stat(caFile); err == nil {
		t.Error("a CA file was written")
	}
	stdout, gone := io.Pipe()
	_ = stdout.Close()
	if err := run(t.Context(), []string{"--ca-file", caFile}, gone, io.Discard); err == nil {
		t.Error("it goes on although it cannot print the settings")
	}
}
