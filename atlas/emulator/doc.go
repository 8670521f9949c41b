// Package emulator is a small working Atlas over HTTPS, for tests and for trying things out, in the
// manner of net/http/httptest. Nothing in it is real: its orgs, keys, tokens and certificate are
// made by Start and forgotten by Close.
//
// It shares no code and no wire types with the client it is used to test, so a mistake made in one
// cannot hide in the other. It listens on loopback only.
//
//	em, err := emulator.Start(emulator.Config{})
//	defer em.Close()
//	client, base, jwt := em.Client(), em.URL(), em.Org(0).JWT()
//
// # What it answers
//
// Below the base path /v1, in the shapes of Django REST framework:
//
//	POST   /login/              {"userauthtoken"} → 200 {"token", "user"}
//	POST   /api-token-refresh/  {"token"}         → 200 {"token"}
//	POST   /ephemeral-token     Authorization: JWT … → 201 {"token"}
//	DELETE /ephemeral-token     Authorization: JWT … → 204
//
// A path that differs from these by its last slash is answered with a 301 to the right one, another
// path with 404, another method with 405. A JWT carries a "jti", which Atlas does not document, so
// that two of the same second differ.
//
// # Making it fail
//
// [Emulator.Inject] takes a [Fault]: latency, another status, a broken body, a dropped connection.
// [Emulator.Hold] and [Emulator.HoldAnswer] stop requests at a [Gate] until the test lets them go,
// which replaces sleeping.
//
// # Seeing what it was asked
//
// [Emulator.Calls], [Emulator.Counters] and [Emulator.Requests] return what came in and what went
// out; [Emulator.Tokens] has when each ephemeral token was minted and deleted. An answer is counted
// before the client can see it.
//
// # Control over HTTPS
//
// Users of the program reach the same things under /_emulator, on the same port, with JSON. These
// requests are not counted and meet no fault.
//
//	GET    /_emulator/counters     Counters
//	GET    /_emulator/requests     the latest requests, oldest first
//	GET    /_emulator/tokens       the ephemeral tokens ever minted
//	GET    /_emulator/faults       the faults in force, with their ids
//	POST   /_emulator/faults       a Fault → 201 {"id"}
//	DELETE /_emulator/faults       remove them all → 204
//	DELETE /_emulator/faults/{id}  remove one → 204
//	POST   /_emulator/jwts         {"org": 0, "lifetime": "-1m", "age": "2m", "forged": true, "unsigned": true} → 201 {"jwt"}
//	POST   /_emulator/revocations  {"jwt"} → 204
//
// A Fault in JSON has "operation" for On, the other fields of the Go type in snake case, and
// durations as text. What is left out has its zero value:
//
//	{"operation": "create", "times": 1, "status": 429, "header": {"Retry-After": ["7"]}}
//	{"operation": "delete", "drop": "reset", "after_effect": true}
//	{"delay": "250ms"}
package emulator
