//go:build linux

package main_test

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/spiffe/spiffetest"
)

// manager is where a service manager such as systemd listens.
type manager struct{ conn *net.UnixConn }

func newManager(t *testing.T, address string) manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return manager{conn}
}

// hears fails unless the next message is this one.
func (m manager) hears(t *testing.T, pattern string) {
	t.Helper()
	buffer := make([]byte, 4096)
	if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	n, err := m.conn.Read(buffer)
	if err != nil {
		t.Fatalf("in vain for %s: %v", pattern, err)
	}
	if got := string(buffer[:n]); !regexp.MustCompile(`^` + pattern + `$`).MatchString(got) {
		t.Errorf("it hears %q, want %s", got, pattern)
	}
}

// systemd gets what it needs for Type=notify and Type=notify-reload, on a socket of either kind.
func TestNotify(t *testing.T) {
	t.Parallel()
	for name, address := range map[string]string{
		"file":     strings.TrimSuffix(socketPath(t), "grpc.sock") + "notify",
		"abstract": fmt.Sprintf("@tokend-test-%d-%d", os.Getpid(), time.Now().UnixNano()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newManager(t, address)
			certs := makeCertificates(t)
			s := invocation{args: []string{"--tls-cert-file=" + certs.serverCert, "--tls-key-file=" + certs.serverKey}, env: []string{"NOTIFY_SOCKET=" + address}}.startServe(t, startAtlas(t))
			serving := regexp.QuoteMeta(fmt.Sprintf("READY=1\nSTATUS=Serving gRPC on %s, REST on %s.", s.grpc, s.http))
			m.hears(t, serving)
			s.hangup(t)
			m.hears(t, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\nSTATUS=.+`)
			m.hears(t, serving)
			replace(t, certs.serverCert, "no certificate")
			s.hangup(t)
			m.hears(t, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*\nSTATUS=.+`)
			m.hears(t, serving+` A file cannot be used, and the last good one stays: see the log\.`)
			s.signal(t, syscall.SIGTERM)
			m.hears(t, `STOPPING=1\nSTATUS=Draining\.`)
			if code := s.awaitEnd(t); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// A manager that has gone costs a line of the log, and nothing else.
func TestNotifyNobody(t *testing.T) {
	t.Parallel()
	s := invocation{env: []string{"NOTIFY_SOCKET=/does/not/exist"}}.startServe(t, startAtlas(t))
	s.awaitOutput(t, s.stderr, regexp.MustCompile(`"msg":"cannot notify the service manager","state":"READY=1"`))
}

// systemd gets the status that tokend waits for something before it serves.
func TestNotifyWaiting(t *testing.T) {
	t.Parallel()
	address := strings.TrimSuffix(socketPath(t), "grpc.sock") + "notify"
	m, agent, em := newManager(t, address), spiffetest.NewAgent(t), startAtlas(t)
	p := invocation{
		args: slices.Concat([]string{"serve", "--spiffe-socket=" + agent.Addr()}, freePorts, atlasFlags(t, em)), env: []string{"NOTIFY_SOCKET=" + address},
	}.start(t)
	m.hears(t, "STATUS=Waiting for an X.509-SVID from the SPIFFE agent.")
	agent.Give(spiffetest.NewTrustDomain(t, "prod.internal").Issue("/tokend"))
	agent.Start()
	m.hears(t, "READY=1\nSTATUS=Serving .+")
	p.signal(t, syscall.SIGTERM)
}
