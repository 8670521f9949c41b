package reload

import (
	"log/slog"
	"time"
)

// Interval is how often a program looks at its files, unless it has a reason of its own.
const Interval = time.Second

// Report is an onError for [New] that leaves one log line for each failure and one when all is well again. what says in a
// word what is in the file; the logger has attributes that say which file, and which one of several.
func Report(log *slog.Logger, what string) func(error) {
	log = log.With(slog.String("what", what))
	return func(err error) {
		if err != nil {
			log.Error("a replaced file cannot be used; the last good one stays", slog.String("cause", err.Error()))
			return
		}
		log.Info("the file can be used again")
	}
}
