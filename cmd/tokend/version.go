package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by release builds: -ldflags "-X main.version=v1.2.3".
var version string

type versionCommand struct{}

func (versionCommand) declare(flags) {}

func (versionCommand) execute(_ context.Context, in *invocation) error {
	if err := in.check(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(in.stdout, "tokend", versionLine())
	return err
}

func versionLine() string {
	return fmt.Sprintf("%s %s %s/%s", programVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// programVersion is the release, or what the Go command knows of the build.
func programVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// userAgent is how Atlas's operators see this service.
func userAgent() string {
	return "ephemeral-token-service/" + programVersion() + " (+https://github.com/ForstaLabs/ephemeral-token-service)"
}
