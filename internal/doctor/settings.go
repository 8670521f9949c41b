package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ForstaLabs/ephemeral-token-service/internal/config"
	"github.com/ForstaLabs/ephemeral-token-service/internal/reload"
	"github.com/ForstaLabs/ephemeral-token-service/internal/setup"
)

// settingsFindings returns a finding for each mistake that would keep serve from starting, for each
// file, and for each warning. It connects to nothing.
func settingsFindings(s *setup.Setup) []Finding {
	var wrong []Finding
	for _, err := range s.Errors {
		wrong = append(wrong, mistake(err))
	}
	all := wrong
	if len(wrong) == 0 {
		all = append(all, good("serve would start with them").of("settings"))
	}
	for _, file := range files(&s.Settings) {
		if file.path == "" || file.path == "-" || hasFinding(wrong, file.flag) {
			continue
		}
		f := fileFinding(file)
		for _, w := range s.Warnings {
			if w.Setting == file.flag && f.Status == Passed {
				f = doubtful(w.Text, "")
			}
		}
		all = append(all, f.of(file.flag))
	}
	for _, w := range s.Warnings {
		if !hasFinding(all, w.Setting) {
			all = append(all, doubtful(w.Text, "").of(w.Setting))
		}
	}
	return all
}

func hasFinding(findings []Finding, check string) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool { return f.isAbout(check) })
}

// mistake is the finding of an error that serve would report.
func mistake(err error) Finding {
	e := config.As(err)
	if e == nil {
		return bad(err.Error(), "").of("settings")
	}
	return bad(e.Err.Error(), mistakeRemedy(e.Field, err)).of(e.Field)
}

// mistakeRemedy returns the remedy of a mistake, by its cause and setting.
func mistakeRemedy(about string, err error) string {
	switch {
	case about == "--audit-file":
		return "Make its directory, and let the user that tokend runs as write there."
	case errors.Is(err, fs.ErrNotExist):
		return "Put the file there, or correct its path."
	case errors.Is(err, fs.ErrPermission):
		return "Let the user that tokend runs as use it, for example with chgrp and chmod g+r."
	case strings.Contains(about, "--policy-file"):
		return "Correct that place of the policy; a running tokend picks the file up."
	case strings.Contains(about, "-ca-file"):
		return "Put a PEM file with the certificates of the authorities there."
	case strings.Contains(about, "-cert-file"):
		return "Give a certificate and its key in PEM: issued for that use, valid now, and belonging together."
	case strings.Contains(about, "-userauthtoken-file"), strings.Contains(about, "-password-file"):
		return "Set it to a file with the secret in it, and nothing else."
	case strings.Contains(about, "-addr"):
		return "Choose another address, or set --tls-cert-file and --tls-key-file, --spiffe-socket or --plaintext, as it says."
	case strings.Contains(about, "-url"):
		return "Correct the URL."
	}
	return "Change the setting as it says; tokend serve --help describes each."
}

// settingFile is a setting that names a file.
type settingFile struct {
	flag, path string
	use        certificateUse // noCertificate if it has none in it
}

func files(set *setup.Settings) []settingFile {
	return []settingFile{
		{"--tls-cert-file", set.TLSCertFile, forServer},
		{"--tls-key-file", set.TLSKeyFile, noCertificate},
		{"--tls-client-ca-file", set.TLSClientCAFile, forCallers},
		{"--atlas-ca-file", set.AtlasCAFile, forTrust},
		{"--atlas-cert-file", set.AtlasCertFile, forClient},
		{"--atlas-key-file", set.AtlasKeyFile, noCertificate},
		{"--atlas-userauthtoken-file", set.UserauthtokenFile, noCertificate},
		{"--policy-file", set.PolicyFile, noCertificate},
		{"--oidc-ca-file", set.OIDCCAFile, forTrust},
		{"--cache-redis-ca-file", set.RedisCAFile, forTrust},
		{"--cache-redis-password-file", set.RedisPasswordFile, noCertificate},
		{"--audit-file", set.AuditFile, noCertificate},
	}
}

// fileFinding looks at a file that serve can read.
func fileFinding(file settingFile) Finding {
	if file.flag == "--audit-file" {
		return good("%s can be written", file.path)
	}
	info, err := os.Stat(file.path)
	if err != nil {
		return bad(err.Error(), "Put the file there, or correct its path.")
	}
	if mode := info.Mode().Perm(); mode&0o002 != 0 {
		return doubtful(fmt.Sprintf("%s: every user of this machine can change it, mode %v", file.path, mode), "Remove that permission with chmod o-w.")
	}
	if file.use == noCertificate {
		return good("%s, mode %v", file.path, info.Mode().Perm())
	}
	certs, err := reload.ReadCertificates(file.path)
	if err != nil {
		return bad(err.Error(), mistakeRemedy(file.flag, err))
	}
	return certificatesFinding(file.use, certs, time.Now())
}
