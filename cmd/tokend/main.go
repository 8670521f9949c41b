// Command tokend is the ephemeral-token service.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
	"github.com/ForstaLabs/ephemeral-token-service/internal/client"
	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// Release builds set these: -ldflags "-X main.version=v1.2.3 -X main.commit=… -X main.date=…".
var version, commit, date string

func build() setup.Build { return setup.Build{Version: version, Commit: commit, Date: date} }

func main() {
	// net/http logs unsolicited data of a broken server or proxy, which may be a token, through
	// this logger, and has no other way to turn that off. Nothing else uses it.
	log.SetOutput(io.Discard)
	cobra.EnableCommandSorting = false // the help begins with what matters
	limitMemory()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the first signal drains, and a second one ends a process that hangs
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	time.AfterFunc(time.Second, func() { os.Exit(cli.Failed) }) // standard error may be a pipe whose reader has stopped
	os.Exit(cli.Report(err, os.Stderr))
}

// limitMemory sets GOMEMLIMIT and GOGC if the operator has not. A few megabytes live in the heap:
// at Go's default of 100 it would be collected tens of times a second under load. Resident under
// load are 30 MB at 100, 34 at 200, 38 at 280 and 44 at 400.
func limitMemory() {
	_, _ = memlimit.Set(memlimit.WithRatio(0.9), memlimit.WithLogger(slog.New(slog.DiscardHandler))) // fails where there is no limit
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}

// run is the program without the process around it.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	started := false // a command
	root := newRoot(environ)
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetOut(stdout)
	root.SetErr(stderr)
	addCompletion(root)
	root.SetArgs(append([]string{}, args...)) // nil would be the process's own
	err := root.ExecuteContext(ctx)
	if err != nil && !started {
		return cli.Usage(err)
	}
	return err
}

// newRoot returns the program with all its commands.
func newRoot(environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:     "tokend",
		Short:   "An org's Atlas ephemeral user token over gRPC and REST.",
		Version: build().String(),
		RunE: func(*cobra.Command, []string) error {
			return cli.Usage(errors.New("a command is missing; see tokend --help"))
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(cli.FlagError)
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { // pflag's --plaintext[=true|false] says little
		usage := strings.ReplaceAll(c.UsageString(), "[=true|false]", strings.Repeat(" ", len("[=true|false]")))
		fmt.Fprint(c.OutOrStdout(), cmp.Or(c.Long, c.Short), "\n\n", usage)
	})
	root.AddCommand(
		serveCommand(environ), devCommand(environ), configCommand(environ), doctorCommand(environ),
		healthcheckCommand(environ), versionCommand(environ),
	)
	root.AddCommand(client.Commands(config.Lookup(environ, "ATLAS_JWT"))...)
	for _, c := range root.Commands() {
		c.Args, c.ValidArgsFunction = cobra.NoArgs, cobra.NoFileCompletions
		c.Flags().SortFlags = false
	}
	return root
}

// addCompletion adds cobra's completion command. Without a function of its own it would print its
// help for an unknown shell; with one, cobra refuses that.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"}) // it exists
	completion.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
}
