package main

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const envPrefix = "TOKEND_"

func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// variables are those of the environment that begin with TOKEND_, or with OTEL_.
type variables map[string]string

func tokendVariables(environ []string) variables {
	vars := variables{}
	for _, entry := range environ {
		name, value, ok := strings.Cut(entry, "=")
		if ok && strings.HasPrefix(name, envPrefix) && !serviceLink.MatchString(entry) {
			vars[name] = value
		}
	}
	return vars
}

// serviceLink is what Kubernetes puts into the environment of each pod for a Service named tokend, or tokend-something.
// No setting has such a name and such a value.
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

// setFlags sets what has no source yet, and notes the variable it is from.
func (vars variables) setFlags(c *cobra.Command, source map[string]string) []error {
	var errs []error
	visitSettings(c, func(f *pflag.Flag) {
		name := envName(f.Name)
		value, ok := vars[name]
		switch {
		case source[f.Name] != "":
		case !ok:
			source[f.Name] = "default"
		default:
			source[f.Name] = name
			if err := f.Value.Set(value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %q %w", name, value, err))
			}
		}
	})
	return errs
}

// unknown reports variables that the selected subcommand would ignore: a misspelt setting must not pass for a set one.
// A variable that belongs to another subcommand's setting is fine for the small ones that share serve's environment, or that print
// the same in any.
func (vars variables) unknown(selected *cobra.Command) []error {
	used, known := map[string]bool{}, map[string]bool{}
	for _, c := range selected.Root().Commands() {
		visitSettings(c, func(f *pflag.Flag) {
			name := envName(f.Name)
			known[name] = true
			used[name] = used[name] || c == selected
		})
	}
	shares := slices.Contains([]string{"healthcheck", "version", "man", "create", "delete"}, selected.Name())
	page := selected
	if serve, _, err := selected.Root().Find([]string{"serve"}); err == nil && shares {
		page = serve
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		switch {
		case !known[name]:
			errs = append(errs, fmt.Errorf("%s: there is no such setting%s; see %s --help", name, didYouMean("", nearestVariable(name, page)), page.CommandPath()))
		case !used[name] && !shares:
			errs = append(errs, fmt.Errorf("%s: tokend %s would ignore it; unset it", name, selected.Name()))
		}
	}
	return errs
}

// nearestVariable finds the command's variable that has nearly that name.
func nearestVariable(name string, c *cobra.Command) string {
	near, _ := nearest(strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, envPrefix), "_", "-")), c)
	if near == "" {
		return ""
	}
	return envName(strings.TrimPrefix(near, "--"))
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

// otelPrefix is that of the variables that all programs with OpenTelemetry share. A name that tokend does not know may be for others.
const otelPrefix = "OTEL_"

// otelVariables are those that have a value: to OpenTelemetry an empty one is none.
func otelVariables(environ []string) variables {
	vars := variables{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if value = strings.TrimSpace(value); strings.HasPrefix(name, otelPrefix) && value != "" {
			vars[name] = value
		}
	}
	return vars
}

// notifySocket is where systemd wants to hear from services of Type=notify.
func notifySocket(environ []string) string {
	for _, entry := range environ {
		if path, ok := strings.CutPrefix(entry, "NOTIFY_SOCKET="); ok {
			return path
		}
	}
	return ""
}
