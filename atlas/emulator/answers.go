package emulator

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// answer is a response before any fault touches it.
type answer struct {
	status      int
	contentType string
	header      http.Header
	body        []byte
}

func jsonAnswer(status int, value any) answer {
	body, err := json.Marshal(value)
	if err != nil {
		panic("emulator: " + err.Error()) // only for values that JSON does not have
	}
	return answer{status: status, contentType: "application/json", header: http.Header{}, body: body}
}

// detail is the shape of errors that are not about a field.
func detail(status int, text string) answer {
	return jsonAnswer(status, map[string]string{"detail": text})
}

// fieldError is the shape of errors about what was sent. The field
// "non_field_errors" is for all of it.
func fieldError(field, text string) answer {
	return jsonAnswer(http.StatusBadRequest, map[string][]string{field: {text}})
}

func nonFieldError(text string) answer { return fieldError("non_field_errors", text) }

func unauthorized(text string) answer {
	a := detail(http.StatusUnauthorized, text)
	a.header.Set("WWW-Authenticate", `JWT realm="api"`)
	return a
}

func notFound() answer { return detail(http.StatusNotFound, "Not found.") }

func methodNotAllowed(method string, allowed []string) answer {
	a := detail(http.StatusMethodNotAllowed, fmt.Sprintf("Method %q not allowed.", method))
	a.header.Set("Allow", strings.Join(allowed, ", "))
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
	switch wait := header.Get("Retry-After"); {
	case status == http.StatusUnauthorized:
		return unauthorized("Authentication credentials were not provided.")
	case status == http.StatusForbidden:
		return forbidden()
	case status == http.StatusNotFound:
		return notFound()
	case status == http.StatusTooManyRequests && wait != "":
		return detail(status, "Request was throttled. Expected available in "+wait+" seconds.")
	case status == http.StatusTooManyRequests:
		return detail(status, "Request was throttled.")
	case status == http.StatusBadRequest || status == http.StatusConflict:
		a := nonFieldError(http.StatusText(status))
		a.status = status
		return a
	}
	return detail(status, http.StatusText(status))
}

func forbidden() answer {
	return detail(http.StatusForbidden, "You do not have permission to perform this action.")
}
