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

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestFaultBrokenBodies(t *testing.T) {
	const sent = `{"token":"0123456789"}`
	half := sent[:len(sent)/2]
	for _, test := range []struct {
		shape emulator.Shape
		want  string
	}{
		{emulator.Truncated, half},
		{emulator.Overlong, sent},
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

// A broken body takes the genuine token apart too, and the token is minted.
func TestFaultShapeOfGenuineAnswer(t *testing.T) {
	em := start(t, emulator.Config{})
	em.Inject(emulator.Fault{Shape: emulator.Overlong})
	_, body, err := createWith(em.Org(0).JWT()).try(t.Context(), em)
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(body, em.Org(0).EphemeralToken()) || len(em.Tokens()) != 1 {
		t.Errorf("%q, %v, minted %d", body, err, len(em.Tokens()))
	}
	if response, _ := deleteWith(em.Org(0).JWT()).do(t, em); response.StatusCode != 204 {
		t.Error(response.Status)
	}
}

func TestFaultDrip(t *testing.T) {
	eachProtocol(t, func(t *testing.T, em *emulator.Emulator, client *http.Client) {
		em.Inject(emulator.Fault{Body: "abcd", Shape: emulator.Drip, Interval: 5 * time.Millisecond})
		c := createWith(em.Org(0).JWT())
		c.client = client
		began := time.Now()
		if _, body := c.do(t, em); body != "abcd" {
			t.Errorf("body is %q", body)
		}
		if took := time.Since(began); took < 20*time.Millisecond {
			t.Errorf("took %v", took)
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
	response, err := em.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	compressed, err := io.ReadAll(response.Body)
	if err != nil || len(compressed) > 1<<20 || response.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("%d bytes, %v", len(compressed), err)
	}
	inflated, err := inflatedLength(compressed)
	if err != nil || inflated < 64<<20 {
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
