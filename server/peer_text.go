package server

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxPeerText bounds how many bytes an unauthenticated peer can add to a log line.
const maxPeerText = 200

// cutPeerText truncates a text that a peer may have written.
func cutPeerText(text string) string {
	if len(text) <= maxPeerText {
		return text
	}
	end := maxPeerText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// handshakeCause returns the log attributes of a failed handshake: the cause, and the client
// certificate if that was refused. The certificate is unverified: the client chose its text.
func handshakeCause(cause string, err error) []slog.Attr {
	attrs := []slog.Attr{slog.String("cause", cutPeerText(cause))}
	refused, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok || len(refused.UnverifiedCertificates) == 0 {
		return attrs
	}
	cert := refused.UnverifiedCertificates[0]
	names := slices.Concat(cert.DNSNames, cert.EmailAddresses)
	for _, uri := range cert.URIs {
		names = append(names, uri.String())
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return append(attrs, slog.Group("unverified_certificate",
		slog.String("subject", cutPeerText(cert.Subject.String())),
		slog.String("san", cutPeerText(strings.Join(names, ", "))),
		slog.String("serial", cutPeerText(cert.SerialNumber.Text(16))),
	))
}
