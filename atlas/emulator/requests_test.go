package emulator_test

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func TestCounters(t *testing.T) {
	em := start(t, emulator.Config{})
	if em.Calls(emulator.Any) != 0 || em.LastRequest().Method != "" || len(em.Requests()) != 0 {
		t.Error("not empty at first")
	}
	jwt := em.Org(0).JWT()
	createWith(jwt).do(t, em)
	createWith("wrong").do(t, em)
	deleteWith(jwt).do(t, em)
	post("/login/", `{}`).do(t, em)
	post("/login", `{}`).do(t, em)
	createWith("").do(t, em)

	want := emulator.Counters{
		Calls: map[emulator.Operation]int{emulator.Create: 3, emulator.Delete: 1, emulator.Login: 1, emulator.Other: 1},
		Statuses: map[emulator.Operation]map[int]int{
			emulator.Create: {201: 1, 401: 2}, emulator.Delete: {204: 1}, emulator.Login: {400: 1}, emulator.Other: {301: 1},
		},
	}
	got := em.Counters()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	got.Calls[emulator.Create] = 100 // a copy
	if em.Calls(emulator.Create) != 3 || em.Calls(emulator.Refresh) != 0 || em.Calls(emulator.Any) != 6 {
		t.Errorf("calls: %d, %d, %d", em.Calls(emulator.Create), em.Calls(emulator.Refresh), em.Calls(emulator.Any))
	}
}

func TestRequests(t *testing.T) {
	em := start(t, emulator.Config{})
	createWith("a").do(t, em)
	c := post("/login/?next=x", `{"a": 1}`)
	c.authorization = "JWT b"
	c.do(t, em)
	want := []emulator.Request{
		{Operation: emulator.Create, Method: "POST", Path: "/v1/ephemeral-token", Proto: "HTTP/2.0"},
		{Operation: emulator.Login, Method: "POST", Path: "/v1/login/?next=x", Proto: "HTTP/2.0"},
	}
	got := em.Requests()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(emulator.Request{}, "Header", "RemoteAddr")); diff != "" {
		t.Error(diff)
	}
	last := em.LastRequest()
	if diff := cmp.Diff(got[1], last); diff != "" {
		t.Error(diff)
	}
	if last.Header.Get("Authorization") != "JWT b" || last.Header.Get("Content-Type") != "application/json" {
		t.Errorf("header is %v", last.Header)
	}
}

// TestConcurrentUse is for the race detector. Each org must still have one token at a time.
func TestConcurrentUse(t *testing.T) {
	em := start(t, emulator.Config{})
	const workers, rounds = 16, 20
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			org := em.Org(i % 2)
			for range rounds {
				remove := em.Inject(emulator.Fault{On: emulator.Create, Times: 1, Status: 503})
				for _, c := range []call{createWith(org.JWT()), deleteWith(org.JWT()), post("/login/", `{"userauthtoken": "`+org.UserAuthToken()+`"}`)} {
					if _, _, err := c.try(t.Context(), em); err != nil {
						t.Error(err)
					}
				}
				remove()
				org.RotateUserAuthToken()
				_, _, _, _ = em.Counters(), em.Requests(), em.Tokens(), em.Tick()
			}
		})
	}
	group.Wait()
	c := em.Counters()
	if n := c.Statuses[emulator.Create][http.StatusCreated] + c.Statuses[emulator.Create][503]; n != workers*rounds {
		t.Errorf("%d creates answered: %+v", n, c)
	}
	if err := lifeInOrder(em.Tokens()); err != nil {
		t.Error(err)
	}
}

// lifeInOrder checks that each org had one token at a time.
func lifeInOrder(tokens []emulator.Token) error {
	last := map[string]emulator.Token{}
	for _, token := range tokens {
		before, known := last[token.OrgID]
		if known && (before.Deleted <= before.Minted || before.Deleted >= token.Minted) {
			return fmt.Errorf("%+v comes after %+v", token, before)
		}
		last[token.OrgID] = token
	}
	return nil
}
