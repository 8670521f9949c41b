package setup

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"

	"github.com/ForstaLabs/ephemeral-token-service/internal/sink"
)

// openAudit opens the audit file. In a trial, a file that it had to make is removed again: it could
// belong to another user than the one that serves.
func (s *Setup) openAudit() {
	to, path := s.opts.Stdout, s.Settings.AuditFile
	if path == "" {
		return
	}
	var file *sink.File
	_, missing := os.Stat(path)
	if path != "-" {
		var err error
		if file, err = sink.OpenFile(path); err != nil {
			s.unusable("--audit-file", err)
			return
		}
		to, s.auditFile = file, file
	}
	records := sink.ForAudit(to, s.log)
	s.close = append(s.close, func() {
		records.Close()
		if s.opts.Trial && file != nil && errors.Is(missing, fs.ErrNotExist) {
			_ = os.Remove(path)
		}
	})
	s.register(records.Lost)
	s.Config.Audit = slog.New(slog.NewJSONHandler(records, nil))
}
