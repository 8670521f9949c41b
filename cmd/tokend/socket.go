package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ForstaLabs/ephemeral-token-service/internal/listen"
)

// socketFlags say who on this machine may connect to gRPC's socket file.
type socketFlags struct {
	Mode  fs.FileMode
	Group string
}

const (
	socketModeFlag  = "grpc-socket-mode"
	socketGroupFlag = "grpc-socket-group"
)

func (f *socketFlags) declare(flags flags) {
	flags.add(socketModeFlag, "0600", "MODE", "Permissions of gRPC's socket file: 0600 for tokend's own user alone, 0660 for the group too. Whoever may write to it can connect.", cobra.NoFileCompletions, func(text string) error {
		mode, err := strconv.ParseUint(text, 8, 32)
		if err != nil || mode&^0o666 != 0 || mode&0o600 != 0o600 {
			return errors.New("must be octal, with read and write for the owner, such as 0600 or 0660")
		}
		f.Mode = fs.FileMode(mode)
		return nil
	})
	flags.text(&f.Group, socketGroupFlag, "", "GROUP", "Group of gRPC's socket file, by name or number; it needs --grpc-socket-mode=0660. tokend's user has to be in it.")
}

// open finds out which group is meant. grpcAddr is where gRPC is served.
func (f *socketFlags) open(s *setup, grpcAddr string) {
	const groupMayWrite, othersMayWrite fs.FileMode = 0o020, 0o002
	if !listen.IsSocket(grpcAddr) {
		ignored := errors.New("it would be ignored, since --grpc-addr is not unix:/path")
		if f.Mode != 0o600 {
			s.fail("--"+socketModeFlag, ignored)
		}
		if f.Group != "" {
			s.fail("--"+socketGroupFlag, ignored)
		}
		return
	}
	s.GRPCSocket.Mode = f.Mode
	if f.Mode&othersMayWrite != 0 {
		s.Logger.Warn("everybody on this machine can connect to gRPC's socket", slog.String("of", "--"+socketModeFlag), slog.String("mode", f.Mode.String()))
	}
	if f.Group == "" {
		return
	}
	id, err := groupID(f.Group)
	switch {
	case err != nil:
		s.fail("--"+socketGroupFlag, err)
	case f.Mode&groupMayWrite == 0:
		s.fail("--"+socketGroupFlag, errors.New("the group could not connect: give --grpc-socket-mode=0660 too"))
	}
	s.GRPCSocket.Group = &id
}

// groupID takes a number as it is: an image may have no list of groups.
func groupID(name string) (int, error) {
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("there is no group %q: give its name or its number", name)
	}
	return strconv.Atoi(group.Gid)
}
