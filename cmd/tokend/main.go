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
	"strings"
	"syscall"

	"github.com/ForstaLabs/ephemeral-token-service/server"
)

func main() {
	// net/http prints what a broken server or proxy sends unasked, which may be a token, through this logger and offers
	// no other way out. Nothing else uses it.
	log.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal drains; a second one must end a process that hangs in its drain.
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	stop()
	os.Exit(exitCode(err, os.Stderr))
}

// exitCode reports err and chooses the process's status: 2 for a mistake in what the user asked for, 1 for anything else
// that went wrong.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	var mistakes mistakes
	if errors.As(err, &mistakes) {
		mistakes.print(stderr)
		return 2
	}
	for _, line := range flatten(err) {
		var unbound *server.ListenError
		if errors.As(line, &unbound) {
			line = fmt.Errorf("--%s-addr: cannot listen on %s: %w", strings.ToLower(unbound.Listener), unbound.Addr, unbound.Err)
		}
		fmt.Fprintf(stderr, "tokend: %v\n", line)
	}
	return 1
}

// run is the whole program, but for the process around it.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	invocation, err := parse(args, environ, stdout, stderr)
	if err != nil || invocation == nil {
		return err
	}
	return invocation.run(ctx)
}
