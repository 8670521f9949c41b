package redis

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

const (
	// After restAfter failures in a row, Redis is not called for restTime. Then one call tries again.
	restAfter = 5
	restTime  = time.Second
	// quietTime is how long Redis must not fail before it counts as working again.
	quietTime = time.Second
)

// health tracks whether Redis works, and logs changes. A Redis that fails now and then counts as
// failing; otherwise each call could log.
type health struct {
	log *slog.Logger

	mu       sync.Mutex
	answered bool      // guarded by mu; Redis has answered once
	cause    error     // guarded by mu; of the last failure, nil if all is well
	since    time.Time // guarded by mu; of the last failure, or of the last call that tried
	failures int       // guarded by mu; in a row
}

// resting reports whether to skip Redis. If not, the caller reports the outcome.
func (h *health) resting() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failures < restAfter {
		return false
	}
	if time.Since(h.since) < restTime {
		return true
	}
	h.since = time.Now()
	return false
}

// report records how an operation ended. One late answer fails all operations that wait for it, so
// a failure of an operation that began before the last failure is not counted again.
func (h *health) report(began time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case errors.Is(err, errClosed):
	case err != nil:
		if h.failures > 0 && began.Before(h.since) {
			return
		}
		if h.cause == nil {
			h.log.Warn("Redis failed: creates go to Atlas, and deletes wait until cached copies have expired",
				slog.String("cause", cause(err).Error()))
		}
		h.cause, h.since = cause(err), time.Now()
		h.failures++
	default:
		h.answered, h.failures = true, 0
		if h.cause != nil && time.Since(h.since) >= quietTime {
			h.cause = nil
			h.log.Info("Redis answers again")
		}
	}
}

// check returns the cause of the last failure, or nil if Redis works.
func (h *health) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cause == nil && !h.answered {
		return errConnecting
	}
	return h.cause
}

// Error is a cause that is safe to log: a fixed text, or the error of a failed dial.
type Error string

func (e Error) Error() string { return string(e) }

// The causes of errors.
const (
	ErrNoTLS      = Error("it does not use TLS: the URL has to begin with redis://, or Redis needs a tls-port")
	ErrClosedConn = Error("it closed the connection: if it uses TLS, the URL has to begin with rediss://")
	ErrOld        = Error("it does not know HELLO: it is older than Redis 6, or a proxy")

	errConnecting = Error("not connected yet")
	errSlow       = Error("no answer in time")
	errResting    = Error("skipped after several failures")
	errMalformed  = Error("its answer is malformed or too long")
)

// ReplyError is an error that Redis answered with: its first word, such as WRONGPASS.
type ReplyError string

func (e ReplyError) Error() string { return "it replied " + string(e) }

// cause returns err in a form that is safe to log. A server's own text can quote the command, and
// with it the password.
func cause(err error) error {
	if answer, ok := errors.AsType[goredis.Error](err); ok {
		text := strings.TrimPrefix(answer.Error(), "ERR ")
		word, _, _ := strings.Cut(text, " ")
		switch {
		case strings.HasPrefix(text, "unknown command"):
			return ErrOld
		case strings.Contains(text, "user executing the script can't run"): // Redis 7 does not say NOPERM then
			return ReplyError("NOPERM")
		case word == "" || strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "":
			return ReplyError("with an error")
		}
		return ReplyError(word)
	}
	if ours, ok := errors.AsType[Error](err); ok {
		return ours
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return ErrClosedConn
	}
	if network, ok := errors.AsType[*net.OpError](err); ok && !network.Timeout() {
		return network
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, goredis.ErrPoolTimeout) {
		return errSlow
	}
	return errMalformed
}
