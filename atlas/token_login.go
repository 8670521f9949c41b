package atlas

// obtain refreshes the present session, and logs in if there is none or Atlas will not refresh it.
func (s *TokenSource) obtain(present *session) (*session, error) {
	if present != nil {
		jwt, err := s.atlas.RefreshJWT(s.ctx, present.cred.JWT)
		s.onEvent(TokenEvent{OpRefresh, err})
		if err == nil {
			return s.newSession(jwt, present.cred.Secret, present), nil
		}
		if Classify(err) != ClassUnauthorized {
			return nil, err
		}
	}
	secret, err := s.secret()
	if err != nil {
		return nil, &CredentialError{Err: err}
	}
	// A new secret may be truncated or wrong, so the last accepted one is tried too.
	first, second := secret, s.accepted
	if second != "" && secret == s.refused {
		first, second = second, first
	}
	next, err := s.logIn(first)
	if Classify(err) == ClassUnauthorized && second != "" && second != first {
		next, err = s.logIn(second)
	}
	if Classify(err) == ClassUnauthorized {
		err = &CredentialError{Err: err}
	}
	return next, err
}

// logIn tries one secret. One that was refused is not tried beside another again, so no two refused
// logins follow each other more than once.
func (s *TokenSource) logIn(secret UserAuthToken) (*session, error) {
	jwt, err := s.atlas.LogIn(s.ctx, secret)
	s.onEvent(TokenEvent{OpLogIn, err})
	if err != nil {
		if Classify(err) == ClassUnauthorized {
			s.refused = secret
			if s.accepted == secret {
				s.accepted = ""
			}
		}
		return nil, err
	}
	s.accepted = secret
	return s.newSession(jwt, secret, nil), nil
}

// newSession is a JWT that Atlas has just issued for secret, at a login or to refresh the session
// before.
func (s *TokenSource) newSession(jwt JWT, secret UserAuthToken, before *session) *session {
	claims := jwt.UnverifiedClaims()
	next := &session{cred: Credential{JWT: jwt, Profile: s.profile, Secret: secret, claims: &claims, source: s}, refresh: before != nil}
	// When it was issued is now, so where Atlas says when that was, the difference is our clock's.
	issued := claims.issuedAt
	switch {
	case issued.IsZero() && before == nil:
		issued = claims.loggedInAt
	case issued.IsZero():
		next.ahead = before.ahead
	}
	if !issued.IsZero() {
		next.ahead = issued.Sub(s.clock.Now())
	}
	return next
}
