package main

import (
	"context"
	"io"

	"github.com/ForstaLabs/ephemeral-token-service/internal/cli"
)

// Main is the program.
var Main = main

// Execute runs the program in this process, and returns its exit status.
func Execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	return cli.Report(run(ctx, args, environ, stdout, stderr), stderr)
}
