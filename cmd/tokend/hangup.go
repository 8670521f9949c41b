package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// rereadOn reads all files again at each hangup, until ctx ends. While the server stops, as serving says, the service manager is
// not told that it is ready again.
func (s *setup) rereadOn(ctx, serving context.Context, hangups <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if serving.Err() != nil {
			_ = s.reread() // which the log says
			continue
		}
		s.systemd.reloading()
		status := s.status
		if err := s.reread(); err != nil {
			status += " A file cannot be used, and the last good one stays: see the log."
		}
		if serving.Err() == nil {
			s.systemd.ready(status)
		}
	}
}

// reread is what SIGHUP asks for: the policy, the secrets, the certificates and the authorities are read at once, and the audit
// file is opened again, so that whoever rotates it need only rename it. One line says what came of it.
func (s *setup) reread() error {
	looked := s.files.Look() // the policy among them, which may bring profiles
	if s.profiles != nil {
		looked = looked.And(s.profiles.Look())
	}
	if s.auditFile != nil {
		found := reload.Looked{Files: []string{s.auditFile.Path()}, Err: s.auditFile.Reopen()}
		looked = looked.And(found)
	}
	attrs := []slog.Attr{slog.Any("files", looked.Files), slog.Any("changed", append([]string{}, looked.Changed...))}
	if looked.Err != nil {
		attrs = append(attrs, slog.String("cause", looked.Err.Error()))
		s.Logger.LogAttrs(context.Background(), slog.LevelError, "files read again on SIGHUP, not all can be used; the last good ones stay", attrs...)
	} else {
		s.Logger.LogAttrs(context.Background(), slog.LevelInfo, "files read again on SIGHUP", attrs...)
	}
	return looked.Err
}
