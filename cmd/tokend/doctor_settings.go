package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
)

// findInSettings is what can be seen without asking anybody else: a finding for each mistake that serve would not start with,
// for each file, and for each warning.
func (c *doctorCommand) findInSettings(in *invocation, opened openedToLook) []finding {
	var wrong []finding
	for _, err := range opened.setup.errs {
		wrong = append(wrong, findMistake(err))
	}
	warnings := readWarnings(opened.warnings)
	all := wrong
	if len(wrong) == 0 {
		all = append(all, good("serve would start with them").of("settings"))
	}
	for _, set := range in.settings {
		flag := "--" + set.flag
		if set.value == "" || !strings.HasSuffix(flag, "-file") || hasFinding(wrong, flag) {
			continue
		}
		f := c.findInFile(flag, set.value)
		for _, w := range warnings {
			if w.Of == flag && f.Status == passed {
				f = doubtful(w.text(), "")
			}
		}
		all = append(all, f.of(flag))
	}
	for _, w := range warnings {
		if !hasFinding(all, w.Of) {
			all = append(all, doubtful(w.text(), "").of(w.Of))
		}
	}
	return all
}

func hasFinding(findings []finding, check string) bool {
	for _, f := range findings {
		if f.isAbout(check) {
			return true
		}
	}
	return false
}

// findMistake takes apart what serve would say. It begins with the setting.
func findMistake(err error) finding {
	about, detail, ok := strings.Cut(err.Error(), ": ")
	if !ok || !strings.HasPrefix(about, "--") && about != "HTTPS_PROXY" {
		about, detail = "settings", err.Error()
	}
	return bad(detail, remedyOfMistake(about, err)).of(about)
}

// remedyOfMistake is what to do about a mistake whose text may not say it.
func remedyOfMistake(about string, err error) string {
	switch {
	case about == "--audit-file":
		return "Make its directory, and let the user that tokend runs as write there."
	case errors.Is(err, fs.ErrNotExist):
		return "Put the file there, or correct its path."
	case errors.Is(err, fs.ErrPermission):
		return "Let the user that tokend runs as use it, for example with chgrp and chmod g+r."
	case strings.Contains(about, "--policy-file"):
		return "Correct that place of the policy; a tokend that runs picks the file up."
	case strings.Contains(about, "-ca-file"):
		return "Put a PEM file with the certificates of the authorities there."
	case strings.Contains(about, "-cert-file"):
		return "Give a certificate and its key in PEM: issued for that use, valid now, and belonging together."
	case strings.Contains(about, "-userauthtoken-file"), strings.Contains(about, "-password-file"):
		return "Have the setting name a file with the secret in it, and nothing else."
	case strings.Contains(about, "-addr"):
		return "Choose another address, or the TLS settings that it needs."
	case strings.Contains(about, "-url"):
		return "Correct the URL."
	}
	return "Change the setting as it says; tokend serve --help describes each."
}

// warning is a line of the log.
type warning struct {
	Text        string `json:"msg"`
	Of          string `json:"of"` // a setting, or a profile
	File        string `json:"file"`
	Mode        string `json:"mode"`
	Certificate string `json:"certificate"`
	Issuer      string `json:"issuer"`
}

func (w warning) text() string {
	text := w.Text
	if w.File != "" {
		text = w.File + ": " + text
	}
	if w.Mode != "" {
		text += ", mode " + w.Mode
	}
	return text
}

// readWarnings leaves out those about what has a check of its own.
func readWarnings(log []byte) []warning {
	var all []warning
	for line := range bytes.Lines(log) {
		var w warning
		if json.Unmarshal(line, &w) != nil || w.Certificate != "" || w.Issuer != "" {
			continue
		}
		if w.Of == "" {
			w.Of = "settings"
		}
		all = append(all, w)
	}
	return all
}

// fileUses are what the files with certificates are for.
var fileUses = map[string]certificateUse{
	"--tls-cert-file": forServer, "--tls-client-ca-file": forCallers,
	"--atlas-cert-file": forClient, "--atlas-ca-file": forTrust, "--oidc-ca-file": forTrust, "--cache-redis-ca-file": forTrust,
}

// findInFile looks at a file that serve can read.
func (c *doctorCommand) findInFile(flag, path string) finding {
	if flag == "--audit-file" {
		return good("%s can be written", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return bad(err.Error(), "Put the file there, or correct its path.")
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return doubtful(fmt.Sprintf("%s: everybody on this machine can change it, mode %v", path, mode), "Take that away with chmod o-w.")
	}
	use, ok := fileUses[flag]
	if !ok {
		return good("%s, mode %v", path, info.Mode().Perm())
	}
	certs, err := reload.ReadCertificates(path)
	if err != nil {
		return bad(err.Error(), remedyOfMistake(flag, err))
	}
	return findInCertificates(use, certs, time.Now())
}
