package tokencache

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// redisHealth is how Redis is. It logs the changes, and takes a Redis that fails now and then for one that fails, or it
// would log every call.
type redisHealth struct {
	log *slog.Logger

	mu    sync.Mutex
	cause error     // guarded by mu; why the last operation that failed did, nil if all is well
	since time.Time // guarded by mu; of the last failure
}

// quietTime is how long nothing may fail before Redis is said to be back.
const quietTime = time.Second

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
	case h.cause != nil && time.Since(h.since) >= quietTime:
		h.recovered()
	}
}

// connected notes the first connection.
func (h *redisHealth) connected() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cause != nil {
		h.recovered()
	}
}

// recovered notes that all is well. The caller holds mu.
func (h *redisHealth) recovered() {
	h.cause = nil
	h.log.Info("Redis answers again")
}

func (h *redisHealth) check() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cause != nil {
		return fmt.Errorf("Redis: %w", h.cause) //nolint:staticcheck // a name
	}
	return nil
}

// redisCause is err as it may be told. Of what a server answers that is the first word, such as WRONGPASS: the rest can
// quote the command, and with it the password.
func redisCause(err error) error {
	answer, ok := errors.AsType[*rueidis.RedisError](err)
	if !ok {
		return err
	}
	word, _, _ := strings.Cut(answer.Error(), " ")
	if word == "" || strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return errors.New("it answers with an error")
	}
	return errors.New("it answers " + word)
}
