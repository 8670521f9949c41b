package emulator

import (
	"net/http"
	"strings"
)

const (
	basePath    = "/v1"
	controlPath = "/_emulator"
)

// Operation is one of the things that Atlas can be asked for.
type Operation string

// The operations.
const (
	Any           Operation = ""               // for faults, gates and Calls: every request
	Login         Operation = "login"          // POST /login/
	Refresh       Operation = "refresh"        // POST /api-token-refresh/
	Create        Operation = "create"         // POST /ephemeral-token
	Delete        Operation = "delete"         // DELETE /ephemeral-token
	EphemeralUser Operation = "ephemeral-user" // POST /ephemeral-user/
	Other         Operation = "other"          // a path, slash or method that Atlas does not have
)

var operations = []Operation{Any, Login, Refresh, Create, Delete, EphemeralUser, Other}

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
	{EphemeralUser, http.MethodPost, "/ephemeral-user/", http.StatusCreated, (*atlas).ephemeralUser},
}

// routeFor finds the route of a request. A request that none fits gets one
// that says so.
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
			return fixed(movedTo(basePath+candidate.path, r.URL.RawQuery))
		}
	}
	if allowed != nil {
		return fixed(methodNotAllowed(r.Method, allowed))
	}
	return fixed(notFound())
}

func fixed(a answer) route {
	return route{op: Other, success: http.StatusOK, do: func(*atlas, *http.Request, []byte) answer { return a }}
}
