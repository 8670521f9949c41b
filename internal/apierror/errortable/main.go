// Command errortable prints the errors of the public contract as JSON, one for each form in which a
// REST call can fail. tools/generate adds them to the OpenAPI document.
package main

import (
	"encoding/json"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/ForstaLabs/ephemeral-token-service/internal/apierror"
)

// answer is one form of one error.
type answer struct {
	Reason         string          `json:"reason"` // as in ErrorInfo
	Status         int             `json:"status"`
	Waits          bool            `json:"waits"`          // it has a Retry-After
	OutcomeUnknown bool            `json:"outcomeUnknown"` // only a delete fails so
	Body           json.RawMessage `json:"body"`
}

func main() {
	var answers []answer
	for _, reason := range slices.Sorted(apierror.Reasons()) {
		if reason != apierror.DeleteOutcomeUnknown {
			answers = append(answers, answerTo(&apierror.Error{Reason: reason}))
		}
		if apierror.OutcomeMayBeUnknown(reason) {
			answers = append(answers, answerTo(&apierror.Error{Reason: reason, OutcomeUnknown: true}))
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		panic(err)
	}
}

func answerTo(e *apierror.Error) answer {
	body, err := protojson.Marshal(e.GRPCStatus().Proto())
	if err != nil {
		panic(err) // cannot happen: the details' types are linked in
	}
	return answer{e.ReasonName(), e.HTTPStatus(), e.RetryDelay() > 0, e.OutcomeUnknown, body}
}
