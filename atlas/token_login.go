package atlas

import (
	"errors"
	"net/http"
)

// obtain refreshes present, and logs in if there is none or Atlas will not refresh it.
func (s *TokenSource) obtain(present JWT) (JWT, error) {
	if present != "" {
		jwt, err := s.atlas.RefreshJWT(s.ctx, present)
		s.onEvent(TokenEvent{OpRefresh, err})
		if err == nil || !isRefusal(err) {
			return jwt, err
		}
	}
	secret, err := s.secret()
	if err != nil {
		return "", &CredentialError{Err: err}
	}
	// A secret that has just come may be half of one, or a wrong one. The one before is not worse for that.
	first, second := secret, s.accepted
	if second != "" && secret == s.refused {
		first, second = second, first
	}
	jwt, err := s.logIn(first)
	if isRefusal(err) && second != "" && second != first {
		jwt, err = s.logIn(second)
	}
	if isRefusal(err) {
		err = &CredentialError{Err: err}
	}
	return jwt, err
}

// logIn tries one secret. One that was refused is not tried beside another again, so no two refused logins follow each other
// more than once.
func (s *TokenSource) logIn(secret UserAuthToken) (JWT, error) {
	jwt, err := s.atlas.LogIn(s.ctx, secret)
	s.onEvent(TokenEvent{OpLogIn, err})
	switch {
	case err == nil:
		s.accepted = secret
	case isRefusal(err):
		s.refused = secret
		if s.accepted == secret {
			s.accepted = ""
		}
	}
	return jwt, err
}

// isRefusal reports whether Atlas understood a login or refresh and said no.
func isRefusal(err error) bool {
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindStatus {
		return false
	}
	switch e.StatusCode {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return false
}
