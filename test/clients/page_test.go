package clients_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestPage runs the programs of docs/clients.md with a good JWT and with one that Atlas refuses.
func TestPage(t *testing.T) {
	s := testutil.Start(t, testutil.Plaintext)
	p := page{
		path: testutil.Path("docs/clients.md"),
		jwt:  s.Atlas.Org(0).JWT(),
		environ: append(os.Environ(),
			"TOKEND_ADDR="+s.GRPCAddr().String(), "TOKEND_URL=http://"+s.HTTPAddr().String()),
	}
	for _, tt := range []struct {
		name string
		test func(*testing.T, page)
	}{
		{"Go", testGo}, {"Python", testPython}, {"Node", testNode}, {"TypeScript", testTypeScript}, {"PHP", testPHP},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, p)
		})
	}
}

func testGo(t *testing.T, p page) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "page")
	source := filepath.Join(dir, p.write(t, dir, "Go", "go", "main.go"))
	p.command(t, testutil.Path("."), "go", "build", "-o", binary, source) // in the module, so that its imports resolve
	p.check(t, dir, binary)
}

func testPython(t *testing.T, p page) {
	testutil.NeedTool(t, "protoc")
	testutil.NeedTool(t, "grpc_python_plugin")
	const python = "/usr/bin/python3" // Debian's, which has its packages
	if err := exec.CommandContext(t.Context(), python, "-c", "import grpc").Run(); err != nil {
		testutil.SkipWithout(t, "python3-grpcio")
	}
	dir := p.checkout(t)
	p.command(t, dir, "sh", "-e", p.write(t, dir, "Python", "sh", "generate.sh"))
	p.check(t, dir, python, p.write(t, dir, "Python", "python", "call.py"))
}

func testNode(t *testing.T, p page) {
	dir := p.installNode(t)
	p.check(t, dir, "node", p.write(t, dir, "Node", "js", "call.js"))
}

func testTypeScript(t *testing.T, p page) {
	dir := p.installNode(t)
	p.command(t, dir, "sh", "-e", p.write(t, dir, "TypeScript", "sh", "generate.sh"))
	p.command(t, dir, "npx", "tsc", "--strict", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler",
		"--types", "node", "--outDir", "out", p.write(t, dir, "TypeScript", "ts", "call.ts"))
	if err := os.Rename(filepath.Join(dir, "out", "call.js"), filepath.Join(dir, "call.mjs")); err != nil {
		t.Fatal(err)
	}
	p.check(t, dir, "node", "call.mjs")
}

func testPHP(t *testing.T, p page) {
	php := testutil.NeedTool(t, "php")
	if out, err := exec.CommandContext(t.Context(), php, "-m").Output(); err != nil || !strings.Contains(string(out), "\ncurl\n") {
		testutil.SkipWithout(t, "php-curl")
	}
	dir := t.TempDir()
	p.check(t, dir, php, p.write(t, dir, "PHP", "php", "call.php"))
}

// page is docs/clients.md and its programs' environment.
type page struct {
	path    string
	jwt     string
	environ []string
}

// write writes the first code block in a language below a heading to a file.
func (p page) write(t *testing.T, dir, heading, language, name string) string {
	t.Helper()
	text, err := os.ReadFile(p.path)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## "+heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	block := regexp.MustCompile("(?s)\n```" + language + "\n(.*?)\n```\n").FindStringSubmatch(section)
	if block == nil {
		t.Fatalf("%s has no %s below %q", p.path, language, heading)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(block[1]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// checkout returns a copy of the files that the page's commands read.
func (p page) checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"proto", "third_party/googleapis", "gen/openapi"} {
		if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(testutil.Path(name))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// installNode returns a checkout with the npm packages of the lock file.
func (p page) installNode(t *testing.T) string {
	t.Helper()
	testutil.SkipUnlessLong(t) // it downloads packages
	testutil.NeedTool(t, "node")
	testutil.NeedTool(t, "npm")
	dir := p.checkout(t)
	if err := os.CopyFS(dir, os.DirFS("testdata/page")); err != nil {
		t.Fatal(err)
	}
	p.command(t, dir, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	return dir
}

func (p page) command(t *testing.T, dir string, command ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// check runs a program with both JWTs. It prints no token.
func (p page) check(t *testing.T, dir string, command ...string) {
	t.Helper()
	run := func(jwt string) string {
		var stderr strings.Builder
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Dir, cmd.Env, cmd.Stderr = dir, slices.Concat(p.environ, []string{"ATLAS_JWT=" + jwt}), &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, &stderr)
		}
		return strings.TrimSpace(string(out))
	}
	if token := run(p.jwt); !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(token) {
		t.Errorf("with a JWT it prints %d bytes that are not a token", len(token))
	}
	if reason := run("a.b.c"); strings.TrimPrefix(reason, "ERROR_REASON_") != "CREDENTIAL_REJECTED" {
		t.Errorf("with a refused JWT it prints %q", reason)
	}
}
