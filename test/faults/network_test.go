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

// atlasName is what the certificate of an emulator with OtherHostCertificate is for.
const atlasName = "atlas.invalid"

// resolveBy has all look-ups of this process answered by answer until the test ends.
func resolveBy(t *testing.T, answer func(question dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody)) {
	t.Helper()
	resolveOver(t, func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe() // which is no packet connection, so messages have their length before them
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

// timeoutConn is a connection to a name server that never answers, which nobody has to wait for.
type timeoutConn struct{ net.Conn }

func (timeoutConn) Read([]byte) (int, error)         { return 0, os.ErrDeadlineExceeded }
func (timeoutConn) Write(p []byte) (int, error)      { return len(p), nil }
func (timeoutConn) Close() error                     { return nil }
func (timeoutConn) SetDeadline(time.Time) error      { return nil }
func (timeoutConn) SetReadDeadline(time.Time) error  { return nil }
func (timeoutConn) SetWriteDeadline(time.Time) error { return nil }

// TestFault26DNS: a name that is not found, or not in time, is as an Atlas that cannot be reached:
// both are repeated.
func TestFault26DNS(t *testing.T) {
	lookups := func(t *testing.T, s *testutil.Service, c testutil.Caller) {
		testutil.NotCalled(t, s.Atlas)
		for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
			testutil.WantUnreachable.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(s.Atlas)...))
		}
	}
	t.Run("NXDOMAIN", func(t *testing.T) {
		resolveBy(t, func(dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
			return dnsmessage.RCodeNameError, nil
		})
		testutil.Matrix(t, lookups, atName)
	})
	t.Run("timeout", func(t *testing.T) {
		resolveOver(t, func(context.Context, string, string) (net.Conn, error) { return timeoutConn{}, nil })
		testutil.Matrix(t, lookups, atName)
	})
	t.Run("back for the second try", func(t *testing.T) {
		em, err := emulator.Start(emulator.Config{Certificate: emulator.OtherHostCertificate})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(em.Close)
		for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
			var left atomic.Int32
			left.Store(2) // of the first look-up: A and AAAA, and each in the domains that this machine searches
			resolveBy(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
				switch {
				case q.Name.String() != atlasName+".":
					return dnsmessage.RCodeNameError, nil
				case left.Add(-1) >= 0:
					return dnsmessage.RCodeNameError, nil
				case q.Type == dnsmessage.TypeA:
					return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}
				}
				return dnsmessage.RCodeSuccess, nil
			})
			s := testutil.StartWith(t, testutil.Plaintext, em, atName)
			want := map[testutil.Operation]testutil.Want{testutil.Create: testutil.WantCreated, testutil.Delete: testutil.WantDeleted}[op]
			want.Check(t, s.GRPCCaller(t).Call(testutil.Context(t), op, testutil.Credential(em)...))
		}
	})
}

// TestFault27IPv6BlackHole: where IPv6 swallows what is sent, IPv4 is tried before anybody gives
// up.
func TestFault27IPv6BlackHole(t *testing.T) {
	em, err := emulator.Start(emulator.Config{Certificate: emulator.OtherHostCertificate})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	blackHole(t, netip.MustParseAddrPort(strings.TrimSuffix(strings.TrimPrefix(em.URL(), "https://"), "/v1")).Port())
	resolveBy(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.ResourceBody) {
		switch {
		case q.Name.String() != atlasName+".":
			return dnsmessage.RCodeNameError, nil
		case q.Type == dnsmessage.TypeA:
			return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}
		case q.Type == dnsmessage.TypeAAAA:
			return dnsmessage.RCodeSuccess, []dnsmessage.ResourceBody{&dnsmessage.AAAAResource{AAAA: [16]byte{15: 1}}}
		}
		return dnsmessage.RCodeSuccess, nil
	})
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS, testutil.MutualTLS} {
		s := testutil.StartWith(t, mode, em, atName)
		for name, c := range s.Callers(t) {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				testutil.WantCreated.Check(t, c.Call(testutil.Context(t), testutil.Create, testutil.Credential(em)...))
				testutil.WantDeleted.Check(t, c.Call(testutil.Context(t), testutil.Delete, testutil.Credential(em)...))
			})
		}
	}
}

// blackHole is a port of ::1 that takes no connection and refuses none: one that listens, with its
// queue full.
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

func TestFault25Certificate(t *testing.T) {
	t.Parallel()
	for _, kind := range []emulator.CertificateKind{emulator.ExpiredCertificate, emulator.OtherHostCertificate, emulator.SelfSignedCertificate} {
		t.Run(string(kind), func(t *testing.T) {
			em, err := emulator.Start(emulator.Config{Certificate: kind})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(em.Close)
			for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS, testutil.MutualTLS} {
				s := testutil.StartWith(t, mode, em)
				for name, c := range s.Callers(t) {
					t.Run(string(mode)+"/"+name, func(t *testing.T) {
						for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
							testutil.Want{Code: codes.Unavailable, HTTP: 503, Reason: "ATLAS_TLS", Retry: time.Second}.Check(t, c.Call(testutil.Context(t), op, testutil.Credential(em)...))
						}
					})
				}
			}
			if calls := em.Calls(emulator.Any); calls != 0 {
				t.Errorf("Atlas was called %d times, want 0", calls)
			}
		})
	}
}

// TestFault01Refused: no connection at all. A delete that was provably not sent says so.
func TestFault01Refused(t *testing.T) {
	// Not parallel: another test's emulator could get the port that is closed here.
	em, err := emulator.Start(emulator.Config{})
	if err != nil {
		t.Fatal(err)
	}
	headers := testutil.Credential(em)
	em.Close()
	for _, mode := range []testutil.Security{testutil.Plaintext, testutil.ServerTLS, testutil.MutualTLS} {
		s := testutil.StartWith(t, mode, em)
		for name, c := range s.Callers(t) {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				testutil.WantUnreachable.Check(t, c.Call(testutil.Context(t), testutil.Create, headers...))
				testutil.WantUnreachable.Check(t, c.Call(testutil.Context(t), testutil.Delete, headers...))
			})
		}
	}
}
