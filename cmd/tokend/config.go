package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
)

// configCommand shows what serve would go by. Secrets are in files, so no setting is one.
type configCommand struct{ serveFlags }

func (c *configCommand) execute(_ context.Context, in *invocation) error {
	_, id, errs := c.config(io.Discard, io.Discard)
	defer id.Close()
	if err := in.check(errs...); err != nil {
		return err
	}
	table := tabwriter.NewWriter(in.stdout, 0, 0, 2, ' ', 0)
	for _, s := range in.settings {
		fmt.Fprintf(table, "--%s=%s\t# %s\n", s.flag, s.value, s.source)
	}
	return table.Flush()
}
