package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"
)

// doctorCommand looks at everything that serve would need, as serve would, and says what to do about what is wrong. It serves
// nothing and changes nothing: it logs in once for each userauthtoken, and asks Atlas for no token.
type doctorCommand struct {
	serveFlags

	JSON    bool
	Timeout time.Duration
}

func (c *doctorCommand) declare(flags flags) {
	c.serveFlags.declare(flags)
	flags.boolean(&c.JSON, "json", "Print the findings as JSON.")
	flags.duration(&c.Timeout, true, "timeout", "5s", "How long each check may take.")
}

func (c *doctorCommand) execute(ctx context.Context, in *invocation) error {
	if err := in.check(); err != nil {
		return err
	}
	d := &diagnosis{timeout: c.Timeout}
	opened, ok := within(c.Timeout, func() openedToLook { return c.openToLook(in) })
	if ok {
		d.settings = c.findInSettings(in, opened)
		d.checks = c.allChecks(ctx, opened.setup)
	} else {
		d.settings = []finding{bad("The files that the settings name cannot be read in time.", "Check the file systems that they are on.").of("settings")}
	}
	findings := d.run(ctx)
	show := showTable
	if c.JSON {
		show = showJSON
	}
	if err := show(in.stdout, findings); err != nil {
		return err
	}
	if n := count(findings, failed); n > 0 {
		return fmt.Errorf("%d of %d checks failed", n, len(findings))
	}
	return nil
}

// allChecks are those beyond the files, in the order in which they are shown.
func (c *doctorCommand) allChecks(ctx context.Context, s *setup) []check {
	var all []check
	all = append(all, c.agentChecks()...)
	all = append(all, c.atlasChecks(s)...)
	all = append(all, c.callerChecks(ctx, s)...)
	all = append(all, c.redisChecks(s)...)
	return append(all, c.listenChecks(s)...)
}

// openedToLook is what serve would make of the settings, closed again, and what it would warn of.
type openedToLook struct {
	setup    *setup
	warnings []byte // a JSON object each
}

func (c *doctorCommand) openToLook(in *invocation) openedToLook {
	var warnings bytes.Buffer
	s := c.open(in, io.Discard, slog.New(slog.NewJSONHandler(&warnings, &slog.HandlerOptions{Level: slog.LevelWarn})), true)
	s.Close() // nothing is logged any more
	return openedToLook{s, warnings.Bytes()}
}
