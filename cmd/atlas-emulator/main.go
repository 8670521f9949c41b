// Command atlas-emulator runs a small Atlas on loopback, for trying things out and for tests that
// are not written in Go. Nothing in it is real.
//
// On standard output it prints KEY=value lines, which a shell can eval and any program can parse,
// and then serves until SIGINT or SIGTERM:
//
//	ATLAS_URL=https://127.0.0.1:49152/v1
//	ATLAS_CA_FILE=/tmp/atlas-ca.pem
//	ATLAS_ORG_ID=…
//	ATLAS_USERAUTHTOKEN=…
//	ATLAS_JWT=…
//	ATLAS_ORG_ID_2=…
//	ATLAS_USERAUTHTOKEN_2=…
//	ATLAS_JWT_2=…
//
// It is ready, and the CA file is written, when the first line appears. Values with characters that
// are special to a shell are in single quotes.
//
// The paths below /_emulator on the same port inject faults and show what was asked; package
// atlas/emulator documents them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

const description = `A small Atlas on loopback, for trying things out. It is NOT REAL: its orgs, secrets, tokens and
certificate are made up when it starts and worthless when it ends.

It prints KEY=value lines for a shell to eval or a program to parse, and serves until it is interrupted.
Faults and counters: see /_emulator in the documentation of package atlas/emulator.`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "atlas-emulator:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	config, caFile, err := parse(args, stdout)
	if errors.Is(err, pflag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	em, err := emulator.Start(config)
	if err != nil {
		return err
	}
	defer em.Close()
	if err := os.WriteFile(caFile, em.CAPEM(), 0o644); err != nil { //nolint:gosec // a certificate is public
		return fmt.Errorf("write the CA file: %w", err)
	}
	if _, err := io.WriteString(stdout, variables(em, caFile)); err != nil {
		return fmt.Errorf("print the variables: %w", err)
	}
	fmt.Fprintf(stderr, "atlas-emulator: NOT REAL: an emulated Atlas at %s\n", em.URL())
	<-ctx.Done()
	return nil
}

// parse returns pflag.ErrHelp when the arguments ask for help, which it has then printed.
func parse(args []string, stdout io.Writer) (config emulator.Config, caFile string, err error) {
	set := pflag.NewFlagSet("atlas-emulator", pflag.ContinueOnError)
	set.SortFlags = false
	set.StringVar(&config.Addr, "addr", "127.0.0.1:0", "Loopback address `HOST:PORT` to listen on; port 0 picks a free one.")
	set.StringVar(&caFile, "ca-file", "", "`FILE` to write the certificate to trust to, in PEM. Required.")
	set.IntVar(&config.Orgs, "orgs", 2, "Number `N` of orgs, each with a bot user.")
	set.DurationVar(&config.JWTLifetime, "jwt-lifetime", time.Hour, "Time from a JWT's issue to its exp.")
	set.DurationVar(&config.RefreshWindow, "refresh-window", 7*24*time.Hour, "Time after a login in which its JWT can be refreshed.")
	set.Usage = func() {
		fmt.Fprintf(stdout, "Usage: atlas-emulator --ca-file FILE [flags]\n\n%s\n\nFlags:\n%s", description, set.FlagUsagesWrapped(100))
	}
	err = set.Parse(args)
	switch {
	case err != nil:
	case set.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", set.Arg(0))
	case caFile == "":
		err = errors.New("--ca-file: its value is missing")
	case config.Orgs < 1:
		err = errors.New("--orgs: want 1 or more")
	case config.JWTLifetime < time.Second:
		err = errors.New("--jwt-lifetime: want 1s or more")
	case config.RefreshWindow <= 0:
		err = errors.New("--refresh-window: want a positive duration")
	default:
		caFile, err = filepath.Abs(caFile)
	}
	return config, caFile, err
}

// variables returns the lines to print.
func variables(em *emulator.Emulator, caFile string) string {
	var b strings.Builder
	line := func(key, value string) { fmt.Fprintf(&b, "%s=%s\n", key, quote(value)) }
	line("ATLAS_URL", em.URL())
	line("ATLAS_CA_FILE", caFile)
	for i, org := range em.Orgs() {
		suffix := ""
		if i > 0 {
			suffix = fmt.Sprintf("_%d", i+1)
		}
		line("ATLAS_ORG_ID"+suffix, org.ID)
		line("ATLAS_USERAUTHTOKEN"+suffix, org.UserAuthToken())
		line("ATLAS_JWT"+suffix, org.JWT())
	}
	return b.String()
}

// quote makes value one word to a POSIX shell, and leaves it alone if it is.
func quote(value string) string {
	plain := func(r rune) bool {
		return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:@%+,[]", r)
	}
	if strings.TrimFunc(value, plain) == "" {
		return value
	}
	return "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
