package emulator_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func get(path string) call { return call{method: "GET", path: path} }

func TestControlFaults(t *testing.T) {
	em := start(t, emulator.Config{})
	jwt := em.Org(0).JWT()
	const fault = `{"operation":"create","times":2,"after_effect":true,"informational":1,"header":{"Retry-After":["7"]},` +
		`"status":429,"content_type":"text/plain","body":"no","shape":"drip","delay":"1ms","interval":"1µs"}`
	listed := `[{"id":1,` + fault[1:] + `]`
	if response, body := post("/_emulator/faults", fault).do(t, em); response.StatusCode != 201 || body != `{"id":1}` {
		t.Errorf("%s %s", response.Status, body)
	}
	if _, body := get("/_emulator/faults").do(t, em); body != listed {
		t.Errorf("faults are\n%s, want\n%s", body, listed)
	}
	response, body := createWith(jwt).do(t, em)
	if diff := cmp.Diff(result{429, "no"}, result{response.StatusCode, body}); diff != "" {
		t.Error(diff)
	}
	if _, body := get("/_emulator/faults").do(t, em); body != strings.Replace(listed, `"times":2`, `"times":1`, 1) {
		t.Errorf("after one use: %s", body)
	}
	for path, want := range map[string]int{"/_emulator/faults/x": 404, "/_emulator/faults/2": 404, "/_emulator/faults/1": 204} {
		if response, _ := (call{method: "DELETE", path: path}).do(t, em); response.StatusCode != want {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	createWith(jwt).field(t, em, 201, "token")

	post("/_emulator/faults", `{"drop":"reset"}`).do(t, em)
	get("/_emulator/counters").do(t, em) // meets no fault
	if response, _ := (call{method: "DELETE", path: "/_emulator/faults"}).do(t, em); response.StatusCode != 204 {
		t.Error(response.Status)
	}
	if _, body := get("/_emulator/faults").do(t, em); body != "[]" {
		t.Errorf("faults are %s", body)
	}
	createWith(jwt).field(t, em, 201, "token")
}

func TestControlRefuses(t *testing.T) {
	em := start(t, emulator.Config{})
	for name, test := range map[string]struct {
		call call
		want result
	}{
		"misspelt":     {post("/_emulator/faults", `{"statis":500}`), result{400, `{"detail":"json: unknown field \"statis\""}`}},
		"impossible":   {post("/_emulator/faults", `{"operation":"x"}`), result{400, `{"detail":"unknown operation \"x\""}`}},
		"no org":       {post("/_emulator/jwts", `{"org":2}`), result{400, `{"detail":"no org 2: there are 2, from 0"}`}},
		"JWT not JSON": {post("/_emulator/jwts", ``), result{400, `{"detail":"EOF"}`}},
		"no such path": {get("/_emulator/x"), result{404, `{"detail":"Not found."}`}},
	} {
		t.Run(name, func(t *testing.T) {
			response, body := test.call.do(t, em)
			if diff := cmp.Diff(test.want, result{response.StatusCode, body}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestControlJWTs(t *testing.T) {
	em := start(t, emulator.Config{})
	expired := post("/_emulator/jwts", `{"org":1,"lifetime":"-1m","age":"2m"}`).field(t, em, 201, "jwt")
	if p := decode(t, expired); p.OrgID != em.Org(1).ID || p.Exp-p.OrigIat != 60 {
		t.Errorf("%+v", p)
	}
	if response, _ := createWith(expired).do(t, em); response.StatusCode != 401 {
		t.Error(response.Status)
	}
	good := post("/_emulator/jwts", `{}`).field(t, em, 201, "jwt")
	createWith(good).field(t, em, 201, "token")
	if response, _ := post("/_emulator/revocations", `{"jwt":"`+good+`"}`).do(t, em); response.StatusCode != 204 {
		t.Error(response.Status)
	}
	if response, _ := createWith(good).do(t, em); response.StatusCode != 401 {
		t.Error(response.Status)
	}
}

func TestControlShowsWhatHappened(t *testing.T) {
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
