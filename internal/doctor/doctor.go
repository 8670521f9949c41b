// Package doctor checks the settings of tokend and everything that they name, and suggests fixes.
// It serves nothing and changes nothing: it logs in once for each userauthtoken, and asks Atlas for
// no token.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// Status is how a check ended.
type Status string

// The statuses.
const (
	Passed  Status = "ok"
	Doubted Status = "warning"
	Failed  Status = "failed"
	Skipped Status = "skipped" // something that it needs has failed
)

// Finding is the result of a check. It has no secret in it.
type Finding struct {
	Check  string `json:"check"`
	Status Status `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"` // one sentence
}

func good(format string, args ...any) Finding {
	return Finding{Status: Passed, Detail: fmt.Sprintf(format, args...)}
}

func doubtful(detail, remedy string) Finding {
	return Finding{Status: Doubted, Detail: detail, Remedy: remedy}
}

func bad(detail, remedy string) Finding {
	return Finding{Status: Failed, Detail: detail, Remedy: remedy}
}

// of returns f as a finding of the check.
func (f Finding) of(check string) Finding {
	f.Check = check
	return f
}

// isAbout reports whether f is a finding of the check, or of several settings that include it.
func (f Finding) isAbout(check string) bool {
	return f.Check == check || strings.HasPrefix(check, "--") && slices.Contains(strings.Fields(f.Check), check)
}

// check is one check.
type check struct {
	name  string
	needs []string                          // earlier checks, or settings; if one of them has failed, the check is skipped
	find  func(ctx context.Context) Finding // returns soon after ctx is done
}

// Examine returns the findings about the settings, in order. open opens them for a trial; each
// check may take as long as timeout.
func Examine(ctx context.Context, open func() *setup.Setup, timeout time.Duration) []Finding {
	opened := make(chan *setup.Setup, 1)
	go func() {
		s := open()
		s.Close()
		opened <- s
	}()
	var s *setup.Setup
	select {
	case s = <-opened:
	case <-time.After(timeout): // such as for a network file system; it is left running
		return []Finding{bad("The files that the settings name cannot be read in time.", "Check the file systems that they are on.").of("settings")}
	}
	checks := slices.Concat(agentChecks(s), atlasChecks(s), callerChecks(ctx, s, timeout), redisChecks(s), listenChecks(s))
	return run(ctx, timeout, settingsFindings(s), checks)
}

// ExaminePeers returns the findings about the SPIFFE agent and the OIDC issuers of open settings.
func ExaminePeers(ctx context.Context, s *setup.Setup, timeout time.Duration) []Finding {
	checks := agentChecks(s)
	if s.Policy != nil {
		checks = append(checks, issuerChecks(s, s.Policy)...)
	}
	return run(ctx, timeout, nil, checks)
}

// run returns the findings about the settings and those of the checks, in order. Checks run at the
// same time, except that one waits for those that it needs.
func run(ctx context.Context, timeout time.Duration, settings []Finding, checks []check) []Finding {
	results := make([]Finding, len(checks))
	done := make([]chan struct{}, len(checks)) // closed when the result is there
	for i := range done {
		done[i] = make(chan struct{})
	}
	for i, c := range checks {
		go func() {
			defer close(done[i])
			before := slices.Clone(settings)
			for j, earlier := range checks[:i] {
				if slices.Contains(c.needs, earlier.name) {
					<-done[j]
					before = append(before, results[j])
				}
			}
			results[i] = c.run(ctx, timeout, before).of(c.name)
		}()
	}
	for _, result := range done {
		<-result
	}
	return slices.Concat(settings, results)
}

// run runs a check unless something that it needs has failed before.
func (c check) run(ctx context.Context, timeout time.Duration, before []Finding) Finding {
	for _, f := range before {
		if (f.Status == Failed || f.Status == Skipped) && slices.ContainsFunc(c.needs, f.isAbout) {
			return Finding{Status: Skipped, Detail: "not checked, because of " + f.Check}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.find(ctx)
}

// Count returns how many findings have the status.
func Count(findings []Finding, with Status) (n int) {
	for _, f := range findings {
		if f.Status == with {
			n++
		}
	}
	return n
}
