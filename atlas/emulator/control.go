package emulator

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// control answers what is below /_emulator: a method and a path.
func (em *Emulator) control(call string, body []byte) answer {
	switch call {
	case "GET counters":
		return jsonAnswer(http.StatusOK, em.Counters())
	case "GET requests":
		return jsonAnswer(http.StatusOK, em.Requests())
	case "GET tokens":
		return jsonAnswer(http.StatusOK, em.Tokens())
	case "POST faults":
		return em.postFault(body)
	case "DELETE faults":
		em.faults.clear()
		return noContent()
	}
	text, _ := strings.CutPrefix(call, "DELETE faults/")
	if id, err := strconv.Atoi(text); err == nil && em.faults.remove(id) {
		return noContent()
	}
	return notFound()
}

// duration is a time.Duration that JSON has as text.
type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

func (em *Emulator) postFault(body []byte) answer {
	var wire struct {
		Fault
		For   duration `json:"for"`
		Delay duration `json:"delay"`
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields() // a misspelt fault would otherwise silently do nothing
	err := decoder.Decode(&wire)
	f := wire.Fault
	f.For, f.Delay = time.Duration(wire.For), time.Duration(wire.Delay)
	if err == nil {
		err = f.validate()
	}
	if err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	return jsonAnswer(http.StatusCreated, map[string]int{"id": em.faults.add(f)})
}

// requestsKept bounds the memory of a long-lived emulator. The totals in Counters go on beyond it.
const requestsKept = 10_000

// Counters count what the emulator was asked and what it answered.
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

func newCounters() counters {
	return counters{totals: Counters{Calls: map[Operation]int{}, Statuses: map[Operation]map[int]int{}}}
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
