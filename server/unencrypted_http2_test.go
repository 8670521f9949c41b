package server_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// http2Caller speaks HTTP/2 with prior knowledge to the plaintext REST listener.
func http2Caller(t *testing.T, s *testutil.Service) testutil.RESTCaller {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DialContext: s.DialContext}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return testutil.RESTCaller{Base: "http://" + s.HTTPAddr().String(), Client: &http.Client{Transport: transport}}
}

// TestUnencryptedHTTP2 checks that the plaintext REST listener speaks HTTP/2 to clients that start
// with its preface, and HTTP/1.1 to others.
func TestUnencryptedHTTP2(t *testing.T) {
	t.Parallel()
	s := testutil.Start(t, testutil.Plaintext)
	c := http2Caller(t, s)
	jwt := testutil.Credential(s.Atlas)
	for _, op := range []testutil.Operation{testutil.Create, testutil.Delete} {
		got := c.Call(testutil.Context(t), op, jwt...)
		map[testutil.Operation]testutil.Want{testutil.Create: testutil.WantCreated, testutil.Delete: testutil.WantDeleted}[op].Check(t, got)
	}
	if got := c.Call(testutil.Context(t), testutil.Create); got.Reason != "CREDENTIAL_MISSING" {
		t.Errorf("without a credential: %+v", got)
	}
	if got := c.Call(testutil.Context(t), testutil.Create, append(jwt, "x-large", strings.Repeat("x", 20<<10))...); got.Reason != "HEADERS_TOO_LARGE" || got.HTTP != 431 {
		t.Errorf("with headers over the limit: %+v", got)
	}
	testutil.WantCreated.Check(t, s.RESTCaller(t).Call(testutil.Context(t), testutil.Create, jwt...))

	t.Run("settings", func(t *testing.T) {
		framer := http2.NewFramer(nil, s.RawHTTP2(t, testutil.REST, false).Conn)
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		settings, ok := frame.(*http2.SettingsFrame)
		if !ok {
			t.Fatalf("the first frame is %v", frame)
		}
		if most, ok := settings.Value(http2.SettingMaxConcurrentStreams); !ok || most != 100 {
			t.Errorf("a connection may have %d streams", most)
		}
		if most, ok := settings.Value(http2.SettingMaxHeaderListSize); !ok || most < 128<<10 || most > 129<<10 {
			t.Errorf("headers may have %d bytes", most)
		}
	})
}

// TestUnencryptedHTTP2Drain checks that a drain answers calls in progress and sends GOAWAY.
func TestUnencryptedHTTP2Drain(t *testing.T) {
	testutil.RunVirtual(t, func(t *testing.T, v *testutil.Virtual) {
		s := v.Start(t, testutil.Plaintext, func(c *server.Config, _ *atlas.Config) { c.DrainDelay = 200 * time.Millisecond })
		gate := s.Atlas.Hold(emulator.Create)
		answer := testutil.Async(testutil.Context(t), http2Caller(t, s), testutil.Create, testutil.Credential(s.Atlas)...)
		if err := gate.Wait(testutil.Context(t), 1); err != nil {
			t.Fatal(err)
		}
		idle := s.RawHTTP2(t, testutil.REST, false)
		stopped := make(chan error, 1)
		go func() { stopped <- s.Stop() }()
		if !receivesGoAway(idle) {
			t.Error("an idle client receives no GOAWAY")
		}
		select {
		case err := <-stopped:
			t.Fatalf("the server stopped with a call in progress: %v", err)
		default:
		}
		gate.Release()
		testutil.WantCreated.Check(t, <-answer)
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
}
