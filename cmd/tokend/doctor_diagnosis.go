package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// status is how a check ended.
type status string

const (
	passed  status = "ok"
	doubted status = "warning"
	failed  status = "failed"
	skipped status = "skipped" // what it needs has failed
)

// finding is what a check has found. Nothing in it is a secret.
type finding struct {
	Check  string `json:"check"`
	Status status `json:"status"`
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"` // in one sentence
}

func good(format string, args ...any) finding {
	return finding{Status: passed, Detail: fmt.Sprintf(format, args...)}
}

func doubtful(detail, remedy string) finding {
	return finding{Status: doubted, Detail: detail, Remedy: remedy}
}

func bad(detail, remedy string) finding {
	return finding{Status: failed, Detail: detail, Remedy: remedy}
}

// of is f as a finding of the check.
func (f finding) of(check string) finding {
	f.Check = check
	return f
}

// isAbout reports whether f is a finding of the check, or of several settings of which that is one.
func (f finding) isAbout(check string) bool {
	return f.Check == check || strings.HasPrefix(check, "--") && slices.Contains(strings.Fields(f.Check), check)
}

// check is one thing to look at.
type check struct {
	name  string
	needs []string // checks before it, or settings, without which there is nothing to find out
	find  func(ctx context.Context) finding
}

// diagnosis has what was found in the settings, and what is to be found out beyond them.
type diagnosis struct {
	timeout  time.Duration // of each check
	settings []finding
	checks   []check
}

// run returns all findings, in order. Checks run at the same time, but for those that need others.
func (d *diagnosis) run(ctx context.Context) []finding {
	type result struct {
		finding
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
					before = append(before, results[j].finding)
				}
			}
			results[i].finding = d.attempt(ctx, c, before).of(c.name)
		})
	}
	running.Wait()
	all := slices.Clone(d.settings)
	for i := range results {
		all = append(all, results[i].finding)
	}
	return all
}

// attempt runs a check if nothing that it needs is among what has failed before.
func (d *diagnosis) attempt(ctx context.Context, c check, before []finding) finding {
	for _, f := range before {
		if (f.Status == failed || f.Status == skipped) && slices.ContainsFunc(c.needs, f.isAbout) {
			return finding{Status: skipped, Detail: "not checked, because of " + f.Check}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	// A check that goes by its context says better what took so long, so it has a moment more.
	f, ok := within(d.timeout+time.Second, func() finding { return c.find(ctx) })
	if !ok {
		return bad(fmt.Sprintf("no result within %v", d.timeout), "Give it longer with --timeout, or find out what holds it up.")
	}
	return f
}

// within returns what f does, if that takes no longer than d. Otherwise f is left to itself, for the rest of the process.
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

func count(findings []finding, with status) (n int) {
	for _, f := range findings {
		if f.Status == with {
			n++
		}
	}
	return n
}
