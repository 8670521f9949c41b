package server_test

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
)

// TestForgedByAPage: a page of another origin cannot have a browser call with the client
// certificate that the browser holds, and that it has tried is on record as any other refusal is:
// whose certificate it was, and what was to be done with it.
func TestForgedByAPage(t *testing.T) {
	t.Parallel()
	s := testutil.StartIdentity(t, "")
	c := s.Callers(t)["REST"]
	refused := testutil.Want{Code: codes.PermissionDenied, HTTP: 403, Reason: "CALLER_NOT_PERMITTED"}
	for name, tc := range map[string]struct {
		headers []string
		want    *testutil.Want // nil: what went well
	}{
		"a program":                  {nil, nil},
		"a page of ours":             {[]string{"sec-fetch-site", "same-origin", "origin", "https://tokens.example"}, nil},
		"the address bar":            {[]string{"sec-fetch-site", "none"}, nil},
		"another site":               {[]string{"sec-fetch-site", "cross-site", "origin", "https://evil.example"}, &refused},
		"another host of the site":   {[]string{"sec-fetch-site", "same-site", "origin", "https://blog.example"}, &refused},
		"another site, old browser":  {[]string{"origin", "https://evil.example"}, &refused},
		"a sandboxed page":           {[]string{"origin", "null"}, &refused},
		"another site, with a token": {[]string{"sec-fetch-site", "cross-site", "authorization", "JWT a.b.c"}, &testutil.WantAmbiguous},
	} {
		t.Run(name, func(t *testing.T) {
			for op, well := range map[testutil.Operation]testutil.Want{testutil.Create: testutil.WantCreated, testutil.Delete: testutil.WantDeleted} {
				before, recorded := s.Atlas.Calls(emulator.Create)+s.Atlas.Calls(emulator.Delete), len(s.Records(t))
				got := c.Call(testutil.Context(t), op, tc.headers...)
				if tc.want == nil {
					well.Check(t, got)
					continue
				}
				tc.want.Check(t, got)
				if after := s.Atlas.Calls(emulator.Create) + s.Atlas.Calls(emulator.Delete); after != before {
					t.Errorf("%d calls of Atlas", after-before)
				}
				on := fmt.Sprintf("map[kind:dns name:client.test] %s, outcome %s", map[testutil.Operation]string{testutil.Create: "CreateToken", testutil.Delete: "DeleteToken"}[op], tc.want.Reason)
				if made := s.Records(t)[recorded:]; len(made) != 1 || fmt.Sprintf("%v %v%v, outcome %v", made[0]["caller"], made[0]["method"], made[0]["profile"], made[0]["outcome"]) != on {
					t.Errorf("on record: %v, want one with %s and no profile", made, on)
				}
			}
		})
	}
}
