package atlas

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// A probe has no credential, changes nothing, and sees how the clocks differ.
func TestProbe(t *testing.T) {
	em, err := emulator.Start(emulator.Config{Now: func() time.Time { return time.Now().Add(time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	client := newTestClient(t, Config{BaseURL: em.URL(), RootCAs: em.CertPool()})
	got, err := client.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.StatusCode != http.StatusMethodNotAllowed || got.Protocol != "HTTP/2.0" || got.Certificate == nil || !got.HasClock {
		t.Errorf("%+v", got)
	}
	if got.Clock > time.Hour || got.Clock < time.Hour-time.Second-10*time.Second {
		t.Errorf("the clock is %v ahead, want an hour", got.Clock)
	}
	if r := em.LastRequest(); em.Calls(emulator.Any) != 1 || em.Calls(emulator.Other) != 1 || r.Header.Get("Authorization") != "" {
		t.Errorf("Atlas got %+v", r)
	}

	em.Inject(emulator.Fault{Status: 302, Header: http.Header{"Date": {"yesterday"}, "Location": {"https://elsewhere.example/"}}})
	if got, err := client.Probe(t.Context()); err != nil || got.StatusCode != http.StatusFound || got.HasClock {
		t.Errorf("a redirect: %+v, %v", got, err)
	}

	stranger := newTestClient(t, Config{BaseURL: em.URL()})
	_, err = stranger.Probe(t.Context())
	var e *Error
	if !errors.As(err, &e) || e.Op != OpProbe || e.Kind != KindTLS || e.Sent {
		t.Errorf("not trusted: %v", err)
	}
}

func TestClockAhead(t *testing.T) {
	at := func(seconds float64) time.Time { return time.Unix(1_700_000_000, int64(seconds*1e9)) }
	for _, tc := range []struct{ date, before, after, want float64 }{
		{100, 100.2, 100.4, 0},  // cut off to the second
		{100, 99.7, 100.1, 0},   // the second began meanwhile
		{100, 101.5, 102, -0.5}, // 100.999 at the latest
		{105, 100, 102, 3},
		{100, 100, 130, 0}, // at some time between
	} {
		got := clockAhead(at(tc.date), at(tc.before), at(tc.after))
		if want := time.Duration(tc.want * 1e9); got.Round(time.Millisecond) != want {
			t.Errorf("%+v: got %v", tc, got)
		}
	}
}
