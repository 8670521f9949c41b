package faults

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// atlasName is the name in the certificate of an emulator with OtherHostCertificate.
const atlasName = "atlas.invalid"

// resolveBy answers all look-ups of this process with answer until the test ends.
func resolveBy(t *testing.T, answer func(question dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody)) {
	t.Helper()
	resolveOver(t, func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe() // not a packet connection, so messages are preceded by their length
		go func() {
			defer server.Close()
			for {
				var head [2]byte
				if _, err := io.ReadFull(server, head[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(head[:]))
				if _, err := io.ReadFull(server, query); err != nil {
					return
				}
				reply := resolve(query, answer)
				if _, err := server.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
					return
				}
			}
		}()
		return client, nil
	})
}

func resolveOver(t *testing.T, dial func(context.Context, string, string) (net.Conn, error)) {
	t.Helper()
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: dial}
	t.Cleanup(func() { net.DefaultResolver = before })
}

func resolve(query []byte, answer func(dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody)) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		panic(err)
	}
	reply := dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}, Questions: m.Questions}
	code, bodies := answer(m.Questions[0])
	reply.RCode = code
	for _, body := range bodies {
		q := m.Questions[0]
		reply.Answers = append(reply.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: body})
	}
	packed, err := reply.Pack()
	if err != nil {
		panic(err)
	}
	return packed
}

// atName has the client look up Atlas's name.
func atName(_ *server.Config, a *atlas.Config) {
	_, port, _ := strings.Cut(strings.TrimPrefix(a.BaseURL, "https://"), ":")
	a.BaseURL = "https://" + atlasName + ":" + port
}

// timeoutConn is a connection to a name server that never answers; reads time out at once.
type timeoutConn struct{ net.Conn }

func (timeoutConn) Read([]byte) (int, error)         { return 0, os.ErrDeadlineExceeded }
func (timeoutConn) Write(p []byte) (int, error)      { return len(p), nil }
func (timeoutConn) Close() error                     { return nil }
func (timeoutConn) SetDeadline(time.Time) error      { return nil }
func (timeoutConn) SetReadDeadline(time.Time) error  { return nil }
func (timeoutConn) SetWriteDeadline(time.Time) error { return nil }

// TestFault26DNS checks that failed look-ups count as an unreachable Atlas, and are retried.
func TestFault26DNS(t *testing.T) {
	for name, fail := range map[string]func(*testing.T){
		"NXDOMAIN": func(t *testing.T) {
			resolveBy(t, func(dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
				return dnsmessage.RCodeNameError, nil
			})
		},
		"timeout": func(t *testing.T) {
			resolveOver(t, func(context.Context, string, string) (net.Conn, error) { return timeoutConn{}, nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			fail(t)
			s := testutil.Start(t, testutil.Plaintext, atName)
			testutil.NotCalled(t, s.Atlas)
			for _, c := range s.Callers(t) {
				for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
					testutil.WantUnreachable.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...))
				}
			}
		})
	}
	t.Run("resolved on the second try", func(t *testing.T) {
		em := startNamedAtlas(t)
		for op, want := range map[testutil.Operation]testutil.Want{testutil.Create: testutil.WantCreated, testutil.Delete: testutil.WantDeleted} {
			var left atomic.Int32
			left.Store(2) // the A and AAAA records of the first look-up
			resolveBy(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
				if q.Name.String() == atlasName+"." && left.Add(-1) >= 0 {
					return dnsmessage.RCodeNameError, nil
				}
				return loopback(q, false)
			})
			s := testutil.StartWith(t, testutil.Plaintext, em, atName)
			want.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), op, testutil.Credential(em)...))
		}
	})
}

// startNamedAtlas runs an emulator whose certificate is for atlasName.
func startNamedAtlas(t *testing.T) *emulator.Emulator {
	t.Helper()
	em, err := emulator.Start(emulator.Config{Certificate: emulator.OtherHostCertificate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return em
}

// loopback resolves atlasName to 127.0.0.1, and to ::1 with v6. Other names, such as those in the
// machine's search domains, do not exist.
func loopback(q dnsmessage.Question, v6 bool) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
	switch {
	case q.Name.String() != atlasName+".":
		return dnsmessage.RCodeNameError, nil
	case q.Type == dnsmessage.TypeA:
		return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}
	case q.Type == dnsmessage.TypeAAAA && v6:
		return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AAAAResource{AAAA: [16]byte{15: 1}}}
	}
	return dnsmessage.RCodeSuccess, nil
}

// TestFault27IPv6BlackHole checks that IPv4 is tried within the dial budget if IPv6 does not
// answer.
func TestFault27IPv6BlackHole(t *testing.T) {
	em := startNamedAtlas(t)
	blackHole(t, netip.MustParseAddrPort(strings.TrimSuffix(strings.TrimPrefix(em.URL(), "https://"), "/v1")).Port())
	resolveBy(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) { return loopback(q, true) })
	for _, c := range testutil.StartWith(t, testutil.Plaintext, em, atName).Callers(t) {
		testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
		testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(em)...))
	}
}

// blackHole makes a port of ::1 neither accept nor refuse connections: its listen queue is full.
func blackHole(t *testing.T, port uint16) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip("no IPv6: ", err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}); err != nil {
		t.Skip("no IPv6: ", err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	address := netip.AddrPortFrom(netip.IPv6Loopback(), port).String()
	for range 20 {
		conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Skip("a full queue does not hold up connections here")
}

// TestFault25Certificate checks that a certificate that cannot be verified is not accepted.
func TestFault25Certificate(t *testing.T) {
	t.Parallel()
	for _, kind := range []emulator.CertificateKind{emulator.ExpiredCertificate, emulator.OtherHostCertificate, emulator.SelfSignedCertificate} {
		t.Run(string(kind), func(t *testing.T) {
			testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
				em := v.StartAtlas(t, emulator.Config{Certificate: kind})
				testutil.NotCalled(t, em)
				for _, c := range v.StartWith(t, testutil.Plaintext, em).Callers(t) {
					for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
						testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_TLS", Retry: time.Second}.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(em)...))
					}
				}
			})
		})
	}
}

// TestFault01Refused checks refused connections. A delete that was provably not sent says so.
func TestFault01Refused(t *testing.T) {
	t.Parallel()
	testutil.Matrix(t, func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		headers := testutil.Credential(s.Atlas)
		s.Atlas.Close()
		testutil.WantUnreachable.Check(t, c.Call(testutil.Context(t), testutil.Create, headers...))
		testutil.WantUnreachable.Check(t, c.Call(testutil.Context(t), testutil.Delete, headers...))
	})
}
