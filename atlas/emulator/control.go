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

// control answers the paths below /_emulator.
func (em *Emulator) control(r *http.Request, body []byte) answer {
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
		em.faults.clear()
		return noContent()
	case "POST /jwts":
		return em.postJWT(body)
	case "POST /revocations":
		return em.postRevocation(body)
	}
	return notFound()
}

// faultJSON is a Fault on the wire, where its durations are text.
type faultJSON struct {
	ID int `json:"id,omitempty"`
	Fault
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
		list = append(list, faultJSON{f.id, f.Fault, duration(f.Delay), duration(f.Interval)})
	}
	return jsonAnswer(http.StatusOK, list)
}

func (em *Emulator) postFault(body []byte) answer {
	var wire faultJSON
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	f := wire.Fault
	f.Delay, f.Interval = time.Duration(wire.Delay), time.Duration(wire.Interval)
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
	return noContent()
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

func (em *Emulator) postRevocation(body []byte) answer {
	var wire struct {
		JWT string `json:"jwt"`
	}
	if err := decodeStrictly(body, &wire); err != nil {
		return detail(http.StatusBadRequest, err.Error())
	}
	em.Revoke(wire.JWT)
	return noContent()
}

// decodeStrictly decodes one JSON value and refuses unknown fields: a misspelt fault would
// otherwise silently do nothing.
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
