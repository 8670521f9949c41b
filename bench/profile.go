package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"
)

// takeProfile has tokend profile its CPU into a file while it is under load, and writes beside it
// what the profile says. done waits for both. Without a file, or of another server, there is no
// profile.
func takeProfile(ctx context.Context, r *running, file string, d time.Duration) (done func() error) {
	if file == "" || r.admin == "" {
		return func() error { return nil }
	}
	result := make(chan error, 1)
	go func() {
		err := fetchProfile(ctx, r.admin, file, d)
		if err == nil {
			err = explainProfile(ctx, file)
		}
		result <- err
	}()
	return func() error { return <-result }
}

func fetchProfile(ctx context.Context, admin, file string, d time.Duration) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, max(1, int(d.Seconds())))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("tokend has no CPU profile at its admin address (%s): run without -profile", resp.Status)
	}
	to, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, resp.Body); err != nil {
		_ = to.Close() // the first mistake counts
		return err
	}
	return to.Close()
}

// explainProfile writes which functions take most, as text that can be read where the profile and
// its program are not: first those that take it themselves, then those from which it is taken.
func explainProfile(ctx context.Context, file string) error {
	var text []byte
	for _, order := range []string{"-flat", "-cum"} {
		out, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", order, "-nodecount=40", file).Output() //nolint:gosec // a file of this run
		if err != nil {
			return fmt.Errorf("go tool pprof -top %s: %w", file, err)
		}
		text = append(text, out...)
	}
	return os.WriteFile(strings.TrimSuffix(file, ".pprof")+".txt", text, 0o600)
}
