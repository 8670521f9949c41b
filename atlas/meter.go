package atlas

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// A connection may send meterStart, for the handshake, meterCall more for each call, which is more than any answer that is
	// taken, and meterRate a second in between, for keeping it alive.
	meterStart = 256 << 10
	meterCall  = maxBodyBytes + maxHeaderBytes + 48<<10
	meterRate  = 16 << 10
	// meterMost is what it can save up: as much as for the calls that HTTP/2 usually has in progress on one connection.
	meterMost = 256 * meterCall
)

// meter is a connection that ends if the other side sends more than it was asked for. Net/http answers each PING and each
// SETTINGS of HTTP/2 however many there are, also on a connection that no call is using: that would take a core without end
// (CVE-2019-9512 and CVE-2019-9515 are the same for servers).
type meter struct {
	net.Conn

	mu   sync.Mutex
	left int       // guarded by mu; bytes that it may still send
	at   time.Time // guarded by mu; until when meterRate is counted in
}

func metered(dial func(ctx context.Context, network, address string) (net.Conn, error)) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &meter{Conn: conn, left: meterStart, at: time.Now()}, nil
	}
}

// meterOf is the meter below all TLS, nil if there is none.
func meterOf(conn net.Conn) *meter {
	for {
		if m, ok := conn.(*meter); ok {
			return m
		}
		layer, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = layer.NetConn()
	}
}

// allow has it send an answer.
func (m *meter) allow() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left = min(m.left+meterCall, meterMost)
}

var errFlood = errors.New("the other side sends more than it was asked for")

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if m.left < meterStart {
		m.left = min(m.left+int(now.Sub(m.at).Seconds()*meterRate), meterStart)
	}
	m.at = now
	if m.left -= n; m.left < 0 {
		return 0, &net.OpError{Op: "read", Net: "tcp", Err: errFlood}
	}
	return n, err
}
