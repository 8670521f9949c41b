package emulator_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

// goCreate calls create n times at once and returns where the statuses come.
func goCreate(ctx context.Context, em *emulator.Emulator, n int) <-chan int {
	statuses := make(chan int, n)
	for range n {
		go func() {
			response, _, err := createWith(em.Org(0).JWT()).try(ctx, em)
			if err != nil {
				statuses <- 0
				return
			}
			statuses <- response.StatusCode
		}()
	}
	return statuses
}

func TestHold(t *testing.T) {
	em := start(t, emulator.Config{})
	gate := em.Hold(emulator.Create)
	statuses := goCreate(t.Context(), em, 10)
	if err := gate.Wait(t.Context(), 10); err != nil {
		t.Fatal(err)
	}
	if len(em.Tokens()) != 0 || em.Calls(emulator.Create) != 10 || gate.Held() != 10 {
		t.Errorf("minted %d, calls %d, held %d", len(em.Tokens()), em.Calls(emulator.Create), gate.Held())
	}
	deleteWith(em.Org(0).JWT()).do(t, em) // passes

	gate.Pass(3)
	for range 3 {
		if status := <-statuses; status != 201 {
			t.Errorf("status %d", status)
		}
	}
	if gate.Held() != 7 {
		t.Errorf("held %d", gate.Held())
	}
	gate.Release()
	gate.Release() // harmless
	for range 7 {
		if status := <-statuses; status != 201 {
			t.Errorf("status %d", status)
		}
	}
	createWith(em.Org(0).JWT()).field(t, em, 201, "token") // no gate any more
}

func TestHoldAnswer(t *testing.T) {
	em := start(t, emulator.Config{})
	before, after := em.Hold(emulator.Any), em.HoldAnswer(emulator.Create)
	statuses := goCreate(t.Context(), em, 1)
	if err := before.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	before.Release()
	if err := after.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	late := em.Org(0).EphemeralToken()
	if late == "" {
		t.Error("no effect before the answer")
	}
	deleteWith(em.Org(0).JWT()).do(t, em)
	after.Release()
	if status := <-statuses; status != 201 || em.Org(0).EphemeralToken() != "" {
		t.Errorf("status %d, token %q", status, em.Org(0).EphemeralToken())
	}
}

func TestHeldRequestEndsWithClient(t *testing.T) {
	em := start(t, emulator.Config{})
	gate := em.Hold(emulator.Create)
	ctx, cancel := context.WithCancel(t.Context())
	statuses := goCreate(ctx, em, 1)
	if err := gate.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if status := <-statuses; status != 0 {
		t.Errorf("status %d", status)
	}
	em.Close() // waits for the handler
	if gate.Held() != 0 || len(em.Tokens()) != 0 {
		t.Errorf("held %d, minted %d", gate.Held(), len(em.Tokens()))
	}
}

func TestGateWaitEnds(t *testing.T) {
	em := start(t, emulator.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := em.Hold(emulator.Any).Wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}
