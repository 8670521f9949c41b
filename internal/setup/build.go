package setup

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// Build identifies the build of the program. A release sets all fields; otherwise the Go command
// knows some.
type Build struct{ Version, Commit, Date string }

// String returns the line of tokend version.
func (b Build) String() string {
	revision, date, changed := b.source()
	from := ""
	if revision != "" {
		if date != "" {
			date = " of " + date
		}
		from = " (commit " + revision + date + changed + ")"
	}
	return fmt.Sprintf("%s%s %s %s/%s", b.ShortVersion(), from, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// ShortVersion returns the release, or what the Go command knows of the build.
func (b Build) ShortVersion() string {
	if b.Version != "" {
		return b.Version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// source returns the commit and its date, as far as they are known.
func (b Build) source() (revision, date, changed string) {
	revision, date = b.Commit, b.Date
	if info, ok := debug.ReadBuildInfo(); ok && revision == "" {
		for _, setting := range info.Settings {
			switch setting.Key {
			case "vcs.revision":
				revision = setting.Value
			case "vcs.time":
				date = setting.Value
			case "vcs.modified":
				if setting.Value == "true" {
					changed = ", changed"
				}
			}
		}
	}
	return revision, date, changed
}

// metric returns tokend_build_info.
func (b Build) metric() prometheus.Collector {
	revision, _, _ := b.source()
	built := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tokend_build_info", Help: "1; its labels say which build this is.",
		ConstLabels: prometheus.Labels{"version": b.ShortVersion(), "revision": cmp.Or(revision, "unknown"), "goversion": runtime.Version()},
	})
	built.Set(1)
	return built
}

// userAgent identifies this service to Atlas's operators.
func (b Build) userAgent() string {
	return "ephemeral-token-service/" + b.ShortVersion() + " (+https://github.com/ForstaLabs/ephemeral-token-service)"
}
