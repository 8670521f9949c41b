package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
)

// openAudit opens the stream of audit records that --audit-file names. If this is a trial, a file that it had to make does not
// stay: it could belong to another user than the one who serves.
func (c *callers) openAudit(file string, trial bool, stdout io.Writer, log *slog.Logger) error {
	switch file {
	case "":
		return nil
	case "-":
	default:
		_, missing := os.Stat(file)
		f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("--audit-file: %w", err)
		}
		stdout = f
		c.close = append(c.close, func() {
			_ = f.Close()
			if trial && errors.Is(missing, fs.ErrNotExist) {
				_ = os.Remove(file)
			}
		})
	}
	c.audit = slog.New(slog.NewJSONHandler(&auditWriter{to: stdout, log: log}, nil))
	return nil
}

// auditWriter says in the log when records are lost and when they no longer are, since slog tells nobody.
type auditWriter struct {
	to   io.Writer
	log  *slog.Logger
	lost atomic.Bool
}

func (w *auditWriter) Write(record []byte) (int, error) {
	n, err := w.to.Write(record)
	switch {
	case err != nil && w.lost.CompareAndSwap(false, true):
		w.log.Error("audit records are lost", slog.String("cause", err.Error()))
	case err == nil && w.lost.CompareAndSwap(true, false):
		w.log.Info("audit records are written again")
	}
	return n, err
}
