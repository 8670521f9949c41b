package emulator

import (
	"encoding/json"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	basePath    = "/v1"
	controlPath = "/_emulator"
)

// Operation is one of Atlas's operations.
type Operation string

// The operations.
const (
	Any     Operation = ""        // for faults, gates and Calls: every request
	Login   Operation = "login"   // POST /login/
	Refresh Operation = "refresh" // POST /api-token-refresh/
	Create  Operation = "create"  // POST /ephemeral-token
	Delete  Operation = "delete"  // DELETE /ephemeral-token
	Other   Operation = "other"   // a path, slash or method that Atlas does not have
)

var operations = []Operation{Any, Login, Refresh, Create, Delete, Other}

func (op Operation) matches(other Operation) bool { return op == Any || op == other }

// route is one operation of Atlas.
type route struct {
	op      Operation
	method  string
	path    string // below basePath
	success int    // the status when all is well
	do      func(*atlas, *http.Request, []byte) answer
}

var routes = []route{
	{Login, http.MethodPost, "/login/", http.StatusOK, (*atlas).login},
	{Refresh, http.MethodPost, "/api-token-refresh/", http.StatusOK, (*atlas).refresh},
	{Create, http.MethodPost, "/ephemeral-token", http.StatusCreated, (*atlas).create},
	{Delete, http.MethodDelete, "/ephemeral-token", http.StatusNoContent, (*atlas).delete},
}

// routeFor returns the route of a request; for an unknown one, a route that answers with the error.
func routeFor(r *http.Request) route {
	path, below := strings.CutPrefix(r.URL.Path, basePath)
	if !below {
		return fixed(notFound())
	}
	var allowed []string
	for _, candidate := range routes {
		switch {
		case candidate.path == path && candidate.method == r.Method:
			return candidate
		case candidate.path == path:
			allowed = append(allowed, candidate.method)
		case strings.TrimSuffix(candidate.path, "/") == strings.TrimSuffix(path, "/"):
			return fixed(answer{status: http.StatusMovedPermanently, header: http.Header{"Location": {basePath + candidate.path}}})
		}
	}
	if allowed != nil {
		a := detail(http.StatusMethodNotAllowed, fmt.Sprintf("Method %q not allowed.", r.Method))
		a.header.Set("Allow", strings.Join(allowed, ", "))
		return fixed(a)
	}
	return fixed(notFound())
}

func fixed(a answer) route {
	return route{op: Other, success: http.StatusOK, do: func(*atlas, *http.Request, []byte) answer { return a }}
}

// login trades a bot's secret for a JWT.
func (a *atlas) login(r *http.Request, body []byte) answer {
	secret, bad := textField(r, body, "userauthtoken")
	if bad != nil {
		return *bad
	}
	o := a.orgOfSecret(secret)
	if o == nil {
		return nonFieldError("Unable to log in with provided credentials.")
	}
	user := map[string]any{"id": o.userID, "org": map[string]string{"id": o.ID}}
	return jsonAnswer(http.StatusOK, map[string]any{"token": o.issue(a.Now().Unix()), "user": user})
}

// refresh trades a live JWT for one that lives longer.
func (a *atlas) refresh(r *http.Request, body []byte) answer {
	signed, bad := textField(r, body, "token")
	if bad != nil {
		return *bad
	}
	c, o, err := a.verify(signed)
	switch {
	case err != nil:
		return nonFieldError(err.Error())
	case a.Now().After(time.Unix(c.OrigIat, 0).Add(a.RefreshWindow)):
		return nonFieldError("Refresh has expired.")
	}
	return jsonAnswer(http.StatusOK, map[string]string{"token": o.issue(c.OrigIat)})
}

// create answers with the org's ephemeral token.
func (a *atlas) create(r *http.Request, _ []byte) answer {
	org, bad := a.authenticate(r)
	if bad != nil {
		return *bad
	}
	return jsonAnswer(http.StatusCreated, map[string]string{"token": a.currentToken(org)})
}

// delete sets the org's ephemeral token to null.
func (a *atlas) delete(r *http.Request, _ []byte) answer {
	org, bad := a.authenticate(r)
	if bad != nil {
		return *bad
	}
	a.deleteToken(org)
	return noContent()
}

// authenticate finds the org of the request's JWT.
func (a *atlas) authenticate(r *http.Request) (*Org, *answer) {
	words := strings.Fields(strings.Join(r.Header.Values("Authorization"), ",")) // joined as WSGI does
	if len(words) != 2 || !strings.EqualFold(words[0], "JWT") {
		return nil, new(unauthorized("Authentication credentials were not provided."))
	}
	_, org, err := a.verify(words[1])
	if err != nil {
		return nil, new(unauthorized(err.Error()))
	}
	return org, nil
}

// textField returns a field of the JSON object that was sent, which must be a string.
func textField(r *http.Request, body []byte, field string) (string, *answer) {
	contentType := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != jsonType {
		return "", new(detail(http.StatusUnsupportedMediaType, fmt.Sprintf("Unsupported media type %q in request.", contentType)))
	}
	object := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &object); err != nil && len(body) > 0 {
		return "", new(detail(http.StatusBadRequest, "JSON parse error"))
	}
	var value string
	if err := json.Unmarshal(object[field], &value); err != nil || value == "" {
		return "", new(fieldError(field, "This field is required."))
	}
	return value, nil
}

const jsonType = "application/json"

// answer is a response before any fault touches it.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// writeHeader puts everything but the body on the wire.
func (a answer) writeHeader(w http.ResponseWriter) {
	w.Header()["Content-Type"] = nil // else net/http guesses one
	maps.Copy(w.Header(), a.header)
	w.WriteHeader(a.status)
}

func jsonAnswer(status int, value any) answer {
	body, err := json.Marshal(value)
	if err != nil {
		panic("emulator: " + err.Error()) // only for values that JSON does not have
	}
	return answer{status: status, header: http.Header{"Content-Type": {jsonType}}, body: body}
}

func noContent() answer { return answer{status: http.StatusNoContent} }

// detail is the shape of errors that are not about a field.
func detail(status int, text string) answer {
	return jsonAnswer(status, map[string]string{"detail": text})
}

// fieldError is the shape of errors about what was sent.
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

// orgOf returns the id of the org of the request's JWT, or "" without a valid one.
func (a *atlas) orgOf(r *http.Request) string {
	if org, bad := a.authenticate(r); bad == nil {
		return org.ID
	}
	return ""
}
