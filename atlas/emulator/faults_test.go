package emulator_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestFaultStatus(t *testing.T) {
	em := start(t, emulator.Config{})
	for name, test := range map[string]struct {
		fault       emulator.Fault
		want        result
		contentType string
	}{
		"503":            {emulator.Fault{Status: 503}, result{503, `{"detail":"Service Unavailable"}`}, "application/json"},
		"401":            {emulator.Fault{Status: 401}, result{401, `{"detail":"Unauthorized"}`}, "application/json"},
		"429":            {emulator.Fault{Status: 429, Header: http.Header{"Retry-After": {"30"}}}, result{429, `{"detail":"Too Many Requests"}`}, "application/json"},
		"HTML":           {emulator.Fault{Status: 502, Body: "<html>", Header: http.Header{"Content-Type": {"text/html"}}}, result{502, "<html>"}, "text/html"},
		"empty":          {emulator.Fault{Status: 500, Shape: emulator.Empty}, result{500, ""}, "application/json"},
		"redirect":       {emulator.Fault{Status: 302}, result{302, ""}, ""},
		"no valid JSON":  {emulator.Fault{Body: `{"token"`}, result{201, `{"token"`}, "application/json"},
		"empty success":  {emulator.Fault{Shape: emulator.Empty}, result{201, ""}, "application/json"},
		"not UTF-8":      {emulator.Fault{Body: "{\"token\":\"\xff\"}", Status: 200}, result{200, "{\"token\":\"\xff\"}"}, "application/json"},
		"204 for create": {emulator.Fault{Status: 204}, result{204, ""}, "application/json"},
	} {
		t.Run(name, func(t *testing.T) {
			test.fault.On, test.fault.Times = emulator.Create, 1
			em.Inject(test.fault)
			response, body := createWith(em.Org(0).JWT()).do(t, em)
			if diff := cmp.Diff(test.want, result{response.StatusCode, body}); diff != "" {
				t.Error(diff)
			}
			if got, want := response.Header.Get("Retry-After"), test.fault.Header.Get("Retry-After"); got != want {
				t.Errorf("Retry-After is %q, want %q", got, want)
			}
			if got := response.Header.Get("Content-Type"); got != test.contentType {
				t.Errorf("Content-Type is %q, want %q", got, test.contentType)
			}
		})
	}
}

// TestFaultOtherSuccess checks that a status below 300 alone keeps the genuine body and the effect.
func TestFaultOtherSuccess(t *testing.T) {
	em := start(t, emulator.Config{})
	em.Inject(emulator.Fault{Status: 202})
	token := createWith(em.Org(0).JWT()).field(t, em, 202, "token")
	if token != em.Org(0).EphemeralToken() {
		t.Errorf("token is %q", token)
	}
	deleteWith(em.Org(0).JWT()).do(t, em)
	if em.Org(0).EphemeralToken() != "" {
		t.Error("not deleted")
	}
}

func TestFaultSelectsOperationAndTimes(t *testing.T) {
	em := start(t, emulator.Config{})
	jwt := em.Org(0).JWT()
	em.Inject(emulator.Fault{On: emulator.Create, Times: 2, Status: 500})
	em.Inject(emulator.Fault{On: emulator.Create, Times: 1, Status: 501})
	remove := em.Inject(emulator.Fault{On: emulator.Delete, Status: 502})
	em.Inject(emulator.Fault{On: emulator.Other, Status: 503})
	var creates, deletes []int
	for range 4 {
		response, _ := createWith(jwt).do(t, em)
		creates = append(creates, response.StatusCode)
		response, _ = deleteWith(jwt).do(t, em)
		deletes = append(deletes, response.StatusCode)
		if len(deletes) == 3 {
			remove()
			remove()
		}
	}
	if diff := cmp.Diff([]int{500, 500, 501, 201}, creates); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{502, 502, 502, 204}, deletes); diff != "" {
		t.Error(diff)
	}
	if response, _ := post("/login", "").do(t, em); response.StatusCode != 503 {
		t.Error(response.Status)
	}
	(call{method: "DELETE", path: "/_emulator/faults"}).do(t, em)
	if response, _ := post("/login", "").do(t, em); response.StatusCode != 301 {
		t.Error(response.Status)
	}
}

func TestInjectRefusesImpossibleFaults(t *testing.T) {
	em := start(t, emulator.Config{})
	for name, fault := range map[string]emulator.Fault{
		"operation": {On: "x"},
		"status":    {Status: 100},
		"shape":     {Shape: "x"},
		"drop":      {Drop: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			em.Inject(fault)
		})
	}
}

func TestFaultDelay(t *testing.T) {
	em := start(t, emulator.Config{})
	em.Inject(emulator.Fault{Times: 1, Delay: 20 * time.Millisecond, AfterEffect: true})
	em.Inject(emulator.Fault{Times: 1, Delay: 10 * time.Millisecond})
	for _, least := range []time.Duration{20 * time.Millisecond, 10 * time.Millisecond} {
		began := time.Now()
		createWith(em.Org(0).JWT()).field(t, em, 201, "token")
		if took := time.Since(began); took < least {
			t.Errorf("took %v, want at least %v", took, least)
		}
	}
}

// TestFaultDelayEndsWithClient checks that whether the operation took effect depends on the fault
// alone.
func TestFaultDelayEndsWithClient(t *testing.T) {
	for _, after := range []bool{false, true} {
		em := start(t, emulator.Config{})
		em.Inject(emulator.Fault{Delay: time.Hour, AfterEffect: after})
		gate := em.Hold(emulator.Create)
		if after {
			gate.Release()
			gate = em.HoldAnswer(emulator.Create)
		}
		ctx, cancel := context.WithCancel(t.Context())
		statuses := goCreate(ctx, em, 1)
		if err := gate.Wait(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		gate.Release() // into the delay
		cancel()
		if status := <-statuses; status != 0 {
			t.Errorf("status %d", status)
		}
		em.Close() // waits for the handler
		if minted := len(em.Tokens()) == 1; minted != after {
			t.Errorf("after effect %v: minted %v", after, minted)
		}
		want := map[emulator.Operation]map[int]int{emulator.Create: {0: 1}}
		if diff := cmp.Diff(want, em.Counters().Statuses); diff != "" {
			t.Error(diff)
		}
	}
}

func TestFaultDrop(t *testing.T) {
	eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
		for _, test := range []struct {
			drop      emulator.Drop
			after     bool
			wantReset bool
		}{
			{emulator.ResetConnection, false, true},
			{emulator.ResetConnection, true, true},
			{emulator.CloseConnection, false, false},
			{emulator.CloseConnection, true, false},
			{emulator.AbortStream, false, false},
			{emulator.AbortStream, true, false},
		} {
			create := createWith(em.Org(0).JWT())
			create.client = client
			create.field(t, em, 201, "token")

			em.Inject(emulator.Fault{On: emulator.Delete, Times: 1, Drop: test.drop, AfterEffect: test.after})
			drop := deleteWith(em.Org(0).JWT())
			drop.client = client
			_, _, err := drop.try(t.Context(), em)
			if err == nil {
				t.Fatalf("%+v: answered", test)
			}
			if reset := errors.Is(err, syscall.ECONNRESET); reset != test.wantReset {
				t.Errorf("%+v: error is %v", test, err)
			}
			if deleted := em.Org(0).EphemeralToken() == ""; deleted != test.after {
				t.Errorf("%+v: deleted is %v", test, deleted)
			}
		}
		if n := em.Counters().Statuses[emulator.Delete][0]; n != 6 || em.Calls(emulator.Delete) != 6 {
			t.Errorf("%d unanswered of %d", n, em.Calls(emulator.Delete))
		}
	})
}

// connections is the number of connections that requests came on.
func connections(em *emulator.Emulator) int {
	seen := map[string]bool{}
	for _, request := range em.Requests() {
		seen[request.RemoteAddr] = true
	}
	return len(seen)
}

func TestFaultAbortStreamKeepsConnection(t *testing.T) {
	em := start(t, emulator.Config{})
	c := createWith(em.Org(0).JWT())
	c.client = newClient(t, em, true)
	for range 3 {
		c.do(t, em)
		em.Inject(emulator.Fault{Times: 1, Drop: emulator.AbortStream})
		if _, _, err := c.try(t.Context(), em); err == nil || !strings.Contains(err.Error(), "INTERNAL_ERROR") {
			t.Errorf("error is %v", err)
		}
	}
	if n := connections(em); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestFaultHeaders(t *testing.T) {
	eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
		c := createWith(em.Org(0).JWT())
		c.client = newClient(t, em, client.Transport.(*http.Transport).ForceAttemptHTTP2)
		c.client.Transport.(*http.Transport).MaxResponseHeaderBytes = 10_000
		for _, fault := range []emulator.Fault{{Drop: emulator.Flood1xx}, {Header: http.Header{"X-Padding": {strings.Repeat("x", 100_000)}}}} {
			fault.Times = 1
			em.Inject(fault)
			if _, _, err := c.try(t.Context(), em); err == nil {
				t.Errorf("the client accepts %+v", fault)
			}
		}
	})
}

func TestFaultBrokenBodies(t *testing.T) {
	const sent = `{"token":"0123456789"}`
	half := sent[:len(sent)/2]
	for _, test := range []struct {
		shape emulator.Shape
		want  string
	}{
		{emulator.Truncated, half},
		{emulator.Reset, half},
	} {
		t.Run(string(test.shape), func(t *testing.T) {
			eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
				em.Inject(emulator.Fault{Body: sent, Shape: test.shape})
				c := createWith(em.Org(0).JWT())
				c.client = client
				response, body, err := c.try(t.Context(), em)
				if err == nil || response == nil {
					t.Fatalf("error is %v", err)
				}
				if response.StatusCode != 201 || !strings.HasPrefix(test.want, body) {
					t.Errorf("%s %q", response.Status, body)
				}
				if test.shape != emulator.Reset && body != test.want { // a reset may overtake data
					t.Errorf("body is %q, want %q", body, test.want)
				}
				if reset := errors.Is(err, syscall.ECONNRESET); reset != (test.shape == emulator.Reset) {
					t.Errorf("error is %v", err)
				}
			})
		})
	}
}

func TestFaultDrip(t *testing.T) {
	eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
		em.Inject(emulator.Fault{Body: "abcd", Shape: emulator.Drip})
		c := createWith(em.Org(0).JWT())
		c.client = client
		if _, body := c.do(t, em); body != "abcd" {
			t.Errorf("body is %q", body)
		}
	})
}

func TestFaultStall(t *testing.T) {
	eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
		em.Inject(emulator.Fault{Shape: emulator.Stall})
		ctx, cancel := context.WithCancel(t.Context())
		response, err := client.Do(createWith(em.Org(0).JWT()).request(ctx, em))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != 201 {
			t.Error(response.Status)
		}
		cancel()
		if body, err := io.ReadAll(response.Body); !errors.Is(err, context.Canceled) || len(body) != 0 {
			t.Errorf("%q, %v", body, err)
		}
	})
}

func TestFaultEndless(t *testing.T) {
	eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
		em.Inject(emulator.Fault{Shape: emulator.Endless})
		response, err := client.Do(createWith(em.Org(0).JWT()).request(t.Context(), em))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		const much = 1 << 20
		if n, err := io.CopyN(io.Discard, response.Body, much); n != much || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

func TestFaultGzipBomb(t *testing.T) {
	em := start(t, emulator.Config{})
	em.Inject(emulator.Fault{Shape: emulator.GzipBomb})
	r := createWith(em.Org(0).JWT()).request(t.Context(), em)
	r.Header.Set("Accept-Encoding", "gzip") // so that the client leaves it compressed
	response, err := newClient(t, em, true).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	compressed, err := io.ReadAll(response.Body)
	if err != nil || len(compressed) > 1<<20 || response.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("%d bytes, %v", len(compressed), err)
	}
	inflated, err := inflatedLength(compressed)
	if err != nil || inflated < 8<<20 {
		t.Errorf("inflates to %d bytes, %v", inflated, err)
	}
}

func inflatedLength(compressed []byte) (int64, error) {
	z, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return 0, err
	}
	return io.Copy(io.Discard, z)
}
