package emulator

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// requestsKept bounds the memory of a long-lived emulator. The totals in
// Counters go on beyond it.
const requestsKept = 10_000

// Counters tell what the emulator was asked and what it answered.
type Counters struct {
	// Calls is the number of requests that arrived, held ones included.
	Calls map[Operation]int `json:"calls"`
	// Statuses is the number of answers begun, by operation and status. Status
	// 0 stands for requests that ended without one.
	Statuses map[Operation]map[int]int `json:"statuses"`
	// InFlight is the number of requests that are not answered yet, and Peak
	// the most that there were at once.
	InFlight map[Operation]int `json:"in_flight"`
	Peak     map[Operation]int `json:"peak"`
	// Schemes is the number of requests by the first word of their
	// Authorization header; "" stands for requests without one.
	Schemes map[string]int `json:"schemes"`
	// Methods is the number of requests by HTTP method.
	Methods map[string]int `json:"methods"`
	// Connections is the number of TCP connections accepted.
	Connections int `json:"connections"`
}

// Request is one request as it arrived.
type Request struct {
	Operation  Operation   `json:"operation"`
	Method     string      `json:"method"`
	Path       string      `json:"path"` // with the query, as it was sent
	Proto      string      `json:"proto"`
	Host       string      `json:"host"`
	RemoteAddr string      `json:"remote_addr"` // tells connections apart
	Header     http.Header `json:"header"`      // Authorization included
	BodyLength int         `json:"body_length"`
}

// Calls is the number of requests for op that arrived, or of all for Any.
func (em *Emulator) Calls(op Operation) int {
	em.seen.mu.Lock()
	defer em.seen.mu.Unlock()
	if op != Any {
		return em.seen.totals.Calls[op]
	}
	sum := 0
	for _, n := range em.seen.totals.Calls {
		sum += n
	}
	return sum
}

// Counters is a copy of all counters.
func (em *Emulator) Counters() Counters {
	em.seen.mu.Lock()
	defer em.seen.mu.Unlock()
	c := em.seen.totals
	c.Calls, c.InFlight, c.Peak = maps.Clone(c.Calls), maps.Clone(c.InFlight), maps.Clone(c.Peak)
	c.Schemes, c.Methods = maps.Clone(c.Schemes), maps.Clone(c.Methods)
	c.Statuses = make(map[Operation]map[int]int)
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
	em.seen.mu.Lock()
	defer em.seen.mu.Unlock()
	if len(em.seen.requests) == 0 {
		return Request{}
	}
	return em.seen.requests[len(em.seen.requests)-1]
}

type counters struct {
	mu       sync.Mutex
	totals   Counters  // guarded by mu
	requests []Request // guarded by mu
}

func newCounters() counters {
	return counters{totals: Counters{
		Calls:    map[Operation]int{},
		Statuses: map[Operation]map[int]int{},
		InFlight: map[Operation]int{},
		Peak:     map[Operation]int{},
		Schemes:  map[string]int{},
		Methods:  map[string]int{},
	}}
}

func (c *counters) connected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.totals.Connections++
}

// arrived counts a request. The returned function must be called when its
// answer begins, with the status, or when it ends without one, with 0; only
// the first call counts.
func (c *counters) arrived(op Operation, r *http.Request, bodyLength int) (answered func(status int)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &c.totals
	t.Calls[op]++
	t.InFlight[op]++
	t.Peak[op] = max(t.Peak[op], t.InFlight[op])
	t.Methods[r.Method]++
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	t.Schemes[scheme]++
	if len(c.requests) == requestsKept {
		c.requests = slices.Delete(c.requests, 0, requestsKept/10)
	}
	c.requests = append(c.requests, Request{
		Operation: op, Method: r.Method, Path: r.RequestURI, Proto: r.Proto, Host: r.Host, RemoteAddr: r.RemoteAddr,
		Header: r.Header.Clone(), BodyLength: bodyLength,
	})
	var once sync.Once
	return func(status int) { once.Do(func() { c.answered(op, status) }) }
}

func (c *counters) answered(op Operation, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.totals.InFlight[op]--
	if c.totals.Statuses[op] == nil {
		c.totals.Statuses[op] = map[int]int{}
	}
	c.totals.Statuses[op][status]++
}
