// Command tokend is the ephemeral-token service as a program: flags, wiring and subcommands, and nothing else.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/client"
)

func main() {
	// net/http prints what a broken server or proxy sends unasked, which may be a token, through this logger and offers
	// no other way out. Nothing else uses it.
	log.SetOutput(io.Discard)
	cobra.EnableCommandSorting = false // the help begins with what matters
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal drains; a second one must end a process that hangs in its drain.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	time.AfterFunc(time.Second, func() { os.Exit(1) }) // standard error may be a pipe whose reader has stopped
	os.Exit(exitCode(err, os.Stderr))
}

// exitCode reports err and chooses the process's status: 2 if what the user asked for is not valid, 1 for anything else
// that went wrong.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	var invalid validationErrors
	if errors.As(err, &invalid) {
		invalid.print(stderr)
		return 2
	}
	for _, line := range flatten(err) {
		fmt.Fprintf(stderr, "tokend: %v\n", nameFlag(line))
	}
	var failed *client.Error // tokend create or delete
	if errors.As(err, &failed) {
		return failed.ExitStatus()
	}
	return 1
}

// run is the whole program, but for the process around it.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	in := parse(args, environ, stdout, stderr)
	err := in.root.ExecuteContext(ctx)
	var invalid validationErrors
	if err != nil && !in.executing && !errors.As(err, &invalid) {
		return validationErrors{err}
	}
	return err
}
