// Package auth says who is calling, what they may do, and with which credential Atlas is to be called for them.
//
// It reads what a call brings, and asks the issuers of OIDC tokens for their keys; it neither calls Atlas nor decides
// what becomes of an error. Nobody outside Atlas can verify an Atlas JWT (HS256, and the key is Atlas's alone), so nothing
// here believes a word that is inside one. Who calls is taken from two places only: the client certificate that the TLS
// handshake has verified, and an OIDC token that its issuer's keys verify. No header or metadata that claims an identity
// is ever looked at.
package auth
