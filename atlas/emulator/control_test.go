package emulator_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func get(path string) call { return call{method: "GET", path: path} }

func TestControlFaults(t *testing.T) {
	em := start(t, emulator.Config{})
	jwt := em.Org(0).JWT()
	control := func(c call, status int, want string) {
		t.Helper()
		if response, body := c.do(t, em); response.StatusCode != status || body != want {
			t.Errorf("%s %s: %s %s, want %d %s", c.method, c.path, response.Status, body, status, want)
		}
	}
	remove := func(path string) call { return call{method: "DELETE", path: path} }
	const notFound = `{"detail":"Not found."}`

	control(post("/_emulator/faults", `{"operation":"create","after_effect":true,"header":{"retry-after":["7"]},`+
		`"status":429,"body":"no","shape":"drip","delay":"1ms","for":"1h"}`), 201, `{"id":1}`)
	response, body := createWith(jwt).do(t, em)
	if diff := cmp.Diff(result{429, "no"}, result{response.StatusCode, body}); diff != "" {
		t.Error(diff)
	}
	if em.Org(0).EphemeralToken() == "" || response.Header.Get("Retry-After") != "7" {
		t.Errorf("the token is %q, the header %v", em.Org(0).EphemeralToken(), response.Header)
	}
	control(remove("/_emulator/faults/x"), 404, notFound)
	control(remove("/_emulator/faults/2"), 404, notFound)
	control(remove("/_emulator/faults/1"), 204, "")
	createWith(jwt).field(t, em, 201, "token")

	control(post("/_emulator/faults", `{"drop":"reset"}`), 201, `{"id":2}`)
	get("/_emulator/counters").do(t, em) // meets no fault
	control(remove("/_emulator/faults"), 204, "")
	createWith(jwt).field(t, em, 201, "token")

	control(post("/_emulator/faults", `{"statis":500}`), 400, `{"detail":"json: unknown field \"statis\""}`)
	control(post("/_emulator/faults", `{"operation":"x"}`), 400, `{"detail":"unknown operation \"x\""}`)
	control(post("/_emulator/faults", ``), 400, `{"detail":"EOF"}`)
	control(get("/_emulator/x"), 404, notFound)
}

func TestControlCounters(t *testing.T) {
	em := start(t, emulator.Config{})
	createWith(em.Org(0).JWT()).field(t, em, 201, "token")
	show := func(path string, into any) {
		t.Helper()
		_, body := get("/_emulator/"+path).do(t, em)
		if err := json.Unmarshal([]byte(body), into); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
	}
	var counters emulator.Counters
	show("counters", &counters)
	if diff := cmp.Diff(em.Counters(), counters); diff != "" {
		t.Error(diff)
	}
	var requests []emulator.Request
	show("requests", &requests)
	if diff := cmp.Diff(em.Requests(), requests); diff != "" || len(requests) != 1 {
		t.Error(len(requests), diff)
	}
	var tokens []emulator.Token
	show("tokens", &tokens)
	if diff := cmp.Diff(em.Tokens(), tokens); diff != "" || len(tokens) != 1 {
		t.Error(len(tokens), diff)
	}
}

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
	last := em.LastRequest()
	if last.Operation != emulator.Create || last.Method != "POST" || last.Path != "/v1/ephemeral-token" || last.Header.Get("Authorization") != "JWT " {
		t.Errorf("the last request is %+v", last)
	}

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
