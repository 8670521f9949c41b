package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// healthcheckCommand asks a running tokend whether it is alive. An image without a shell has nothing else to ask with.
type healthcheckCommand struct{ AdminAddr string }

func (c *healthcheckCommand) declare(flags flags) {
	flags.text(&c.AdminAddr, "admin-addr", "127.0.0.1:9091", "HOST:PORT", "The running tokend's --admin-addr.")
}

func (c *healthcheckCommand) execute(ctx context.Context, in *invocation) error {
	host, port, err := net.SplitHostPort(c.AdminAddr)
	if err != nil {
		err = fmt.Errorf("--admin-addr: %q is not host:port, and health is asked for there", c.AdminAddr)
	}
	if err := in.check(err); err != nil {
		return err
	}
	if err := askHealth(ctx, host, port); err != nil {
		return err
	}
	_, err = fmt.Fprintln(in.stdout, "healthy")
	return err
}

// askHealth returns nil if a tokend with that admin address says that it is alive.
func askHealth(ctx context.Context, host, port string) error {
	switch ip := net.ParseIP(host); { // a listener on every address is on this one; an image may have no name for it
	case host == "" || ip.Equal(net.IPv4zero):
		host = "127.0.0.1"
	case ip.Equal(net.IPv6unspecified):
		host = "::1"
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/healthz", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // and no proxy
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("not healthy: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not healthy: /healthz answers %s", resp.Status)
	}
	return nil
}
