package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flags declares the settings of a command, each a flag and an environment variable: --atlas-url is TOKEND_ATLAS_URL.
type flags struct {
	command *cobra.Command
	topic   string // under which the help has them
}

// The topics of the help, in its order. What has none comes last.
const (
	aboutListeners   = "Listeners"
	aboutTLS         = "TLS"
	aboutAtlas       = "Atlas"
	aboutCallers     = "Who may call"
	aboutBrowsers    = "Browsers"
	aboutRemembering = "Remembering"
	aboutLimits      = "Limits"
	aboutStopping    = "Stopping"
	aboutLogging     = "Logging"
)

var topics = []string{aboutListeners, aboutTLS, aboutAtlas, aboutCallers, aboutBrowsers, aboutRemembering, aboutLimits, aboutStopping, aboutLogging, ""}

// topicKey is the annotation of a flag that has its topic.
const topicKey = "tokend_topic"

// about declares settings under a topic.
func (f flags) about(topic string) flags {
	f.topic = topic
	return f
}

// value is a flag's.
type value struct {
	text        string // as it was given
	placeholder string // in the help
	separator   string // between what it is given at each time; "" if only the last counts
	set         func(text string) error
}

func (v *value) String() string { return v.text }
func (v *value) Type() string   { return v.placeholder }

func (v *value) Set(text string) error {
	if v.separator != "" && v.text != "" {
		text = v.text + v.separator + text
	}
	if err := v.set(text); err != nil {
		return err
	}
	v.text = text
	return nil
}

func (f flags) text(p *string, name, initial, placeholder, help string) {
	f.add(name, initial, placeholder, help, cobra.NoFileCompletions, func(text string) error {
		*p = text
		return nil
	})
}

func (f flags) file(p *string, name, help string) {
	f.text(p, name, "", "FILE", help)
}

func (f flags) oneOf(p *string, name, initial, placeholder, help string, choices ...string) {
	f.add(name, initial, placeholder, help, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp), func(text string) error {
		if !slices.Contains(choices, text) {
			return fmt.Errorf("must be one of %s", strings.Join(choices, ", "))
		}
		*p = text
		return nil
	})
}

// count takes a number that is not negative.
func (f flags) count(p *int, name, initial, help string) {
	f.add(name, initial, "NUMBER", help, cobra.NoFileCompletions, func(text string) error {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil {
			return errors.New("must be a whole number such as 500, or 0")
		}
		*p = int(n)
		return nil
	})
}

// longest is what a duration may be: more is a mistake, and what adds several up could overflow.
const longest = 365 * 24 * time.Hour

// duration takes what is not negative, nor 0 if positive says so.
func (f flags) duration(p *time.Duration, positive bool, name, initial, help string) {
	least, otherwise := time.Duration(0), "must be a duration, such as 30s or 5m, or 0, and no more than a year"
	if positive {
		least, otherwise = 1, "must be a duration above zero, such as 500ms or 10s, and no more than a year"
	}
	f.add(name, initial, "DURATION", help, cobra.NoFileCompletions, func(text string) error {
		d, err := time.ParseDuration(text)
		if err != nil || d < least || d > longest {
			*p = time.Second // any: it is given, and wrong, so nobody needs to hear that it is missing
			return errors.New(otherwise)
		}
		*p = d
		return nil
	})
}

// list takes what is separated by commas, and more each time that it is given.
func (f flags) list(p *[]string, name, placeholder, help string) {
	f.add(name, "", placeholder, help, cobra.NoFileCompletions, func(text string) error {
		*p = nil
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				*p = append(*p, item)
			}
		}
		return nil
	}).separator = ","
}

func (f flags) boolean(p *bool, name, help string) { f.booleanAs(p, false, name, help) }

func (f flags) booleanAs(p *bool, initial bool, name, help string) {
	if initial {
		help += " Default: true."
	}
	f.command.Flags().BoolVar(p, name, initial, help+" ($"+envName(name)+")")
	flag := f.command.Flags().Lookup(name)
	f.annotate(flag)
	flag.DefValue = "false" // pflag would say it again
}

func (f flags) annotate(flag *pflag.Flag) {
	flag.Annotations = map[string][]string{topicKey: {f.topic}}
}

func (f flags) add(name, initial, placeholder, help string, complete cobra.CompletionFunc, set func(string) error) *value {
	v := &value{placeholder: placeholder, set: set}
	if err := v.Set(initial); err != nil {
		panic(fmt.Sprintf("the default of --%s: %q %v", name, initial, err))
	}
	if initial != "" {
		help += " Default: " + initial + "."
	}
	flag := f.command.Flags().VarPF(v, name, "", help+" ($"+envName(name)+")")
	f.annotate(flag)
	flag.DefValue = ""         // pflag would add it to the help, unless it is 0
	if placeholder != "FILE" { // which the shell completes by itself
		_ = f.command.RegisterFlagCompletionFunc(name, complete) // fails for a flag that is not there
	}
	return v
}

// settingsAbout are the flags of a command that the help has under a topic.
func settingsAbout(c *cobra.Command, topic string) *pflag.FlagSet {
	set := pflag.NewFlagSet(topic, pflag.ContinueOnError)
	set.SortFlags = false
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if of := append(f.Annotations[topicKey], "")[0]; of == topic {
			set.AddFlag(f)
		}
	})
	return set
}

func heading(topic string) string {
	if topic == "" {
		return "Flags"
	}
	return topic
}

// visitSettings leaves out cobra's own flags.
func visitSettings(c *cobra.Command, visit func(*pflag.Flag)) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Annotations[cobra.FlagSetByCobraAnnotation] == nil {
			visit(f)
		}
	})
}

// setFlags sets the command's flags, one by one since pflag stops at the first error, and notes which were given.
func setFlags(c *cobra.Command, args []string, source map[string]string) []error {
	var (
		errs    []error
		lacking *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
		unknown *pflag.NotExistError
	)
	for i := 0; i < len(args); i++ {
		flag, _, hasValue := strings.Cut(args[i], "=")
		hasNext := i+1 < len(args)
		err := c.Flags().Parse(args[i : i+1])
		if errors.As(err, &lacking) && hasNext && !strings.HasPrefix(args[i+1], "--") {
			err = c.Flags().Parse(args[i : i+2])
			i++
		}
		switch {
		case errors.As(err, &lacking):
			errs = append(errs, fmt.Errorf("%s: its value is missing", flag))
		case errors.As(err, &invalid):
			errs = append(errs, fmt.Errorf("%s: %q %w", flag, invalid.GetValue(), invalid.Unwrap()))
		case err != nil:
			near, page := nearest(strings.TrimLeft(flag, "-"), c)
			if near == "" && errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "" {
				flag = "-" + unknown.GetSpecifiedName() // what comes after it may be its value, and that a secret
			}
			errs = append(errs, fmt.Errorf("%s: there is no such flag%s; see %s --help", flag, didYouMean("", near), page))
			if !hasValue && hasNext && !strings.HasPrefix(args[i+1], "-") {
				i++ // its value
			}
		}
		source[strings.TrimLeft(flag, "-")] = "flag"
		for _, arg := range c.Flags().Args() {
			errs = append(errs, unexpected(c, arg))
		}
	}
	return errs
}

// unexpected reports an argument that is neither a flag nor its value.
func unexpected(c *cobra.Command, arg string) error {
	if !c.HasSubCommands() {
		return fmt.Errorf("unexpected argument %q; see %s --help", arg, c.CommandPath())
	}
	return fmt.Errorf("there is no command %q%s; see %s --help", arg, didYouMean("", strings.Join(c.SuggestionsFor(arg), ", ")), c.CommandPath())
}

// nearest finds the command's flag that has nearly that name, and the help page to read: before a command, those of serve, since
// whoever forgets the command means that. The measure is cobra's, which has it for commands only.
func nearest(name string, c *cobra.Command) (flag, page string) {
	before := ""
	if serve, _, err := c.Find([]string{"serve"}); err == nil && c.HasSubCommands() {
		c, before = serve, "serve "
	}
	names := &cobra.Command{}
	visitSettings(c, func(f *pflag.Flag) {
		names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	for most := max(1, min(3, len(name)/2)); names.SuggestionsMinimumDistance < most; { // of a short name, three letters are all
		names.SuggestionsMinimumDistance++
		if near := names.SuggestionsFor(name); len(near) > 0 {
			return before + "--" + near[0], c.CommandPath()
		}
	}
	if before != "" {
		return "", c.Root().CommandPath()
	}
	return "", c.CommandPath()
}

func didYouMean(prefix, near string) string {
	if near == "" {
		return ""
	}
	return " (did you mean " + prefix + near + "?)"
}
