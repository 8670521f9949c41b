package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
)

// Exit statuses. A Go program that crashes exits with 2.
const (
	// Failed: something went wrong that may pass, such as a file that is not there yet or an
	// address in use.
	Failed = 1
	// Misused: the command line or a setting is wrong, and trying again would not help (EX_USAGE of
	// sysexits).
	Misused = 64
)

// usageError is a wrong command line.
type usageError struct{ error }

// ExitStatus returns the exit status of the process.
func (usageError) ExitStatus() int { return Misused }

// FlagError returns pflag's error about a flag as a wrong command line.
func FlagError(cmd *cobra.Command, err error) error {
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		if unknown.GetSpecifiedShortnames() != "" {
			err = fmt.Errorf("unknown shorthand flag: %q", unknown.GetSpecifiedName()) // pflag's text has what follows it, which may be a secret
		}
		err = fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	}
	return Usage(err)
}

// Usage returns err as a wrong command line.
func Usage(err error) error { return usageError{err} }

// Report writes an error of the program, a line for each of several, and returns the exit status.
func Report(err error, w io.Writer) int {
	errs := config.Flatten(err)
	if len(errs) == 0 {
		return 0
	}
	status := Failed
	if len(errs) > 1 {
		fmt.Fprintf(w, "tokend: %d errors:\n", len(errs))
	}
	for _, err := range errs {
		before := "tokend: "
		if len(errs) > 1 {
			before = "  "
		}
		advice := ""
		if _, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrPermission) {
			advice = ": let the user that tokend runs as use the file"
		}
		fmt.Fprintf(w, "%s%v%s\n", before, err, advice)
		if wrong := config.As(err); wrong != nil && !wrong.MayPass {
			status = Misused
		}
		if own, ok := errors.AsType[interface {
			error
			ExitStatus() int
		}](err); ok {
			status = own.ExitStatus()
		}
	}
	return status
}
