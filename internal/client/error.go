package client

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	codepb "google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/gen/tokenclient"
)

// Error is a failed command.
type Error struct {
	Text    string  `json:"-"`
	Details failure `json:"error"`

	status int
}

// failure is a failed call as JSON.
type failure struct {
	Code           string `json:"code"`
	Reason         string `json:"reason,omitempty"` // absent if the service did not answer
	Message        string `json:"message"`
	RetryDelay     string `json:"retryDelay,omitempty"`
	MayHaveDeleted bool   `json:"mayHaveDeleted,omitempty"`
	RequestID      string `json:"requestId,omitempty"`
}

// Error returns the reason and what to do.
func (e *Error) Error() string { return e.Text }

// ExitStatus returns the exit status of the process.
func (e *Error) ExitStatus() int { return e.status }

// explain says why a call failed and what to do about it.
func (o options) explain(command string, err error, requestID string) *Error {
	st := status.Convert(err)
	details := failure{
		Code:           codepb.Code(st.Code()).String(), //nolint:gosec // both count the same 17 codes
		Message:        printable(cause(st.Message())),
		MayHaveDeleted: tokenclient.MayHaveDeleted(err),
		RequestID:      requestID,
	}
	if info := tokenclient.Info(err); info != nil {
		details.Reason = printable(info.GetReason())
	}
	delay, retry := tokenclient.RetryDelay(err)
	if retry {
		details.RetryDelay = delay.String()
	}
	text := fmt.Sprintf("%s: %s: %s", command, cmp.Or(details.Reason, details.Code), details.Message)
	exit := exitFailed
	switch {
	case details.MayHaveDeleted:
		exit = exitUnknown
		text += "; do not repeat it blindly: tokend create shows the current token"
	case retry:
		exit = exitRetry
		text += "; try again in " + delay.Round(time.Millisecond).String()
	case st.Code() == codes.Unauthenticated, st.Code() == codes.PermissionDenied, strings.HasPrefix(details.Reason, "CREDENTIAL_"):
		exit = exitDenied
	case details.Reason == "" && (st.Code() == codes.Unavailable || st.Code() == codes.DeadlineExceeded):
		exit = exitUnreachable
		text += "; " + o.adviceFor(details.Message)
	}
	if details.RequestID != "" {
		text += " (request id " + details.RequestID + ")"
	}
	return &Error{Text: text, Details: details, status: exit}
}

// cause returns the innermost text of an error: grpc-go wraps it for each layer.
func cause(text string) string {
	if i := strings.LastIndex(text, "desc = "); i >= 0 {
		text = strings.Trim(text[i+len("desc = "):], `"`)
	}
	return text
}

// adviceFor says what to do when no tokend answers. grpc-go has no types for these causes.
func (o options) adviceFor(cause string) string {
	for _, known := range []struct{ cause, advice string }{
		{"first record does not look like a TLS handshake", "this tokend listens without TLS: use --plaintext if that is right"},
		{"unknown authority", "give the authority of tokend's certificate with --ca-file"},
		{"certificate is valid for", "use a name in --addr that is in tokend's certificate"},
		{"cannot validate certificate for", "use a name in --addr that is in tokend's certificate"},
		{"certificate required", "give a client certificate that tokend trusts with --cert-file and --key-file"},
		{"server preface", "this tokend may expect TLS: leave out --plaintext"},
		{"health check failed", "tokend is not ready or is stopping: try again, or look at its /readyz"},
		{"no children to pick from", "check the name in --addr"}, // it has no address
	} {
		if strings.Contains(cause, known.cause) {
			return known.advice
		}
	}
	if o.established(cause) {
		return "tokend closed the connection: if it requires a client certificate, give --cert-file and --key-file"
	}
	return fmt.Sprintf("check that tokend listens for gRPC at %s", o.Addr)
}

// established reports whether the connection broke after the client's part of the TLS handshake. In
// TLS 1.3 a server that misses a client certificate refuses it then, and its alert may be lost.
func (o options) established(cause string) bool {
	if o.Plaintext || o.CertFile != "" {
		return false
	}
	return strings.Contains(cause, "broken pipe") || strings.Contains(cause, "connection reset") || strings.Contains(cause, "EOF")
}
