package rest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// routes maps each REST path to its verbs, sorted.
type routes map[string][]string

// serviceRoutes reads the routes from the google.api.http annotations in the proto.
func serviceRoutes(file protoreflect.FileDescriptor) (routes, error) {
	found := routes{}
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			rule, ok := proto.GetExtension(methods.Get(j).Options(), annotations.E_Http).(*annotations.HttpRule)
			if !ok || rule == nil {
				continue
			}
			verb, path := verbAndPath(rule)
			if verb == "" || strings.Contains(path, "{") || len(rule.GetAdditionalBindings()) > 0 {
				return nil, fmt.Errorf("rest: the HTTP rule of %s is not supported: give it one verb and a path without parameters", methods.Get(j).FullName())
			}
			found[path] = append(found[path], verb)
		}
	}
	for _, verbs := range found {
		slices.Sort(verbs)
	}
	return found, nil
}

// verbAndPath returns an empty verb for a custom rule.
func verbAndPath(rule *annotations.HttpRule) (verb, path string) {
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return http.MethodGet, p.Get
	case *annotations.HttpRule_Post:
		return http.MethodPost, p.Post
	case *annotations.HttpRule_Put:
		return http.MethodPut, p.Put
	case *annotations.HttpRule_Patch:
		return http.MethodPatch, p.Patch
	case *annotations.HttpRule_Delete:
		return http.MethodDelete, p.Delete
	}
	return "", ""
}

// logName names a request for the log, without an unknown path or verb: either may contain a
// secret.
func (rt routes) logName(r *http.Request) string {
	verbs, ok := rt[r.URL.EscapedPath()]
	if !ok {
		return "unknown route"
	}
	if !slices.Contains(verbs, r.Method) {
		return "unknown verb " + r.URL.Path
	}
	return r.Method + " " + r.URL.Path
}
