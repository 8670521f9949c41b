package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// cli is every subcommand. Each setting is a flag and an environment variable: --atlas-url is TOKEND_ATLAS_URL.
type cli struct {
	Serve       serveCommand       `cmd:"" help:"Serve gRPC and REST until SIGTERM."`
	Dev         devCommand         `cmd:"" help:"Try it: serve with an emulated Atlas in the same process. Nothing in it is real."`
	Config      configCommand      `cmd:"" help:"Check the settings of serve and show them, without serving."`
	Healthcheck healthcheckCommand `cmd:"" help:"Exit 0 if the tokend on this machine is alive, 1 if not."`
	Version     versionCommand     `cmd:"" help:"Print the version."`
}

// command is what each subcommand does once its settings are known. It returns mistakes if those are wrong.
type command interface {
	execute(ctx context.Context, in *invocation) error
}

// invocation is one parsed call of the program.
type invocation struct {
	command        command
	settings       []setting // of the command, in the order of its help
	mistakes       mistakes  // that parsing found; the command adds its own before it stops for them
	stdout, stderr io.Writer
}

// setting is one flag's value and where it came from.
type setting struct{ flag, value, source string }

func (in *invocation) run(ctx context.Context) error { return in.command.execute(ctx, in) }

// check adds a command's own mistakes to those of parsing and returns them all, each once, nil if there are none.
func (in *invocation) check(own ...error) error {
	for _, err := range flatten(own...) {
		if !slices.ContainsFunc(in.mistakes, func(known error) bool { return known.Error() == err.Error() }) {
			in.mistakes = append(in.mistakes, err)
		}
	}
	if len(in.mistakes) > 0 {
		return in.mistakes
	}
	return nil
}

// mistakes is everything wrong with what the user asked for, all of it, so that it is mended in one go.
type mistakes []error

func (m mistakes) Error() string { return errors.Join(m...).Error() }

func (m mistakes) print(w io.Writer) {
	if len(m) == 1 {
		fmt.Fprintf(w, "tokend: %v\n", m[0])
		return
	}
	fmt.Fprintf(w, "tokend: %d mistakes, nothing was started:\n", len(m))
	for _, mistake := range m {
		fmt.Fprintf(w, "  %v\n", mistake)
	}
}

// parse reads arguments and environment. It returns nil, nil if it was asked for help and gave it.
func parse(args, environ []string, stdout, stderr io.Writer) (*invocation, error) {
	var (
		root   cli
		found  mistakes
		helped bool
		env    = tokendVariables(environ)
	)
	parser, err := kong.New(&root,
		kong.Name("tokend"),
		kong.Description("An org's Atlas ephemeral user token over gRPC and REST."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.WithHyphenPrefixedParameters(true), // --drain-timeout -5s is for us to refuse
		kong.ValueFormatter(valueHelp),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }),
		kong.Resolvers(env.resolver(&found)),
	)
	if err != nil {
		return nil, err
	}
	args = dropBadFlags(parser.Model, args, &found)
	parsed, err := parser.Parse(args)
	switch {
	case helped:
		return nil, nil
	case err != nil:
		found = append(found, fmt.Errorf("%w; see tokend --help", err))
		return nil, found
	}
	flags := parsed.Selected().AllFlags(true)
	found = append(found, env.unknown(parser.Model, parsed.Selected())...)
	found = append(found, flatten(checkProxy(environ))...)
	selected, ok := parsed.Selected().Target.Addr().Interface().(command)
	if !ok {
		return nil, fmt.Errorf("subcommand %s does nothing", parsed.Command())
	}
	return &invocation{
		command:  selected,
		settings: settings(parsed, flags),
		mistakes: found,
		stdout:   stdout,
		stderr:   stderr,
	}, nil
}

// dropBadFlags takes flags that the parser would stop at out of args, so that it goes on to what else is wrong: those that
// no subcommand has, and those without a proper value.
func dropBadFlags(app *kong.Application, args []string, found *mistakes) []string {
	known := knownFlags(app)
	var kept []string
	for i := 0; i < len(args); i++ {
		name, isFlag := strings.CutPrefix(args[i], "--")
		name, value, hasValue := strings.Cut(name, "=")
		if !isFlag || name == "" || name == "help" {
			kept = append(kept, args[i])
			continue
		}
		flag := known[name]
		isLast := i+1 == len(args)
		switch {
		case flag == nil:
			*found = append(*found, fmt.Errorf("--%s: there is no such flag; see tokend --help", name))
			if !hasValue && !isLast && !strings.HasPrefix(args[i+1], "-") && i > 0 {
				i++ // its value
			}
		case flag.IsBool():
			if hasValue && !isBool(value) {
				*found = append(*found, fmt.Errorf("--%s: %q is neither true nor false", name, value))
				continue
			}
			kept = append(kept, args[i])
		case hasValue:
			kept = append(kept, args[i])
		case isLast || isFlagOf(known, args[i+1]):
			*found = append(*found, fmt.Errorf("--%s: its value is missing", name))
		default:
			kept = append(kept, args[i], args[i+1])
			i++
		}
	}
	return kept
}

func isBool(value string) bool {
	_, err := strconv.ParseBool(value)
	return err == nil
}

// knownFlags has the flags of all subcommands, by name.
func knownFlags(app *kong.Application) map[string]*kong.Flag {
	known := map[string]*kong.Flag{}
	for _, node := range app.Leaves(false) {
		for _, group := range node.AllFlags(false) {
			for _, flag := range group {
				known[flag.Name] = flag
			}
		}
	}
	return known
}

func isFlagOf(known map[string]*kong.Flag, arg string) bool {
	name, isFlag := strings.CutPrefix(arg, "--")
	name, _, _ = strings.Cut(name, "=")
	return isFlag && known[name] != nil
}

// settings lists what the command goes by.
func settings(parsed *kong.Context, groups [][]*kong.Flag) []setting {
	source := map[string]string{}
	for _, element := range parsed.Path {
		if element.Flag != nil {
			source[element.Flag.Name] = "flag"
			if element.Resolved {
				source[element.Flag.Name] = envName(element.Flag.Name)
			}
		}
	}
	var all []setting
	for _, group := range groups {
		for _, flag := range group {
			if flag.Name == "help" {
				continue
			}
			from := source[flag.Name]
			if from == "" {
				from = "default"
			}
			all = append(all, setting{flag.Name, fmt.Sprint(parsed.FlagValue(flag)), from})
		}
	}
	return all
}

const envPrefix = "TOKEND_"

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// valueHelp is the help of a flag, with its default and its environment variable.
func valueHelp(v *kong.Value) string {
	if v.Flag == nil || v.Flag.Name == "help" {
		return v.Help
	}
	help := v.Help
	if v.HasDefault && v.Default != "" {
		help += " Default: " + v.Default + "."
	}
	return help + " ($" + envName(v.Flag.Name) + ")"
}

// variables are the environment's TOKEND_ variables.
type variables map[string]string

func tokendVariables(environ []string) variables {
	vars := variables{}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && strings.HasPrefix(name, envPrefix) {
			vars[name] = value
		}
	}
	return vars
}

// resolver gives the parser the environment's value of a flag.
func (vars variables) resolver(found *mistakes) kong.Resolver {
	return kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		value, ok := vars[envName(flag.Name)]
		if !ok {
			return nil, nil
		}
		if flag.IsBool() && !isBool(value) {
			*found = append(*found, fmt.Errorf("%s: %q is neither true nor false", envName(flag.Name), value))
			return nil, nil
		}
		return value, nil
	})
}

// unknown reports variables that the selected subcommand would ignore: a misspelt setting must not pass for a set one.
// A variable that belongs to another subcommand's setting is fine for the small ones that share serve's environment.
func (vars variables) unknown(app *kong.Application, selected *kong.Node) []error {
	used, known := map[string]bool{}, map[string]bool{}
	for _, node := range app.Leaves(false) {
		for _, group := range node.AllFlags(false) {
			for _, flag := range group {
				known[envName(flag.Name)] = true
				used[envName(flag.Name)] = used[envName(flag.Name)] || node == selected
			}
		}
	}
	var found []error
	for name := range vars {
		switch {
		case !known[name]:
			found = append(found, fmt.Errorf("%s: there is no such setting; see tokend serve --help", name))
		case !used[name] && selected.Name != "healthcheck" && selected.Name != "version":
			found = append(found, fmt.Errorf("%s: tokend %s would ignore it; unset it", name, selected.Name))
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Error() < found[j].Error() })
	return found
}

// checkProxy reports a proxy setting that net/http would silently ignore, calling Atlas around the proxy. The value may
// have a password in it, so it is not repeated.
func checkProxy(environ []string) error {
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.EqualFold(name, "HTTPS_PROXY") || value == "" {
			continue
		}
		if !strings.Contains(value, "://") {
			value = "http://" + value // net/http takes host:port as well
		}
		if proxy, err := url.Parse(value); err != nil || proxy.Host == "" {
			return fmt.Errorf("%s is not a proxy's URL: give one such as http://proxy.internal:3128, or unset it", strings.ToUpper(name))
		}
	}
	return nil
}
