package emulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// control serves the paths below /_emulator.
func (em *Emulator) control(w http.ResponseWriter, r *http.Request, body []byte) {
	a := em.controlAnswer(r, body)
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if a.contentType != "" {
		w.Header().Set("Content-Type", a.contentType)
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body)
}

func (em *Emulator) controlAnswer(r *http.Request, body []byte) answer {
	path := strings.TrimPrefix(r.URL.Path, controlPath)
	if id, ok := strings.CutPrefix(path, "/faults/"); ok && r.Method == http.MethodDelete {
		return em.deleteFault(id)
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
		em.RemoveFaults()
		return answer{status: http.StatusNoContent}
	case "POST /jwts":
		return em.postJWT(body)
	case "POST /revocations":
		return em.postRevocation(body)
	}
	return notFound()
}

// faultJSON is a Fault on the wire.
type faultJSON struct {
	ID            int         `json:"id,omitempty"`
	Operation     Operation   `json:"operation,omitempty"`
	Times         int         `json:"times,omitempty"`
	Delay         duration    `json:"delay,omitempty"`
	EvenIfGone    bool        `json:"even_if_gone,omitempty"`
	AfterEffect   bool        `json:"after_effect,omitempty"`
	Informational int         `json:"informational,omitempty"`
	Header        http.Header `json:"header,omitempty"`
	HeaderBytes   int         `json:"header_bytes,omitempty"`
	Status        int         `json:"status,omitempty"`
	ContentType   string      `json:"content_type,omitempty"`
	Body          string      `json:"body,omitempty"`
	Shape         Shape       `json:"shape,omitempty"`
	Interval      duration    `json:"interval,omitempty"`
	Drop          Drop        `json:"drop,omitempty"`
}

// duration is written as time.Duration prints it.
type duration time.Duration

func (d duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = duration(parsed)
	return err
}

func (f faultJSON) fault() Fault {
	return Fault{
		On: f.Operation, Times: f.Times, Delay: time.Duration(f.Delay), EvenIfGone: f.EvenIfGone, AfterEffect: f.AfterEffect,
		Informational: f.Informational, Header: f.Header, HeaderBytes: f.HeaderBytes,
		Status: f.Status, ContentType: f.ContentType, Body: f.Body,
		Shape: f.Shape, Interval: time.Duration(f.Interval), Drop: f.Drop,
	}
}

func (em *Emulator) listFaults() answer {
	list := []faultJSON{}
	for _, f := range em.faults.list() {
		list = append(list, faultJSON{
			ID: f.id, Operation: f.On, Times: f.left, Delay: duration(f.Delay), EvenIfGone: f.EvenIfGone, AfterEffect: f.AfterEffect,
			Informational: f.Informational, Header: f.Header, HeaderBytes: f.HeaderBytes,
			Status: f.Status, ContentType: f.ContentType, Body: f.Body,
			Shape: f.Shape, Interval: duration(f.Interval), Drop: f.Drop,
		})
	}
	return jsonAnswer(http.StatusOK, list)
}

func (em *Emulator) postFault(body []byte) answer {
	var wire faultJSON
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	f := wire.fault()
	if err := f.validate(); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	return jsonAnswer(http.StatusCreated, map[string]int{"id": em.faults.add(f)})
}

func (em *Emulator) deleteFault(text string) answer {
	id, err := strconv.Atoi(text)
	if err != nil || !em.faults.remove(id) {
		return notFound()
	}
	return answer{status: http.StatusNoContent}
}

func (em *Emulator) postJWT(body []byte) answer {
	var wire struct {
		Org       int      `json:"org"`
		Lifetime  duration `json:"lifetime"`
		Age       duration `json:"age"`
		Forged    bool     `json:"forged"`
		Algorithm string   `json:"algorithm"`
	}
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	if wire.Org < 0 || wire.Org >= len(em.atlas.orgs) {
		return detail(http.StatusBadRequest, fmt.Sprintf("no org %d: there are %d, from 0", wire.Org, len(em.atlas.orgs)))
	}
	spec := JWT{
		Lifetime: time.Duration(wire.Lifetime), Age: time.Duration(wire.Age), Forged: wire.Forged, Algorithm: wire.Algorithm,
	}
	if err := spec.validate(); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	return jsonAnswer(http.StatusCreated, map[string]string{"jwt": em.Org(wire.Org).MintJWT(spec)})
}

func (em *Emulator) postRevocation(body []byte) answer {
	var wire struct {
		JWT string `json:"jwt"`
	}
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	em.Revoke(wire.JWT)
	return answer{status: http.StatusNoContent}
}

// decodeStrictly decodes one JSON value, without unknown fields, and nothing
// after it: a misspelt fault would otherwise be a fault that never happens.
func decodeStrictly(body []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}
