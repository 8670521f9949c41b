package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// TestReport checks the exit status, and that each error has a line.
func TestReport(t *testing.T) {
	t.Parallel()
	missing := &config.Error{Field: "--a-file", Err: errors.New("no such file"), MayPass: true}
	wrong := &config.Error{Field: "--b", Err: errors.New("wrong")}
	for _, test := range []struct {
		err    error
		status int
		text   string
	}{
		{nil, 0, ""},
		{errors.New("failed"), Failed, "tokend: failed\n"},
		{fmt.Errorf("more: %w", missing), Failed, "tokend: more: --a-file: no such file\n"},
		{&fs.PathError{Op: "open", Path: "/a", Err: syscall.EACCES}, Failed, "tokend: open /a: permission denied: let the user that tokend runs as use the file\n"},
		{wrong, Misused, "tokend: --b: wrong\n"},
		{Usage(errors.New("no such flag")), Misused, "tokend: no such flag\n"},
		{errors.Join(missing, errors.Join(wrong, nil)), Misused, "tokend: 2 errors:\n  --a-file: no such file\n  --b: wrong\n"},
	} {
		var text strings.Builder
		if status := Report(test.err, &text); status != test.status || text.String() != test.text {
			t.Errorf("%v: status %d, want %d:\n%s", test.err, status, test.status, &text)
		}
	}
}

// TestEnvironment checks that a flag goes before its variable, and where config says that a value
// is from.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	var set setup.Settings
	cmd := &cobra.Command{Use: "serve", Run: func(*cobra.Command, []string) {}}
	ServeFlags(cmd, &set)
	root := &cobra.Command{Use: "tokend"}
	root.AddCommand(cmd)
	if err := cmd.ParseFlags([]string{"--cache-ttl=3s", "--cors-origin=https://a"}); err != nil {
		t.Fatal(err)
	}
	err := Environment(cmd, []string{
		"TOKEND_CACHE_TTL=9s", "TOKEND_ATLAS_TIMEOUT=7s", "TOKEND_CORS_ORIGIN=https://b,https://c", "TOKEND_PLAINTEXT=perhaps", "TOKEND_X=", "TOKENDX=1", "TOKEND_PORT=tcp://10.0.0.1:1",
	}, false)
	if got := config.Flatten(err); len(got) != 2 || config.As(got[0]).Field != "TOKEND_PLAINTEXT" || config.As(got[1]).Field != "TOKEND_X" {
		t.Errorf("errors: %v", err)
	}
	if set.CacheTTL != 3*time.Second || set.AtlasTimeout != 7*time.Second || len(set.CORSOrigins) != 1 {
		t.Errorf("settings: %+v", set)
	}
	var table strings.Builder
	if err := Show(&table, Settings(cmd, "docs")); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(table.String()), " ")
	for _, want := range []string{"--cache-ttl=3s # flag", "--atlas-timeout=7s # TOKEND_ATLAS_TIMEOUT", "--cors-origin=https://a # flag", "--drain-delay=5s # default"} {
		if !strings.Contains(text, want) {
			t.Errorf("without %q:\n%s", want, &table)
		}
	}
	if strings.Contains(text, "--docs") {
		t.Error("a flag that is to be left out is there")
	}
}
