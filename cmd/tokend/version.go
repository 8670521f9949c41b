package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Release builds set these: -ldflags "-X main.version=v1.2.3 -X main.commit=… -X main.date=…".
var version, commit, date string

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
	return fmt.Sprintf("%s%s %s %s/%s", programVersion(), programSource(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// source is the commit and its date, as far as whoever built the program said, or the Go command knows.
func source() (of, at, changed string) {
	of, at = commit, date
	if info, ok := debug.ReadBuildInfo(); ok && of == "" {
		for _, setting := range info.Settings {
			switch setting.Key {
			case "vcs.revision":
				of = setting.Value
			case "vcs.time":
				at = setting.Value
			case "vcs.modified":
				if setting.Value == "true" {
					changed = ", changed"
				}
			}
		}
	}
	return of, at, changed
}

// programSource is the source for people to read, if it is known.
func programSource() string {
	of, at, changed := source()
	switch {
	case of == "":
		return ""
	case at != "":
		at = " of " + at
	}
	return " (commit " + of + at + changed + ")"
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

// buildInfo is a metric that says which build runs where.
func buildInfo() prometheus.Collector {
	revision, _, _ := source()
	built := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tokend_build_info", Help: "1; its labels say which build this is.",
		ConstLabels: prometheus.Labels{"version": programVersion(), "revision": cmp.Or(revision, "unknown"), "goversion": runtime.Version()},
	})
	built.Set(1)
	return built
}

// userAgent is how Atlas's operators see this service.
func userAgent() string {
	return "ephemeral-token-service/" + programVersion() + " (+https://github.com/ForstaLabs/ephemeral-token-service)"
}
