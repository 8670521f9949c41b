package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// socketFlags say who on this machine may connect to gRPC's socket file.
type socketFlags struct {
	Mode fs.FileMode
}

const socketModeFlag = "grpc-socket-mode"

func (f *socketFlags) declare(flags flags) {
	flags.add(socketModeFlag, "0600", "MODE", "Permissions of gRPC's socket file: 0600 for tokend's own user alone, 0660 for the group too. Whoever may write to it can connect.", cobra.NoFileCompletions, func(text string) error {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode&^0o666 != 0 || mode&0o600 != 0o600 {
			return errors.New("must be octal, with read and write for the owner, such as 0600 or 0660")
		}
		f.Mode = fs.FileMode(mode)
		return nil
	})
}

// open checks the mode. grpcAddr is where gRPC is served.
func (f *socketFlags) open(s *setup, grpcAddr string) {
	const othersMayWrite fs.FileMode = 0o002
	if !listen.IsSocket(grpcAddr) {
		ignored := errors.New("it would be ignored, since --grpc-addr is not unix:/path")
		if f.Mode != 0o600 {
			s.fail("--"+socketModeFlag, ignored)
		}
		return
	}
	s.GRPCSocketMode = f.Mode
	if f.Mode&othersMayWrite != 0 {
		s.Logger.Warn("everybody on this machine can connect to gRPC's socket", slog.String("of", "--"+socketModeFlag), slog.String("mode", f.Mode.String()))
	}
}
