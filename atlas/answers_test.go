package atlas

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// http1 writes an answer as it goes over the wire. Its reason phrase and one header hold planted
// secrets.
func http1(status int, header, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nX-Planted: %s\r\nContent-Length: %d\r\n%s\r\n%s",
		status, plantedToken, plantedOther, len(body), header, body)
}

func json1(status int, body string) string {
	return http1(status, "Content-Type: application/json\r\n", body)
}

func zip(t testing.TB, body []byte) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestAnswers(t *testing.T) {
	const good = `{"token":"` + plantedToken + `"}`
	var (
		ok          = outcome{}
		invalid     = func(status int) outcome { return outcome{KindInvalidResponse, status, 0, true} }
		status      = func(code int) outcome { return outcome{KindStatus, code, 0, true} }
		retry       = func(code int, d time.Duration) outcome { return outcome{KindStatus, code, d, true} }
		redirect    = func(code int) outcome { return outcome{KindRedirect, code, 0, true} }
		unreachable = func(status int) outcome { return outcome{KindUnreachable, status, 0, true} }
	)
	const jsonType = "Content-Type: application/json\r\n"
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	gzipped := zip(t, []byte(good))
	bomb := zip(t, bytes.Repeat([]byte(" "), 8<<20))

	for _, tc := range []struct {
		name   string
		answer string
		create outcome
		delete outcome
	}{
		{"201", json1(201, good), ok, ok},
		{"200", json1(200, good), ok, ok},
		{"202", json1(202, good), invalid(202), ok},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", invalid(204), ok},
		{"206", json1(206, good), invalid(206), ok},
		{"299", json1(299, good), invalid(299), ok},
		{"101", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: planted\r\n\r\n", invalid(101), invalid(101)},
		{"099", "HTTP/1.1 099 planted\r\n" + jsonType + "\r\n" + good, invalid(99), invalid(99)},

		{"301", http1(301, "Location: https://planted.example/"+plantedOther+"\r\n", ""), redirect(301), redirect(301)},
		{"302", http1(302, "Location: /planted/\r\n", ""), redirect(302), redirect(302)},
		{"303 without Location", http1(303, "", ""), redirect(303), redirect(303)},
		{"304", "HTTP/1.1 304 Not Modified\r\n\r\n", redirect(304), redirect(304)},
		{"307", http1(307, "Location: https://planted.example/\r\n", ""), redirect(307), redirect(307)},
		{"308 with a Location that is no URL", http1(308, "Location: http://[planted\r\n", ""), redirect(308), redirect(308)},

		{"400", json1(400, `{"non_field_errors":["planted"]}`), status(400), status(400)},
		{"401", json1(401, `{"detail":"planted"}`), status(401), status(401)},
		{"403", json1(403, `{"detail":"planted"}`), status(403), status(403)},
		{"404", json1(404, `{"detail":"planted"}`), status(404), status(404)},
		{"405", json1(405, `{"detail":"planted"}`), status(405), status(405)},
		{"407", http1(407, "", ""), status(407), status(407)},
		{"408", http1(408, "", ""), status(408), status(408)},
		{"409", json1(409, `{"planted":["planted"]}`), status(409), status(409)},
		{"429", json1(429, `{"detail":"planted"}`), status(429), status(429)},
		{"429 in 7 seconds", http1(429, "Retry-After: 7\r\n", "planted"), retry(429, 7*time.Second), retry(429, 7*time.Second)},
		{"429 at a time", http1(429, "Retry-After: Wed, 02 Jan 2030 03:04:15 GMT\r\n", ""), retry(429, 10*time.Second), retry(429, 10*time.Second)},
		{"429 in a thousand years", http1(429, "Retry-After: 31536000000\r\n", ""), retry(429, 5*time.Minute), retry(429, 5*time.Minute)},
		{"500 with HTML", http1(500, "Content-Type: text/html\r\n", "<h1>planted</h1>"), status(500), status(500)},
		{"502", http1(502, "", "planted"), status(502), status(502)},
		{"503 in 2 seconds", http1(503, "Retry-After: 2\r\n", ""), retry(503, 2*time.Second), retry(503, 2*time.Second)},
		{"504", http1(504, "", ""), status(504), status(504)},
		{"599", http1(599, "", ""), status(599), status(599)},
		{"999", http1(999, "", ""), status(999), status(999)},

		{"no media type", http1(201, "", good), invalid(201), ok},
		{"media type HTML", http1(201, "Content-Type: text/html\r\n", "<h1>planted</h1>"), invalid(201), ok},
		{"media type problem+json", http1(201, "Content-Type: application/problem+json\r\n", good), invalid(201), ok},
		{"media type in capitals with a parameter", http1(201, "Content-Type: Application/JSON; charset=utf-8\r\n", good), ok, ok},
		{"media type malformed", http1(201, "Content-Type: application/json; =planted\r\n", good), invalid(201), ok},

		{"no body", json1(201, ""), invalid(201), ok},
		{"HTML in JSON's name", json1(201, "<h1>planted</h1>"), invalid(201), ok},
		{"token null", json1(201, `{"token":null,"detail":"planted"}`), invalid(201), ok},
		{"body of exactly 64 KiB", json1(201, good+strings.Repeat(" ", 64<<10-len(good))), ok, ok},
		{"body over 64 KiB", json1(201, good+strings.Repeat(" ", 64<<10-len(good)+1)), invalid(201), ok},

		{"gzip", http1(201, jsonType+"Content-Encoding: gzip\r\n", gzipped), ok, ok},
		{"gzip bomb", http1(201, jsonType+"Content-Encoding: gzip\r\n", bomb), invalid(201), ok},
		{"gzip in name only", http1(201, jsonType+"Content-Encoding: gzip\r\n", good), invalid(201), ok},
		{"gzip corrupt", http1(201, jsonType+"Content-Encoding: gzip\r\n", gzipped[:len(gzipped)-8]+"planted!"), invalid(201), ok},
		{"gzip cut short", http1(201, jsonType+"Content-Encoding: gzip\r\n", gzipped[:len(gzipped)/2]), unreachable(201), ok},
		{"an encoding that was not asked for", http1(201, jsonType+"Content-Encoding: br\r\n", "\x8b\x03\x80planted"), invalid(201), ok},

		{"body cut short", strings.Replace(json1(201, good), "Content-Length: ", "Content-Length: 9", 1), unreachable(201), ok},
		{"chunk cut short", "HTTP/1.1 201 \r\n" + jsonType + "Transfer-Encoding: chunked\r\n\r\n40\r\n" + good, unreachable(201), ok},
		{"last chunk missing", fmt.Sprintf("HTTP/1.1 201 \r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", jsonType, len(good), good), unreachable(201), ok},
		{"chunk malformed", "HTTP/1.1 201 \r\n" + jsonType + "Transfer-Encoding: chunked\r\n\r\nplanted\r\n", unreachable(201), ok},

		{"not HTTP", "planted\r\n\r\n", unreachable(0), unreachable(0)},
		{"status line malformed", "HTTP/1.1 planted planted\r\n\r\n", unreachable(0), unreachable(0)},
		{"header malformed", "HTTP/1.1 201 \r\nplanted\r\n\r\n", unreachable(0), unreachable(0)},
		{"length malformed", "HTTP/1.1 201 \r\nContent-Length: planted\r\n\r\n", unreachable(0), unreachable(0)},
		{"encoding of transfer unknown", "HTTP/1.1 201 \r\nTransfer-Encoding: planted\r\n\r\n", unreachable(0), unreachable(0)},
		{"header cut short", "HTTP/1.1 201 \r\nX-Planted: planted", unreachable(0), unreachable(0)},
		{"header over 16 KiB", http1(201, jsonType+"X-Planted: "+strings.Repeat("planted", 3000)+"\r\n", good), unreachable(0), unreachable(0)},
		{"flood of 1xx", strings.Repeat("HTTP/1.1 103 Early Hints\r\nX-Planted: planted\r\n\r\n", 1000) + json1(201, good), unreachable(0), unreachable(0)},
		{"a 1xx", "HTTP/1.1 103 Early Hints\r\n\r\n" + json1(201, good), ok, ok},
		{"nothing", "", unreachable(0), unreachable(0)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, config := newRawTLS(t, func(conn *tls.Conn, _ *http.Request) bool {
				_, _ = io.WriteString(conn, tc.answer)
				_ = conn.CloseWrite()
				return false
			})
			c := newTestClient(t, config)
			c.now = func() time.Time { return now }

			token, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
			if diff := cmp.Diff(tc.create, outcomeOf(t, OpCreate, err)); diff != "" {
				t.Errorf("create (-want +got):\n%s%v", diff, err)
			}
			want := Token("")
			if tc.create == ok {
				want = plantedToken
			}
			if token != want {
				t.Errorf("token = %q, want %q", string(token), string(want))
			}

			c.CloseIdleConnections() // the server has closed them
			err = c.DeleteEphemeralToken(t.Context(), plantedJWT)
			if diff := cmp.Diff(tc.delete, outcomeOf(t, OpDelete, err)); diff != "" {
				t.Errorf("delete (-want +got):\n%s%v", diff, err)
			}
		})
	}
}

// TestEndlessBody checks that an endless body is read no further than the limit, whether it is
// needed or not.
func TestEndlessBody(t *testing.T) {
	for _, tc := range []struct {
		status         int
		create, delete outcome
	}{
		{201, outcome{KindInvalidResponse, 201, 0, true}, outcome{}},
		{503, outcome{KindStatus, 503, 0, true}, outcome{KindStatus, 503, 0, true}},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d HTTP/2=%v", tc.status, http2), func(t *testing.T) {
				written := make(chan int, 2)
				_, config := newHTTPServer(t, http2, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(tc.status)
					chunk := bytes.Repeat([]byte(" "), 1<<10)
					n := 0
					for {
						m, err := w.Write(chunk)
						if n += m; err != nil {
							written <- n
							return
						}
					}
				})
				c := newTestClient(t, config)
				_, err := c.CreateEphemeralToken(t.Context(), plantedJWT)
				if diff := cmp.Diff(tc.create, outcomeOf(t, OpCreate, err)); diff != "" {
					t.Errorf("create (-want +got):\n%s%v", diff, err)
				}
				err = c.DeleteEphemeralToken(t.Context(), plantedJWT)
				if diff := cmp.Diff(tc.delete, outcomeOf(t, OpDelete, err)); diff != "" {
					t.Errorf("delete (-want +got):\n%s%v", diff, err)
				}
				for range 2 {
					n := <-written
					// Over HTTP/1.1 it is the kernel that buffers what is on its way.
					if limit := 3 * maxBodyBytes; http2 && n > limit {
						t.Errorf("Atlas could send %d bytes, want at most %d", n, limit)
					}
				}
			})
		}
	}
}

// TestFloodOf1xxHTTP2 checks net/http's limit of 1xx answers over HTTP/2.
func TestFloodOf1xxHTTP2(t *testing.T) {
	_, config := newHTTPServer(t, true, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Planted", plantedOther)
		for r.Context().Err() == nil {
			w.WriteHeader(http.StatusEarlyHints)
		}
	})
	_, err := newTestClient(t, config).CreateEphemeralToken(t.Context(), plantedJWT)
	if got, want := outcomeOf(t, OpCreate, err), (outcome{KindUnreachable, 0, 0, true}); got != want {
		t.Errorf("got %+v, want %+v: %v", got, want, err)
	}
}

func TestParseRetryAfter(t *testing.T) {
	now := time.Date(2026, time.November, 23, 9, 30, 0, 0, time.UTC)
	for _, tc := range []struct {
		value string
		want  time.Duration // 0: not a Retry-After
	}{
		{"7", 7 * time.Second},
		{"007", 7 * time.Second},
		{"0", time.Second},
		{"1", time.Second},
		{"300", 5 * time.Minute},
		{"301", 5 * time.Minute},
		{"9223372037", 5 * time.Minute}, // in nanoseconds, over an int64
		{strings.Repeat("9", 400), 5 * time.Minute},

		{"Mon, 23 Nov 2026 09:30:42 GMT", 42 * time.Second},
		{"Monday, 23-Nov-26 09:30:42 GMT", 42 * time.Second},
		{"Mon Nov 23 09:30:42 2026", 42 * time.Second},
		{"Tue Dec  1 09:30:42 2026", 5 * time.Minute},
		{"Mon, 23 Nov 2026 09:30:00 GMT", time.Second},
		{"Mon, 23 Nov 2026 09:29:59 GMT", time.Second},
		{"Thu, 01 Jan 1970 00:00:00 GMT", time.Second},
		{"Fri, 31 Dec 9999 23:59:59 GMT", 5 * time.Minute},
		{"", 0},
		{" ", 0},
		{"soon", 0},
		{"-1", 0},
		{"+1", 0},
		{"1.5", 0},
		{"1e2", 0},
		{"0x10", 0},
		{"1 2", 0},
		{"7, 7", 0},
		{"٧", 0}, // a digit, but not HTTP's
		{"Mon, 23 Nov 2026 09:30:42", 0},
		{"Mon, 23 Nov 2026 09:30:42 PST", 0},
		{"Mon, 32 Nov 2026 09:30:42 GMT", 0},
		{"2026-11-23T09:30:42Z", 0},
	} {
		if got := parseRetryAfter(tc.value, now); got != tc.want {
			t.Errorf("parseRetryAfter(%q) = %v, want %v", tc.value, got, tc.want)
		}
	}
}
