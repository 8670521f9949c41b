package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"
)

// configCommand shows what serve would go by. Secrets are in files, so no setting is one.
type configCommand struct {
	serveFlags

	Explain string
}

func (c *configCommand) declare(flags flags) {
	c.serveFlags.declare(flags)
	flags.text(&c.Explain, "explain", "", "CALLER", "Say only which rule of the policy this caller matches: spiffe://…, dns:NAME, oidc:ISSUER#SUBJECT or atlas_jwt.")
}

func (c *configCommand) execute(ctx context.Context, in *invocation) error {
	var warnings bytes.Buffer
	s := c.open(in, io.Discard, warningLog(&warnings), true)
	err := c.show(ctx, in, s)
	s.Close() // nothing is logged any more
	if err == nil && warnings.Len() > 0 {
		_, err = fmt.Fprintf(in.stdout, "\n%s", &warnings)
	}
	return err
}

// warningLog writes what serve would warn of, without the time.
func warningLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.TimeKey, a.Key == slog.LevelKey:
			return slog.Attr{}
		case a.Key == slog.MessageKey:
			a.Key = "warning"
		}
		return a
	}}))
}

// patience is how long config waits for the policy's OIDC issuers, which is more than each has for its two documents, and for the
// SPIFFE agent.
const patience = 15 * time.Second

// ask reports issuers that do not answer as they should, and an agent. serve starts without the issuers, and tries again.
func (c *configCommand) ask(ctx context.Context, s *setup) {
	if len(s.errs) > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s.askAgent(ctx, c.SPIFFESocket)
	s.fail("--policy-file", s.Auth.CheckIssuers(ctx))
}

func (c *configCommand) show(ctx context.Context, in *invocation, s *setup) error {
	if c.Explain == "" {
		c.ask(ctx, s)
	}
	if err := in.check(s.errs...); err != nil {
		return err
	}
	switch {
	case c.Explain != "" && s.policy == nil:
		_, err := fmt.Fprint(in.stdout, "There is no policy. ", s.who)
		return err
	case c.Explain != "":
		said, err := s.policy.Explain(c.Explain)
		if err != nil {
			return in.check(fmt.Errorf("--explain: %w", err))
		}
		_, err = fmt.Fprintln(in.stdout, said)
		return err
	}
	table := tabwriter.NewWriter(in.stdout, 0, 0, 2, ' ', 0)
	for _, set := range in.settings {
		if set.flag != "explain" { // of config itself
			fmt.Fprintf(table, "--%s=%s\t# %s\n", set.flag, set.value, set.source)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(in.stdout, "\n", s.who, s.certificates(), s.ownID, describeCache(s.Cache), s.tracesTo)
	return err
}
