package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
)

// openAudit opens the audit file. In a trial, a file that it had to make is removed again: it could belong to another user than the
// one that serves.
func (s *setup) openAudit(path string, stdout io.Writer) {
	if path == "" {
		return
	}
	var file *sink.File
	_, missing := os.Stat(path)
	if path != "-" {
		var err error
		if file, err = sink.OpenFile(path); err != nil {
			s.fail("--audit-file", err)
			return
		}
		stdout, s.auditFile = file, file
	}
	records := sink.ForAudit(stdout, s.Logger)
	s.close = append(s.close, func() {
		records.Close()
		if s.trial && file != nil && errors.Is(missing, fs.ErrNotExist) {
			_ = os.Remove(path)
		}
	})
	s.register(records.Lost)
	s.Audit = slog.New(slog.NewJSONHandler(records, nil))
}
