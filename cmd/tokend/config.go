package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
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

func (c *configCommand) execute(_ context.Context, in *invocation) error {
	c.trial = true
	cfg, id, errs := c.config(io.Discard, io.Discard)
	defer id.Close()
	if err := in.check(errs...); err != nil {
		return err
	}
	if c.Explain != "" {
		said, err := id.explain(c.Explain)
		if err != nil {
			return in.check(fmt.Errorf("--explain: %w", err))
		}
		_, err = fmt.Fprintln(in.stdout, said)
		return err
	}
	table := tabwriter.NewWriter(in.stdout, 0, 0, 2, ' ', 0)
	for _, s := range in.settings {
		if s.flag != "explain" { // of config itself
			fmt.Fprintf(table, "--%s=%s\t# %s\n", s.flag, s.value, s.source)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprint(in.stdout, "\n", id.who(), id.certificates(), describeCache(cfg.Cache))
	return err
}
