package rest

import (
	"net/http"
	"slices"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// routes maps each REST path to its verbs, sorted.
type routes map[string][]string

// serviceRoutes reads the routes from where they are declared: the google.api.http annotations in the proto.
func serviceRoutes(file protoreflect.FileDescriptor) routes {
	found := routes{}
	for i := range file.Services().Len() {
		methods := file.Services().Get(i).Methods()
		for j := range methods.Len() {
			rule, ok := proto.GetExtension(methods.Get(j).Options(), annotations.E_Http).(*annotations.HttpRule)
			if !ok {
				continue
			}
			verb, path := verbAndPath(rule)
			found[path] = append(found[path], verb)
		}
	}
	for _, verbs := range found {
		slices.Sort(verbs)
	}
	return found
}

// verbAndPath covers the rules that the proto uses. A new kind is noticed at start.
func verbAndPath(rule *annotations.HttpRule) (verb, path string) {
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Post:
		return http.MethodPost, p.Post
	case *annotations.HttpRule_Delete:
		return http.MethodDelete, p.Delete
	}
	panic("rest: the proto has an HTTP rule of a kind that REST routing does not know")
}

// logName names a request for the log. An unknown path or verb is not repeated: somebody may have put a secret there.
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
