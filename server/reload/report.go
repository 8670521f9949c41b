package reload

import (
	"log/slog"
	"time"
)

// Interval is how often a program looks at its files, unless it has a reason of its own.
const Interval = time.Second

// Report is an onError for [New] that leaves one log line for each failure and one when all is well again. what names
// the value.
func Report(log *slog.Logger, what, file string) func(error) {
	return func(err error) {
		if err != nil {
			log.Error("a replaced file cannot be used; the last good one stays", slog.String("what", what), slog.String("file", file), slog.String("cause", err.Error()))
			return
		}
		log.Info("the file can be used again", slog.String("what", what), slog.String("file", file))
	}
}
