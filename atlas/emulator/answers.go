package emulator

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
)

const jsonType = "application/json"

// answer is a response before any fault touches it.
type answer struct {
	status      int
	contentType string // "": without
	header      http.Header
	body        []byte
}

// writeHeader puts everything but the body on the wire.
func (a answer) writeHeader(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.Header()["Content-Type"] = nil // else net/http guesses one
	if a.contentType != "" {
		w.Header().Set("Content-Type", a.contentType)
	}
	w.WriteHeader(a.status)
}

func (a answer) write(w http.ResponseWriter) {
	a.writeHeader(w)
	_, _ = w.Write(a.body) // the client may have left
}

func jsonAnswer(status int, value any) answer {
	body, err := json.Marshal(value)
	if err != nil {
		panic("emulator: " + err.Error()) // only for values that JSON does not have
	}
	return answer{status: status, contentType: jsonType, body: body}
}

func noContent() answer { return answer{status: http.StatusNoContent} }

// detail is the shape of errors that are not about a field.
func detail(status int, text string) answer {
	return jsonAnswer(status, map[string]string{"detail": text})
}

// fieldError is the shape of errors about what was sent. The field "non_field_errors" is for all of
// it.
func fieldError(field, text string) answer {
	return jsonAnswer(http.StatusBadRequest, map[string][]string{field: {text}})
}

func nonFieldError(text string) answer { return fieldError("non_field_errors", text) }

func unauthorized(text string) answer {
	a := detail(http.StatusUnauthorized, text)
	a.header = http.Header{"Www-Authenticate": {`JWT realm="api"`}}
	return a
}

func notFound() answer { return detail(http.StatusNotFound, "Not found.") }

func methodNotAllowed(method string, allowed []string) answer {
	a := detail(http.StatusMethodNotAllowed, fmt.Sprintf("Method %q not allowed.", method))
	a.header = http.Header{"Allow": {strings.Join(allowed, ", ")}}
	return a
}

// movedTo is Django's redirect to the path with the right slash.
func movedTo(path, query string) answer {
	if query != "" {
		path += "?" + query
	}
	return answer{
		status:      http.StatusMovedPermanently,
		contentType: "text/html; charset=utf-8",
		header:      http.Header{"Location": {path}},
	}
}

// errorAnswer is what Django would say with this status.
func errorAnswer(status int, header http.Header) answer {
	switch status {
	case http.StatusUnauthorized:
		return unauthorized("Authentication credentials were not provided.")
	case http.StatusForbidden:
		return detail(status, "You do not have permission to perform this action.")
	case http.StatusNotFound:
		return notFound()
	case http.StatusTooManyRequests:
		if seconds := header.Get("Retry-After"); seconds != "" {
			return detail(status, "Request was throttled. Expected available in "+seconds+" seconds.")
		}
		return detail(status, "Request was throttled.")
	case http.StatusBadRequest, http.StatusConflict:
		a := nonFieldError(http.StatusText(status))
		a.status = status
		return a
	}
	return detail(status, http.StatusText(status))
}
