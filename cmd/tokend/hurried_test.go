//go:build unix

package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
)

func buildTokend(name string, flags ...string) (string, error) {
	if raceEnabled() {
		flags = append(flags, "-race")
	}
	return build(name, slices.Concat([]string{"build"}, flags, []string{"-o", filepath.Join(built, name), "./cmd/tokend"}))
}

// hurry is how many times faster than the real one the clock of logins goes in hurriedBinary. By the real one, a test that waits
// for two refreshes would take more than a minute.
const hurry = 100

// hurriedBinary is the program with nothing but that clock replaced.
var hurriedBinary = sync.OnceValues(func() (string, error) {
	source, err := filepath.Abs(filepath.Join(repository, "atlas", "clock.go"))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(source)
	if err != nil {
		return "", err
	}
	hurried := string(text) + "\nvar hurriedSince = time.Now()\n"
	for was, is := range map[string]string{
		"c.Now = time.Now\n":   fmt.Sprintf("c.Now = func() time.Time { return hurriedSince.Add(%d * time.Since(hurriedSince)) }\n", hurry),
		"time.AfterFunc(d, f)": fmt.Sprintf("time.AfterFunc(d/%d, f)", hurry),
	} {
		if strings.Count(hurried, was) != 1 {
			return "", fmt.Errorf("%s does not have %q once: replace what it has now", source, was)
		}
		hurried = strings.Replace(hurried, was, is, 1)
	}
	clock, overlay := filepath.Join(built, "hurried-clock.go"), filepath.Join(built, "overlay.json")
	replacements, err := json.Marshal(map[string]any{"Replace": map[string]string{source: clock}})
	if err != nil {
		return "", err
	}
	for file, content := range map[string][]byte{clock: []byte(hurried), overlay: replacements} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return "", err
		}
	}
	return buildTokend("tokend-hurried", "-overlay="+overlay)
})

func (in invocation) binary() (string, error) {
	if in.hurried {
		return hurriedBinary()
	}
	return tokendBinary()
}

// startHurriedAtlas is startAtlas, with a clock that goes as fast.
func startHurriedAtlas(t *testing.T) *emulator.Emulator {
	t.Helper()
	since := time.Now()
	em, err := emulator.Start(emulator.Config{
		JWTLifetime: 10 * time.Minute, Now: func() time.Time { return since.Add(hurry * time.Since(since)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(em.Close)
	return em
}
