package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
)

// callLines is a handler for audit records. It logs one line for each successful call, with how
// many creates have cost Atlas nothing. A failed call has a line in the log anyway.
type callLines struct {
	log *slog.Logger

	mu              sync.Mutex
	creates, spared int // guarded by mu
}

// Handle implements slog.Handler.
func (c *callLines) Handle(ctx context.Context, record slog.Record) error {
	values := map[string]string{}
	record.Attrs(func(a slog.Attr) bool {
		values[a.Key] = a.Value.String()
		return true
	})
	if values["outcome"] != "OK" {
		return nil
	}
	line := []slog.Attr{slog.String("method", values["method"])}
	if cache := values["cache"]; cache != "" {
		line = append(line, slog.String("cache", cache), slog.String("spared", c.count(cache)))
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "call", line...)
	return nil
}

// count counts a create with this Cache-Status.
func (c *callLines) count(cache string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.creates++
	if strings.Contains(cache, "hit") || strings.Contains(cache, "collapsed") {
		c.spared++
	}
	return fmt.Sprintf("%d of %d calls to Atlas", c.spared, c.creates)
}

// Enabled implements slog.Handler.
func (c *callLines) Enabled(context.Context, slog.Level) bool { return true }

// WithAttrs and WithGroup implement slog.Handler. Records are written without them.
func (c *callLines) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup implements slog.Handler.
func (c *callLines) WithGroup(string) slog.Handler { return c }
