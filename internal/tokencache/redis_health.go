package tokencache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// After restAfter failures in a row Redis is left alone for restTime, but for one call, which tries.
	restAfter = 5
	restTime  = time.Second
	// quietTime is how long nothing may fail before Redis is said to be back.
	quietTime = time.Second
)

// redisHealth is how Redis is. It logs the changes, and takes a Redis that fails now and then for one that fails, or it
// would log every call.
type redisHealth struct {
	log *slog.Logger

	mu       sync.Mutex
	cause    error     // guarded by mu; why the last operation that failed did, nil if all is well
	since    time.Time // guarded by mu; of the last failure, or of the last that tried
	failures int       // guarded by mu; in a row
}

// resting reports whether to leave Redis alone. If not, how that went is to be reported.
func (h *redisHealth) resting() bool {
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

// report notes how an operation ended.
func (h *redisHealth) report(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case errors.Is(err, errClosed):
	case err != nil:
		if h.cause == nil {
			h.log.Warn("Redis fails: creates go straight to Atlas, and deletes wait until remembered copies have expired",
				slog.String("cause", redisCause(err).Error()))
		}
		h.cause, h.since = redisCause(err), time.Now()
		h.failures++
	default:
		h.failures = 0
		if h.cause != nil && time.Since(h.since) >= quietTime {
			h.cause = nil
			h.log.Info("Redis answers again")
		}
	}
}

// check is what an operator should know of, nil if all is well.
func (c *redisClient) check() error {
	c.health.mu.Lock()
	defer c.health.mu.Unlock()
	cause := c.health.cause
	if cause == nil && c.client.Load() == nil {
		cause = errConnecting
	}
	if cause != nil {
		return fmt.Errorf("Redis: %w", cause) //nolint:staticcheck // a name
	}
	return nil
}

// redisError is a cause in our words, or in those of a failed dial.
type redisError string

func (e redisError) Error() string { return string(e) }

const (
	errConnecting = redisError("not connected yet")
	errSlow       = redisError("no answer in time")
	errResting    = redisError("left alone after several failures")
	errSpeaksTLS  = redisError("it speaks TLS: the URL has to begin with rediss://")
	errNoTLS      = redisError("it speaks no TLS: the URL has to begin with redis://, or Redis needs a tls-port")
	errMalformed  = redisError("its answer is malformed or too long")
	errNoPrimary  = redisError("what the sentinel calls the primary is none")
)

// redisCause is err as it may be told: never in a server's words, which can quote the command, and with it the password. Of
// an error that a server answers it is the first word, such as WRONGPASS.
func redisCause(err error) error {
	if answer, ok := errors.AsType[redis.Error](err); ok {
		word, _, _ := strings.Cut(strings.TrimPrefix(answer.Error(), "ERR "), " ")
		if word == "" || strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return errors.New("it answers with an error")
		}
		return errors.New("it answers " + word)
	}
	if ours, ok := errors.AsType[redisError](err); ok {
		return ours
	}
	if network, ok := errors.AsType[*net.OpError](err); ok && !network.Timeout() {
		return network
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, redis.ErrPoolTimeout):
		return errSlow
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return errMalformed
}
