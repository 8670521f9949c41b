package emulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// control answers the paths below /_emulator.
func (em *Emulator) control(r *http.Request, body []byte) answer {
	path := strings.TrimPrefix(r.URL.Path, controlPath)
	if text, ok := strings.CutPrefix(path, "/faults/"); ok && r.Method == http.MethodDelete {
		if id, err := strconv.Atoi(text); err != nil || !em.faults.remove(id) {
			return notFound()
		}
		return noContent()
	}
	switch r.Method + " " + path {
	case "GET /counters":
		return jsonAnswer(http.StatusOK, em.Counters())
	case "GET /requests":
		return jsonAnswer(http.StatusOK, em.Requests())
	case "GET /tokens":
		return jsonAnswer(http.StatusOK, em.Tokens())
	case "GET /faults":
		return em.listFaults()
	case "POST /faults":
		return em.postFault(body)
	case "DELETE /faults":
		em.faults.clear()
		return noContent()
	case "POST /jwts":
		return em.postJWT(body)
	case "POST /revocations":
		var wire struct{ JWT string }
		if err := decodeStrictly(body, &wire); err != nil {
			return detail(http.StatusBadRequest, err.Error())
		}
		em.Revoke(wire.JWT)
		return noContent()
	}
	return notFound()
}

// faultJSON is a Fault on the wire, where its durations are text.
type faultJSON struct {
	ID int `json:"id,omitempty"`
	Fault
	For      duration `json:"for,omitempty"`
	Delay    duration `json:"delay,omitempty"`
	Interval duration `json:"interval,omitempty"`
}

// duration is written as time.Duration prints it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

func (em *Emulator) listFaults() answer {
	list := []faultJSON{}
	for _, f := range em.faults.list() {
		list = append(list, faultJSON{f.id, f.Fault, duration(f.For), duration(f.Delay), duration(f.Interval)})
	}
	return jsonAnswer(http.StatusOK, list)
}

func (em *Emulator) postFault(body []byte) answer {
	var wire faultJSON
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	f := wire.Fault
	f.For, f.Delay, f.Interval = time.Duration(wire.For), time.Duration(wire.Delay), time.Duration(wire.Interval)
	if err := f.validate(); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	return jsonAnswer(http.StatusCreated, map[string]int{"id": em.faults.add(f)})
}

func (em *Emulator) postJWT(body []byte) answer {
	var wire struct {
		Org      int      `json:"org"`
		Lifetime duration `json:"lifetime"`
		Age      duration `json:"age"`
		Forged   bool     `json:"forged"`
		Unsigned bool     `json:"unsigned"`
	}
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	if wire.Org < 0 || wire.Org >= len(em.atlas.orgs) {
		return detail(http.StatusBadRequest, fmt.Sprintf("no org %d: there are %d, from 0", wire.Org, len(em.atlas.orgs)))
	}
	return jsonAnswer(http.StatusCreated, map[string]string{"jwt": em.Org(wire.Org).MintJWT(JWT{
		Lifetime: time.Duration(wire.Lifetime), Age: time.Duration(wire.Age), Forged: wire.Forged, Unsigned: wire.Unsigned,
	})})
}

// decodeStrictly decodes one JSON value and refuses unknown fields: a misspelt fault would
// otherwise silently do nothing.
func decodeStrictly(body []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

// requestsKept bounds the memory of a long-lived emulator. The totals in Counters go on beyond it.
const requestsKept = 10_000

// Counters tell what the emulator was asked and what it answered.
type Counters struct {
	// Calls is the number of requests that arrived, held ones included.
	Calls map[Operation]int `json:"calls"`
	// Statuses is the number of answers begun, by operation and status. Status 0 stands for
	// requests that ended without one.
	Statuses map[Operation]map[int]int `json:"statuses"`
}

// Request is one request as it arrived.
type Request struct {
	Operation  Operation   `json:"operation"`
	Method     string      `json:"method"`
	Path       string      `json:"path"` // with the query, as it was sent
	Proto      string      `json:"proto"`
	RemoteAddr string      `json:"remote_addr"` // tells connections apart
	Header     http.Header `json:"header"`      // Authorization included
}

// Calls is the number of requests for op that arrived, or of all for Any.
func (em *Emulator) Calls(op Operation) int {
	sum := 0
	for other, n := range em.Counters().Calls {
		if op.matches(other) {
			sum += n
		}
	}
	return sum
}

// Counters is a copy of all counters.
func (em *Emulator) Counters() Counters {
	em.seen.mu.Lock()
	defer em.seen.mu.Unlock()
	c := Counters{Calls: maps.Clone(em.seen.totals.Calls), Statuses: map[Operation]map[int]int{}}
	for op, statuses := range em.seen.totals.Statuses {
		c.Statuses[op] = maps.Clone(statuses)
	}
	return c
}

// Requests are the latest 10,000 requests, oldest first.
func (em *Emulator) Requests() []Request {
	em.seen.mu.Lock()
	defer em.seen.mu.Unlock()
	return slices.Clone(em.seen.requests)
}

// LastRequest is the latest request, or the zero Request if there was none.
func (em *Emulator) LastRequest() Request {
	all := em.Requests()
	if len(all) == 0 {
		return Request{}
	}
	return all[len(all)-1]
}

type counters struct {
	mu       sync.Mutex
	totals   Counters  // guarded by mu
	requests []Request // guarded by mu
}

// arrived counts a request. The returned function must be called when its answer begins, with the
// status, or when it ends without one, with 0; only the first call counts.
func (c *counters) arrived(op Operation, r *http.Request) (answered func(status int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.totals.Calls[op]++
	if len(c.requests) == requestsKept {
		c.requests = slices.Delete(c.requests, 0, requestsKept/10)
	}
	c.requests = append(c.requests, Request{
		Operation: op, Method: r.Method, Path: r.RequestURI, Proto: r.Proto, RemoteAddr: r.RemoteAddr, Header: r.Header.Clone(),
	})
	var once sync.Once
	return func(status int) { once.Do(func() { c.answered(op, status) }) }
}

func (c *counters) answered(op Operation, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.totals.Statuses[op] == nil {
		c.totals.Statuses[op] = map[int]int{}
	}
	c.totals.Statuses[op][status]++
}
