package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// failure is one way in which a call can fail, as printed by internal/apierror/errortable.
type failure struct {
	Reason         string // as in ErrorInfo
	Status         int
	Waits          bool // it has a Retry-After
	OutcomeUnknown bool // only a delete fails so
	Body           any  // that of the answer
}

// example returns the name of its example.
func (f failure) example() string {
	if f.OutcomeUnknown && f.Reason != "DELETE_OUTCOME_UNKNOWN" {
		return f.Reason + "-outcome-unknown"
	}
	return f.Reason
}

// summary returns the title of its example.
func (f failure) summary() string {
	if f.OutcomeUnknown {
		return f.Reason + ": the delete may have taken effect"
	}
	return f.Reason
}

// readFailures asks the service's own code, compiled with the code that buf has just generated.
func readFailures(ctx context.Context, root string, stderr io.Writer) ([]failure, error) {
	out, err := output(exec.CommandContext(ctx, "go", "run", "./internal/apierror/errortable"), root, stderr)
	if err != nil {
		return nil, err
	}
	var failures []failure
	err = json.Unmarshal(out, &failures)
	return failures, err
}

// reason is one of the proto's enum ErrorReason.
type reason struct {
	name    string // without the prefix
	comment string
}

const reasonEnum = "forsta.ephemeraltoken.v1.ErrorReason"

// readReasons reads the descriptors, because generated code has no comments.
func readReasons(ctx context.Context, root string, stderr io.Writer) ([]reason, error) {
	build := exec.CommandContext(ctx, "go", "tool", "-modfile=tools/go.mod", "buf", "build", "--as-file-descriptor-set", "-o", "-")
	image, err := output(build, root, stderr)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(image, &set); err != nil {
		return nil, err
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return nil, err
	}
	found, err := files.FindDescriptorByName(reasonEnum)
	if err != nil {
		return nil, err
	}
	var reasons []reason
	values := found.(protoreflect.EnumDescriptor).Values()
	for i := range values.Len() {
		value := values.Get(i)
		if value.Number() == 0 {
			continue // never sent
		}
		comment := value.ParentFile().SourceLocations().ByDescriptor(value).LeadingComments
		reasons = append(reasons, reason{
			name:    strings.TrimPrefix(string(value.Name()), "ERROR_REASON_"),
			comment: strings.Join(strings.Fields(comment), " "),
		})
	}
	return reasons, nil
}

// output runs a command in dir and returns what it prints.
func output(cmd *exec.Cmd, dir string, stderr io.Writer) ([]byte, error) {
	var out bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w", cmd, err)
	}
	return out.Bytes(), nil
}

// checkFailures reports reasons that the proto and the code do not both have, and statuses that the
// code and errors.yaml do not both have.
func checkFailures(failures []failure, reasons []reason, patches object) error {
	var promised []string
	for _, r := range reasons {
		promised = append(promised, r.name)
	}
	slices.Sort(promised)
	if given := reasonsOf(failures); !slices.Equal(given, promised) {
		return fmt.Errorf("internal/apierror/apierror.go has the reasons %q, error_reason.proto has %q", given, promised)
	}
	var statuses []string
	for status := range byStatus(failures) {
		statuses = append(statuses, status)
	}
	slices.Sort(statuses)
	if have := slices.Sorted(maps.Keys(patches)); !slices.Equal(have, statuses) {
		return fmt.Errorf("%serrors.yaml has the statuses %q, internal/apierror/apierror.go has %q", topicsPath, have, statuses)
	}
	return nil
}

// reasonsOf returns the reasons of failures, sorted and without duplicates.
func reasonsOf(failures []failure) []string {
	var names []string
	for _, f := range failures {
		names = append(names, f.Reason)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func byStatus(failures []failure) map[string][]failure {
	groups := map[string][]failure{}
	for _, f := range failures {
		status := strconv.Itoa(f.Status)
		groups[status] = append(groups[status], f)
	}
	return groups
}

// failuresOf returns the failures that an operation can have.
func failuresOf(verb string, failures []failure) []failure {
	return slices.DeleteFunc(slices.Clone(failures), func(f failure) bool { return f.OutcomeUnknown && verb != "DELETE" })
}

// addReasons adds the schema of a reason. Client generators read x-enum-descriptions.
func addReasons(document object, reasons []reason) {
	var names, comments []any
	var list strings.Builder
	list.WriteString("Why a call failed: gRPC code / HTTP status, the cause and what to do.\n")
	for _, r := range reasons {
		names, comments = append(names, r.name), append(comments, r.comment)
		fmt.Fprintf(&list, "\n- `%s`: %s", r.name, r.comment)
	}
	in(document, "components", "schemas")[reasonEnum] = object{
		"type": "string", "enum": names, "x-enum-descriptions": comments, "description": list.String(),
	}
}

func addExamples(document object, failures []failure) {
	for _, f := range failures {
		in(document, "components", "examples")[f.example()] = object{"summary": f.summary(), "value": f.Body}
	}
}

// addCommonHeaders adds the headers that every response has.
func addCommonHeaders(responses object) {
	for status := range responses {
		mergePatch(responses[status], object{"headers": commonHeaders()})
	}
}

func commonHeaders() object {
	return object{
		"X-Request-Id":           ref("headers", "RequestId"),
		"Cache-Control":          ref("headers", "CacheControl"),
		"X-Content-Type-Options": ref("headers", "ContentTypeOptions"),

		"Access-Control-Allow-Origin":   ref("headers", "AccessControlAllowOrigin"),
		"Access-Control-Expose-Headers": ref("headers", "AccessControlExposeHeaders"),
		"Vary":                          ref("headers", "Vary"),
	}
}

func ref(kind, name string) object { return object{"$ref": "#/components/" + kind + "/" + name} }

// addFailures adds the errors of an operation to its responses: for each status, its headers and
// its reasons with an example of each.
func addFailures(responses, patches object, failures []failure) {
	groups := byStatus(failures)
	for _, status := range slices.Sorted(maps.Keys(groups)) {
		response := errorResponse(groups[status])
		mergePatch(response, patches[status])
		response["description"] = fmt.Sprint(response["description"], explanation(groups[status]))
		mergePatch(response, responses[status]) // what is the operation's own
		responses[status] = response
	}
}

// explanation describes failures with the same status, after errors.yaml's description.
func explanation(failures []failure) string {
	text := "\n\nReasons: `" + strings.Join(reasonsOf(failures), "`, `") + "`."
	if slices.ContainsFunc(failures, func(f failure) bool { return f.OutcomeUnknown }) {
		text += "\n\nIf the ErrorInfo's metadata has `outcome: unknown`, the delete may have taken effect. Do not repeat it blindly. There is no `Retry-After`."
	}
	return text
}

// errorResponse returns the response for failures with the same status.
func errorResponse(failures []failure) object {
	examples, headers := object{}, commonHeaders()
	for _, f := range failures {
		examples[f.example()] = ref("examples", f.example())
		if f.Waits {
			headers["Retry-After"] = ref("headers", "RetryAfter")
		}
	}
	return object{
		"headers": headers,
		"content": object{"application/json": object{"schema": ref("schemas", "google.rpc.Status"), "examples": examples}},
	}
}
