package emulator

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"
)

// login trades a bot's secret for a JWT.
func (a *atlas) login(r *http.Request, body []byte) answer {
	sent, bad := parseObject(r, body)
	if bad != nil {
		return *bad
	}
	secret, bad := sent.text("userauthtoken", true)
	if bad != nil {
		return *bad
	}
	bot, known := a.botOf(secret)
	if !known {
		return nonFieldError("Unable to log in with provided credentials.")
	}
	return jsonAnswer(http.StatusOK, loginAnswer{Token: a.issue(bot, a.now().Unix()), User: describe(bot)})
}

type loginAnswer struct {
	Token string   `json:"token"`
	User  userJSON `json:"user"`
}

type userJSON struct {
	ID        string  `json:"id"`
	Org       orgJSON `json:"org"`
	FirstName string  `json:"first_name"`
	LastName  string  `json:"last_name"`
	Email     string  `json:"email"`
	Phone     string  `json:"phone"`
}

type orgJSON struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Slug string `json:"slug"`
}

func describe(u user) userJSON {
	return userJSON{
		ID:        u.id,
		Org:       orgJSON{ID: u.org.ID, Name: u.org.Name, Slug: u.org.Slug},
		FirstName: u.firstName, LastName: u.lastName, Email: u.email, Phone: u.phone,
	}
}

// refresh trades a live JWT for one that lives longer.
func (a *atlas) refresh(r *http.Request, body []byte) answer {
	sent, bad := parseObject(r, body)
	if bad != nil {
		return *bad
	}
	signed, bad := sent.text("token", true)
	if bad != nil {
		return *bad
	}
	c, u, err := a.verify(signed)
	switch {
	case err != nil:
		return nonFieldError(err.Error())
	case !a.refreshable(c):
		return nonFieldError("Refresh has expired.")
	}
	return jsonAnswer(http.StatusOK, map[string]string{"token": a.issue(u, c.OrigIat)})
}

// create answers with the org's ephemeral token.
func (a *atlas) create(r *http.Request, _ []byte) answer {
	org, bad := a.authenticate(r)
	if bad != nil {
		return *bad
	}
	return jsonAnswer(http.StatusCreated, map[string]string{"token": a.currentToken(org)})
}

// delete sets the org's ephemeral token to null.
func (a *atlas) delete(r *http.Request, _ []byte) answer {
	org, bad := a.authenticate(r)
	if bad != nil {
		return *bad
	}
	a.deleteToken(org)
	return answer{status: http.StatusNoContent, header: http.Header{}}
}

// authenticate finds the org of the request's JWT.
func (a *atlas) authenticate(r *http.Request) (*Org, *answer) {
	refuse := func(text string) (*Org, *answer) {
		bad := unauthorized(text)
		return nil, &bad
	}
	// WSGI joins repeated headers with a comma.
	words := strings.Fields(strings.Join(r.Header.Values("Authorization"), ","))
	switch {
	case len(words) == 0 || !strings.EqualFold(words[0], "JWT"):
		return refuse("Authentication credentials were not provided.")
	case len(words) == 1:
		return refuse("Invalid Authorization header. No credentials provided.")
	case len(words) > 2:
		return refuse("Invalid Authorization header. Credentials string should not contain spaces.")
	}
	_, u, err := a.verify(words[1])
	if err != nil {
		return refuse(err.Error())
	}
	if u.ephemeral {
		bad := forbidden()
		return nil, &bad
	}
	return u.org, nil
}

// ephemeralUser trades an ephemeral token for the JWT of a new user of its org.
func (a *atlas) ephemeralUser(r *http.Request, body []byte) answer {
	sent, bad := parseObject(r, body)
	if bad != nil {
		return *bad
	}
	token, bad := sent.text("token", true)
	if bad != nil {
		return *bad
	}
	var u user
	for _, field := range []struct {
		name string
		into *string
	}{{"first_name", &u.firstName}, {"last_name", &u.lastName}, {"email", &u.email}, {"phone", &u.phone}} {
		if *field.into, bad = sent.text(field.name, false); bad != nil {
			return *bad
		}
	}
	u, live := a.addEphemeralUser(token, u)
	if !live {
		return fieldError("token", "Invalid ephemeral token.")
	}
	return jsonAnswer(http.StatusCreated, map[string]string{"jwt": a.issue(u, a.now().Unix())})
}

// object is a JSON object as it was sent.
type object map[string]json.RawMessage

func parseObject(r *http.Request, body []byte) (object, *answer) {
	refuse := func(bad answer) (object, *answer) { return nil, &bad }
	contentType := r.Header.Get("Content-Type")
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/json" {
		return refuse(detail(http.StatusUnsupportedMediaType, fmt.Sprintf("Unsupported media type %q in request.", contentType)))
	}
	if len(body) == 0 {
		return object{}, nil
	}
	if !json.Valid(body) {
		return refuse(detail(http.StatusBadRequest, "JSON parse error - Expecting value: line 1 column 1 (char 0)"))
	}
	var o object
	if err := json.Unmarshal(body, &o); err != nil || o == nil {
		return refuse(nonFieldError("Invalid data. Expected a dictionary."))
	}
	return o, nil
}

// text is the field's value, which must be a string.
func (o object) text(field string, required bool) (string, *answer) {
	refuse := func(text string) (string, *answer) {
		bad := fieldError(field, text)
		return "", &bad
	}
	raw, sent := o[field]
	if !sent || string(raw) == "null" {
		switch {
		case !required:
			return "", nil
		case sent:
			return refuse("This field may not be null.")
		}
		return refuse("This field is required.")
	}
	var value string
	if err := json.Unmarshal(raw, &value); err != nil {
		return refuse("Not a valid string.")
	}
	if value == "" && required {
		return refuse("This field may not be blank.")
	}
	return value, nil
}
