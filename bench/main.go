// Command bench measures tokend and its alternatives on this machine. It starts each server as a
// process on loopback, calls it, and stops it, one after another and in several rounds. It writes a
// table, the raw numbers and plots.
//
// It needs Linux, and runs in its own folder: `go run -C bench .`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	effort
	out, profiles string
	before        string // another build of tokend
	only          *regexp.Regexp
	quick         bool
	scaling       bool
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.Rounds, "rounds", 5, "rounds of measurements; the table shows medians")
	flags.DurationVar(&o.Duration, "duration", 2*time.Second, "duration of each measurement")
	flags.DurationVar(&o.WarmUp, "warm-up", 500*time.Millisecond, "warm-up before each measurement")
	flags.IntVar(&o.Connections, "connections", 16, "connections that gRPC callers share; REST callers have their own")
	flags.IntVar(&o.Idle, "idle", 2000, "open connections when measuring the memory of idle ones")
	flags.IntVar(&o.Starts, "starts", 5, "starts of each server per round when measuring the time until it is ready")
	flags.StringVar(&o.out, "out", "results", "folder to write to")
	flags.StringVar(&o.profiles, "profile", "", "folder for CPU profiles of tokend, one per case, which affect the numbers")
	flags.StringVar(&o.before, "before", "", "another build of tokend to compare with")
	flags.BoolVar(&o.quick, "quick", false, "one short round of the main table, for tests; the numbers mean nothing")
	flags.BoolVar(&o.scaling, "scaling", false, "measure the calls to Atlas by callers and replicas instead of the cases")
	only := flags.String("only", "", "measure cases whose name matches this regular expression")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return options{}, fmt.Errorf("-only: %w", err)
	}
	if o.quick {
		o.effort = effort{Rounds: 1, Duration: 200 * time.Millisecond, WarmUp: 50 * time.Millisecond, Connections: 4, Idle: 100, Starts: 1}
	}
	if min(o.Rounds, o.Connections, o.Idle, o.Starts) < 1 || o.Duration <= 0 || o.WarmUp <= 0 {
		return options{}, errors.New("numbers and durations must be above zero")
	}
	return o, nil
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if o.profiles != "" {
		if err := os.MkdirAll(o.profiles, 0o750); err != nil {
			return err
		}
	}
	measured := cases()
	if !o.quick {
		measured = append(measured, variants()...)
	}
	measured = slices.DeleteFunc(measured, func(c testCase) bool { return !o.only.MatchString(c.title()) })
	if len(measured) == 0 {
		return errors.New("-only matches no case")
	}
	if o.before != "" {
		program, err := filepath.Abs(o.before)
		if err != nil {
			return err
		}
		for i, c := range measured {
			measured[i].peers = append([]server{c.tokend.before(program)}, c.peers...)
		}
	}
	r := &results{Machine: thisMachine(), Effort: o.effort}
	l, err := newLab(ctx, o.profiles != "")
	if err != nil {
		return err
	}
	defer l.close()
	if o.scaling {
		s, err := l.scale(ctx, o, stderr)
		if err != nil {
			return err
		}
		return s.write(o.out)
	}
	if r.Cases, err = l.runAll(ctx, measured, o, stderr); err != nil {
		return err
	}
	return r.write(o.out)
}

// runAll measures every case in every round. The order of the servers rotates from round to round.
func (l *lab) runAll(ctx context.Context, all []testCase, o options, progress io.Writer) ([]caseResult, error) {
	found := make([]caseResult, len(all))
	for i, c := range all {
		found[i] = caseResult{Name: c.name, Variant: c.variant, Callers: c.callers, Compared: c.compared.name, compared: c.compared}
		for _, s := range c.servers() {
			found[i].Rows = append(found[i].Rows, rowResult{Server: s.name, Missing: s.missing()})
		}
	}
	for round := range o.Rounds {
		for i, c := range all {
			if err := l.runRound(ctx, c, &found[i], round, o, progress); err != nil {
				return nil, err
			}
		}
	}
	for i := range found {
		found[i].compare()
	}
	return found, nil
}

func (l *lab) runRound(ctx context.Context, c testCase, found *caseResult, round int, o options, progress io.Writer) error {
	servers := c.servers()
	for i := range servers {
		i = (i + round) % len(servers)
		row := &found.Rows[i]
		if row.Missing != "" {
			continue
		}
		profile := ""
		if o.profiles != "" && i == 0 {
			profile = filepath.Join(o.profiles, fileName(c.title())+".pprof")
		}
		s, err := l.measure(ctx, c, servers[i], o.effort, profile)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", c.title(), row.Server, err)
		}
		row.Rounds = append(row.Rounds, s)
		fmt.Fprintf(progress, "%d/%d  %s: %s: %s %s\n", round+1, o.Rounds, c.title(), row.Server, digits(c.compared.of(s)), c.compared.unit)
	}
	return nil
}

// servers returns tokend and its peers.
func (c testCase) servers() []server { return append([]server{c.tokend}, c.peers...) }

// fileName returns a title as a file name.
func fileName(title string) string {
	return strings.Trim(regexp.MustCompile("[^a-z0-9]+").ReplaceAllString(strings.ToLower(title), "-"), "-")
}
