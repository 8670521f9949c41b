// Package auth finds out who is calling, what the caller may do, and with which credential Atlas is called on its behalf.
//
// It reads a call's credentials, and fetches the keys of OIDC issuers. It does not call Atlas, and does not decide how an
// error is answered.
//
// Who calls is known from two sources only: the client certificate that the TLS handshake has verified, and an OIDC token that
// verifies with its issuer's keys. Nobody outside Atlas can verify an Atlas JWT (HS256, and only Atlas has the key), so claims
// in one are not trusted here. No header or metadata that says who calls is read.
package auth
