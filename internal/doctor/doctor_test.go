package doctor

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRun checks that checks run at the same time, that one that needs a failed one does not
// run, and that each has a timeout.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		meet := make(chan struct{})
		fine := func(context.Context) Finding { return good("fine") }
		const timeout = 5 * time.Second
		settings := []Finding{bad("no", "Correct it.").of("--tls-cert-file and --tls-key-file")}
		start := time.Now()
		got := run(t.Context(), timeout, settings, []check{
			{"one", nil, func(context.Context) Finding { meet <- struct{}{}; return good("met") }},
			{"two", nil, func(context.Context) Finding { <-meet; return good("met") }},
			{"three", []string{"one"}, fine},
			{"needs a setting", []string{"--tls-key-file"}, nil},
			{"needs another", []string{"--tls-client-ca-file"}, fine},
			{"waits", nil, func(ctx context.Context) Finding { <-ctx.Done(); return bad(ctx.Err().Error(), "") }},
			{"needs that", []string{"waits"}, nil},
			{"needs what needs that", []string{"needs that"}, nil},
		})
		want := []Finding{
			settings[0],
			{"one", Passed, "met", ""},
			{"two", Passed, "met", ""},
			{"three", Passed, "fine", ""},
			{"needs a setting", Skipped, "not checked, because of --tls-cert-file and --tls-key-file", ""},
			{"needs another", Passed, "fine", ""},
			{"waits", Failed, "context deadline exceeded", ""},
			{"needs that", Skipped, "not checked, because of waits", ""},
			{"needs what needs that", Skipped, "not checked, because of needs that", ""},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if took := time.Since(start); took != timeout {
			t.Errorf("it took %v, want the longest of them", took)
		}
	})
}
