package cli

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/status"
)

const envPrefix = "TOKEND_"

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// serviceLink matches what Kubernetes puts into the environment of each pod for a Service named
// tokend, or tokend-something. No setting has such a name and such a value.
// https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
var serviceLink = func() *regexp.Regexp {
	const ip, port = `([0-9]+(\.[0-9]+){3}|[0-9a-f]*:[0-9a-f]*:[0-9a-f:.]*)`, `[0-9]+`
	return regexp.MustCompile(`^TOKEND(_[A-Z0-9_]+)?_(` + strings.Join([]string{
		`SERVICE_HOST=` + ip,
		`SERVICE_PORT(_[A-Z0-9_]+)?=` + port,
		`PORT(_[0-9]+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://\S+:` + port,
		`PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO=(tcp|udp|sctp)`,
		`PORT_[0-9]+_(TCP|UDP|SCTP)_PORT=` + port,
		`PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR=` + ip,
	}, "|") + `)$`)
}()

// source is the annotation of a flag that says which variable its value is from.
const source = "tokend_source"

// Environment sets the command's flags that are not on the command line from their variables. It
// reports malformed values, variables of no setting, which are misspelt, and variables of other
// commands, unless shared says that the command runs in the environment of serve.
func Environment(cmd *cobra.Command, environ []string, shared bool) error {
	var errs []error
	wrong := func(name string, err error) { errs = append(errs, &config.Error{Field: name, Err: err}) }
	others := map[string]bool{}
	for _, c := range cmd.Root().Commands() {
		c.Flags().VisitAll(func(f *pflag.Flag) { others[envName(f.Name)] = true })
	}
	flags := map[string]*pflag.Flag{}
	visitSettings(cmd, func(f *pflag.Flag) { flags[envName(f.Name)] = f })
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasPrefix(name, envPrefix) || serviceLink.MatchString(entry) {
			continue
		}
		switch f := flags[name]; {
		case f == nil && !others[name]:
			wrong(name, fmt.Errorf("there is no such setting; see %s --help", cmd.CommandPath()))
		case f == nil && !shared:
			wrong(name, fmt.Errorf("%s would ignore it; unset it", cmd.CommandPath()))
		case f == nil || f.Changed:
		default:
			if err := f.Value.Set(value); err != nil {
				wrong(name, fmt.Errorf("%q: %w", value, err))
			}
			f.Annotations = map[string][]string{source: {name}}
		}
	}
	return errors.Join(errs...)
}

// visitSettings leaves out cobra's own flags.
func visitSettings(cmd *cobra.Command, visit func(*pflag.Flag)) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Annotations[cobra.FlagSetByCobraAnnotation] == nil {
			visit(f)
		}
	})
}

// Settings returns the settings of a command except some, with the source of each value.
func Settings(cmd *cobra.Command, except ...string) []status.Setting {
	var settings []status.Setting
	visitSettings(cmd, func(f *pflag.Flag) {
		s := status.Setting{Name: "--" + f.Name, Value: f.Value.String(), Source: "default"}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			s.Value = strings.Join(list.GetSlice(), ",")
		}
		switch {
		case f.Annotations[source] != nil:
			s.Source = f.Annotations[source][0]
		case f.Changed:
			s.Source = "flag"
		}
		if !slices.Contains(except, f.Name) {
			settings = append(settings, s)
		}
	})
	return settings
}

// Show writes settings, a line each.
func Show(w io.Writer, settings []status.Setting) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range settings {
		fmt.Fprintf(table, "%s=%s\t# %s\n", s.Name, s.Value, s.Source)
	}
	return table.Flush()
}
