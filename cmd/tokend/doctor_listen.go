package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// listenChecks bind each address, and let go of it.
func (c *doctorCommand) listenChecks(s *setup) []check {
	var checks []check
	for _, l := range []struct{ name, addr string }{{"grpc", c.GRPCAddr}, {"http", c.HTTPAddr}, {"admin", c.AdminAddr}} {
		if l.addr == "" {
			continue
		}
		setting := "--" + l.name + "-addr"
		checks = append(checks, check{"port " + l.name, []string{setting}, func(ctx context.Context) finding {
			return c.findPort(ctx, s, setting, l.addr)
		}})
	}
	return checks
}

func (c *doctorCommand) findPort(ctx context.Context, s *setup, setting, addr string) finding {
	bound, err := listen.On(addr, listen.Limits{})
	if err == nil {
		err = bound.Share(s.GRPCSocketMode) // of no effect on a port
		_ = bound.Close()
	}
	switch {
	case err == nil:
		return good("%s is free", addr)
	case errors.Is(err, listen.ErrInUse) && c.serves(ctx):
		return doubtful(addr+" is in use, and a tokend is alive on this machine", "If that is the one with these settings, all is well; otherwise choose another address in "+setting+".")
	case errors.Is(err, listen.ErrInUse):
		return bad(addr+" is in use", "Stop the process that holds it, or choose another address in "+setting+".")
	}
	return bad(fmt.Sprintf("%s cannot be listened on: %v", addr, err), "Choose an address of this machine, and a port or directory that this user may use, in "+setting+".")
}

// serves reports whether a tokend with this admin address does.
func (c *doctorCommand) serves(ctx context.Context) bool {
	host, port, err := net.SplitHostPort(c.AdminAddr)
	return err == nil && askHealth(ctx, host, port) == nil
}
