// Package doctor checks the settings of tokend and everything that they name, and suggests fixes. It serves nothing and changes nothing: it logs in once for each
// userauthtoken, and asks Atlas for no token.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
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
	needs []string // earlier checks, or settings; if one of them has failed, the check is skipped
	find  func(ctx context.Context) Finding
}

// Examine returns the findings about the settings, in order. open opens them for a trial; each
// check may take as long as timeout.
func Examine(ctx context.Context, open func() *setup.Setup, timeout time.Duration) []Finding {
	s, ok := within(timeout, func() *setup.Setup {
		s := open()
		s.Close()
		return s
	})
	if !ok {
		return []Finding{bad("The files that the settings name cannot be read in time.", "Check the file systems that they are on.").of("settings")}
	}
	d := &diagnosis{timeout: timeout, settings: settingsFindings(s)}
	d.checks = slices.Concat(agentChecks(s), atlasChecks(s), callerChecks(ctx, s, timeout), redisChecks(s), listenChecks(s))
	return d.run(ctx)
}

// ExaminePeers returns the findings about the SPIFFE agent and the OIDC issuers of open settings.
func ExaminePeers(ctx context.Context, s *setup.Setup, timeout time.Duration) []Finding {
	d := &diagnosis{timeout: timeout, checks: agentChecks(s)}
	if s.Policy != nil {
		d.checks = append(d.checks, issuerChecks(s, s.Policy)...)
	}
	return d.run(ctx)
}

// diagnosis has what was found in the settings, and the checks of everything beyond them.
type diagnosis struct {
	timeout  time.Duration // of each check
	settings []Finding
	checks   []check
}

// run returns all findings, in order. Checks run at the same time, except that one waits for those
// that it needs.
func (d *diagnosis) run(ctx context.Context) []Finding {
	type result struct {
		Finding

		done chan struct{} // closed when the finding is there
	}
	results := make([]result, len(d.checks))
	for i := range results {
		results[i].done = make(chan struct{})
	}
	var running sync.WaitGroup
	for i, c := range d.checks {
		running.Go(func() {
			defer close(results[i].done)
			before := slices.Clone(d.settings)
			for j := range i {
				if slices.Contains(c.needs, d.checks[j].name) {
					<-results[j].done
					before = append(before, results[j].Finding)
				}
			}
			results[i].Finding = d.attempt(ctx, c, before).of(c.name)
		})
	}
	running.Wait()
	all := slices.Clone(d.settings)
	for i := range results {
		all = append(all, results[i].Finding)
	}
	return all
}

// attempt runs a check unless something that it needs has failed before.
func (d *diagnosis) attempt(ctx context.Context, c check, before []Finding) Finding {
	for _, f := range before {
		if (f.Status == Failed || f.Status == Skipped) && slices.ContainsFunc(c.needs, f.isAbout) {
			return Finding{Status: Skipped, Detail: "not checked, because of " + f.Check}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	// A check that honours its context says better what took so long, so it gets a second more.
	f, ok := within(d.timeout+time.Second, func() Finding { return c.find(ctx) })
	if !ok {
		return bad(fmt.Sprintf("no result within %v", d.timeout), "Allow more time with --timeout, or find out what is slow.")
	}
	return f
}

// within returns the result of f, if that takes no longer than d. Otherwise f is left running.
func within[T any](d time.Duration, f func() T) (result T, ok bool) {
	done := make(chan T, 1)
	go func() { done <- f() }()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case result = <-done:
		return result, true
	case <-timer.C:
		return result, false
	}
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
