package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ForstaLabs/ephemeral-token-service/internal/client"
)

// command is what a subcommand does.
type command interface {
	// declare says which settings it has.
	declare(flags flags)
	// execute is called once the settings are known. It returns validationErrors if they are wrong.
	execute(ctx context.Context, in *invocation) error
}

// invocation is one call of the program.
type invocation struct {
	root           *cobra.Command
	executing      bool             // a command of ours, not one that cobra adds
	settings       []setting        // of the command, in the order of its help
	invalid        validationErrors // that parsing found; the command adds its own before it stops for them
	otel           variables        // OpenTelemetry's
	notifySocket   string           // where a service manager listens, if one does
	stdout, stderr io.Writer
}

// setting is one flag's value and where it came from.
type setting struct{ flag, value, source string }

// parse reads arguments and environment. What is wrong with them is reported when the invocation runs.
func parse(args, environ []string, stdout, stderr io.Writer) *invocation {
	in := &invocation{stdout: stdout, stderr: stderr, notifySocket: notifySocket(environ), otel: otelVariables(environ)}
	root := in.newRoot(environ)
	in.root = root
	root.SetArgs(args)
	root.InitDefaultHelpFlag() // or Find takes what comes after --help for its value
	selected, args, err := root.Find(args)
	if err != nil || selected == root && len(args) > 0 && cobras(args[0]) {
		if wrong := unknownShell(args); wrong != nil {
			in.invalid = append(in.invalid, wrong)
			root.SetArgs([]string{}) // nil would be the process's own
		}
		return in
	}
	selected.InitDefaultHelpFlag()
	selected.InitDefaultVersionFlag()
	source := map[string]string{}
	in.invalid = setFlags(selected, args, source)
	if selected != root {
		vars := tokendVariables(environ)
		in.invalid = append(in.invalid, vars.setFlags(selected, source)...)
		in.invalid = append(in.invalid, vars.unknown(selected)...)
		in.invalid = append(in.invalid, flatten(checkProxy(environ))...)
	}
	visitSettings(selected, func(f *pflag.Flag) {
		in.settings = append(in.settings, setting{f.Name, f.Value.String(), source[f.Name]})
	})
	// Cobra would stop at the first flag that is wrong. All are set, so it is left with the command, help and version.
	root.SetArgs(strings.Fields(selected.CommandPath())[1:])
	return in
}

// unknownShell reports a call of cobra's completion command that would print its help, for a shell to execute, and succeed.
func unknownShell(args []string) error {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	const ask = "name a shell: bash, zsh, fish or powershell"
	switch {
	case args[0] != "completion":
	case len(args) == 1:
		return errors.New("tokend completion: " + ask)
	case !strings.HasPrefix(args[1], "-") && !slices.Contains(shells, args[1]):
		return fmt.Errorf("tokend completion: there is none for %q: %s", args[1], ask)
	}
	return nil
}

// cobras reports whether cobra adds the command when it runs.
func cobras(command string) bool {
	return command == "help" || command == "completion" || strings.HasPrefix(command, cobra.ShellCompRequestCmd)
}

// newRoot declares every subcommand.
func (in *invocation) newRoot(environ []string) *cobra.Command {
	var names []string
	root := &cobra.Command{
		Use:     "tokend",
		Short:   "An org's Atlas ephemeral user token over gRPC and REST.",
		Version: versionLine(),
		Args:    cobra.ArbitraryArgs, // setFlags refuses them
		RunE: func(*cobra.Command, []string) error {
			if len(in.invalid) > 0 {
				return in.invalid
			}
			return fmt.Errorf("give a command: %s; see tokend --help", strings.Join(names, ", "))
		},
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
	}
	root.SetOut(in.stdout)
	root.SetErr(in.stderr)
	root.SetUsageFunc(usage)
	for _, sub := range []struct {
		name, help string
		command    command
	}{
		{"serve", "Serve gRPC and REST until SIGTERM.", &serveCommand{}},
		{"dev", "Try it: serve with an emulated Atlas in the same process. Nothing in it is real.", &devCommand{}},
		{"config", "Check the settings of serve and show them, without serving.", &configCommand{}},
		{"doctor", "Find out what is wrong with the settings of serve, and with all that they name.", &doctorCommand{}},
		{"healthcheck", "Exit 0 if the tokend on this machine is alive, 1 if not.", &healthcheckCommand{}},
		{"version", "Print the version.", versionCommand{}},
		{"man", "Write the man pages into a directory.", &manCommand{}},
	} {
		c := &cobra.Command{
			Use:   sub.name,
			Short: sub.help,
			RunE: func(c *cobra.Command, _ []string) error {
				in.executing = true
				return sub.command.execute(c.Context(), in)
			},
			ValidArgsFunction: cobra.NoFileCompletions,
			Hidden:            sub.name == "man", // for whoever makes packages
		}
		c.Flags().SortFlags = false
		sub.command.declare(flags{command: c})
		root.AddCommand(c)
		if !c.Hidden {
			names = append(names, sub.name)
		}
	}
	for _, c := range client.Commands(environ) {
		call := c.RunE
		c.RunE = func(c *cobra.Command, args []string) error {
			in.executing = true
			if err := in.check(); err != nil {
				return err
			}
			return call(c, args)
		}
		root.AddCommand(c)
		names = append(names, c.Name())
	}
	return root
}

// usage is what cobra prints, with its long lines broken.
func usage(c *cobra.Command) error {
	var text strings.Builder
	if !c.HasAvailableSubCommands() {
		fmt.Fprintf(&text, "Usage: %s\n", c.UseLine())
	} else {
		fmt.Fprintf(&text, "Usage: %s <command> [flags]\n\nCommands (<command> --help says more):\n", c.CommandPath())
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&text, "  %-12s %s\n", sub.Name(), sub.Short)
			}
		}
	}
	for _, topic := range topics {
		if settings := settingsAbout(c, topic); settings.HasFlags() {
			fmt.Fprintf(&text, "\n%s:\n%s", heading(topic), settings.FlagUsagesWrapped(100))
		}
	}
	_, err := io.WriteString(c.OutOrStdout(), text.String())
	return err
}
