package atlas

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// floodConn sends as much as it is asked for, at once.
type floodConn struct{ net.Conn }

func (floodConn) Read(p []byte) (int, error) { return len(p), nil }

// newMeter returns a metered connection to a flood.
func newMeter(t *testing.T) *meter {
	t.Helper()
	conn, err := metered(func(context.Context, string, string) (net.Conn, error) { return floodConn{}, nil })(t.Context(), "tcp", "a:1")
	if err != nil {
		t.Fatal(err)
	}
	return meterOf(conn)
}

// read reads n bytes.
func (m *meter) read(n int) error {
	_, err := m.Read(make([]byte, n))
	return err
}

func TestMeter(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(t *testing.T, m *meter)
		left int // that it may still send then
	}{
		"a new connection":   {func(*testing.T, *meter) {}, meterStart},
		"what it has sent":   {func(t *testing.T, m *meter) { mustRead(t, m, 1000) }, meterStart - 1000},
		"a call":             {func(_ *testing.T, m *meter) { m.allow() }, meterStart + meterCall},
		"calls without end":  {func(_ *testing.T, m *meter) { allow(m, 10_000) }, meterMost},
		"a second":           {func(t *testing.T, m *meter) { mustRead(t, m, meterStart); advance(time.Second) }, meterRate},
		"half a second":      {func(t *testing.T, m *meter) { mustRead(t, m, meterStart); advance(time.Second / 2) }, meterRate / 2},
		"an hour":            {func(t *testing.T, m *meter) { mustRead(t, m, meterStart); advance(time.Hour) }, meterStart},
		"an hour after many": {func(_ *testing.T, m *meter) { allow(m, 2); advance(time.Hour) }, meterStart + 2*meterCall},
		"in two steps": {func(t *testing.T, m *meter) {
			mustRead(t, m, meterStart)
			advance(time.Second)
			mustRead(t, m, 1)
			advance(time.Second)
		}, 2*meterRate - 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMeter(t)
				tc.do(t, m)
				mustRead(t, m, tc.left)
				if err := m.read(1); !errors.Is(err, errFlood) {
					t.Errorf("one byte more than %d: %v", tc.left, err)
				}
			})
		})
	}
}

func allow(m *meter, calls int) {
	for range calls {
		m.allow()
	}
}

func mustRead(t *testing.T, m *meter, n int) {
	t.Helper()
	if err := m.read(n); err != nil {
		t.Errorf("%d bytes: %v", n, err)
	}
}

// Each call has the connection send as much as an answer may have: large ones do not end it.
func TestLargeAnswersOnOneConnection(t *testing.T) {
	const calls = 2 * meterStart / maxBodyBytes
	conns, config := newHTTPServer(t, true, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"token":"`+plantedToken+`"`+strings.Repeat(" ", maxBodyBytes-1000)+`}`)
	})
	c := newTestClient(t, config)
	for range calls {
		if _, err := c.CreateEphemeralToken(t.Context(), plantedJWT); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}
