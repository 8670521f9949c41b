package resilient_test

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/resilient"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newClient(t *testing.T, a resilient.Atlas) *resilient.Client {
	t.Helper()
	return newClientWith(t, a, resilient.Config{})
}

func newClientWith(t *testing.T, a resilient.Atlas, config resilient.Config) *resilient.Client {
	t.Helper()
	c, err := resilient.New(a, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func kindOf(err error) atlas.Kind {
	if e, ok := errors.AsType[*atlas.Error](err); ok {
		return e.Kind
	}
	return 0
}

// wait is for virtual time.
func wait(d time.Duration) { <-time.After(d) }
