package browser

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

var screenshots = flag.String("screenshots", "", "folder to save what TestPage and TestLayout see, as PNG")

// create is the operation on the page, with a space after it.
const create = `div[id$="createToken"] `

const (
	openButton = chromedp.CSS("button.authorize")
	credential = chromedp.CSS(".modal-ux input")
)

// press clicks by script: the page moves elements while it unfolds, and a mouse would miss them.
func press(button chromedp.CSS) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(
		chromedp.WaitVisible(button),
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.querySelector(%q).click()", button)),
	)
}

// tryPage opens the page, authorises with a JWT and executes a call.
func (tb *tab) tryPage(t *testing.T, at, jwt string) (status, body string) {
	t.Helper()
	const responses = create + ".live-responses-table tbody "
	tb.do(t,
		chromedp.Navigate(at),
		press(openButton),
		chromedp.WaitVisible(credential),
	)
	tb.screenshot(t, "authorize")
	tb.do(t,
		chromedp.SendKeys(credential, jwt),
		press(".modal-ux button.authorize"),
		press(".modal-ux button.btn-done"),
		press(create+".opblock-summary-control"),
		chromedp.WaitVisible(chromedp.CSS(create+".opblock-description")), // after it has resolved the references
		press(create+"button.execute"),
	)
	status = get(t, tb, chromedp.Text(chromedp.CSS(responses+".response-col_status")))
	body = get(t, tb, chromedp.Text(chromedp.CSS(responses+".response-col_description")))
	return strings.TrimSpace(status), body
}

// checkPage checks that the page shows a token, made no request to other hosts and logged no
// problem.
func (tb *tab) checkPage(t *testing.T, host, status, body string) {
	t.Helper()
	if status != "201" || !strings.Contains(body, `"token": "`) {
		t.Errorf("the page shows %q and\n%s", status, body)
	}
	foreign, all := tb.elsewhere(host)
	if len(foreign) > 0 || all < 6 { // the page, its scripts, style sheets, document, and the call
		t.Errorf("of %d requests these are to others: %q", all, foreign)
	}
	if problems := tb.told(); len(problems) > 0 {
		t.Errorf("the console has\n%s", strings.Join(problems, "\n"))
	}
}

// TestPage checks that the page works within its Content-Security-Policy, calls no other host and
// stores no credential.
func TestPage(t *testing.T) {
	tb := openTab(t)
	s := startDev(t)
	status, body := tb.tryPage(t, "http://"+s.http+"/docs", s.jwt)
	stored := get(t, tb, chromedp.Evaluate[string]("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"))
	tb.screenshot(t, "called")
	tb.checkPage(t, s.http, status, body)
	if strings.Contains(stored, s.jwt) {
		t.Errorf("the page keeps the credential: %s", stored)
	}

	t.Run("reloaded", func(t *testing.T) {
		tb.do(t, chromedp.Reload(), press(openButton))
		if value := get(t, tb, chromedp.Value(credential)); value != "" {
			t.Error("the page still has a credential after a reload")
		}
	})
	t.Run("injected script", func(t *testing.T) {
		inject := `document.body.append(Object.assign(document.createElement("script"), {textContent: "window.injected = 1"})); window.injected === 1`
		injected := get(t, tb, chromedp.Evaluate[bool](inject))
		if injected || !slices.ContainsFunc(tb.told(), func(p string) bool { return strings.Contains(p, "Content Security Policy") }) {
			t.Errorf("an inline script runs; the console has %q", tb.told())
		}
	})
}

// screenshot saves the page, if the flag asks for it.
func (tb *tab) screenshot(t *testing.T, name string) {
	t.Helper()
	if *screenshots == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), get(t, tb, chromedp.FullScreenshot(100)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLayout checks the page at several widths, light and dark.
func TestLayout(t *testing.T) {
	tb := openTab(t)
	s := startDev(t)
	for _, tc := range []struct {
		name          string
		width, height int64
		dark          bool
		screens       float64 // that one opened operation may take
	}{
		{"light", 1200, 900, false, 3},
		{"dark", 1200, 900, true, 3},
		{"narrow", 390, 844, false, 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			scheme := map[bool]string{false: "light", true: "dark"}[tc.dark]
			media := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
			if _, err := chromedp.Call(tb.ctx, emulation.SetEmulatedMedia, media); err != nil {
				t.Fatal(err)
			}
			tb.do(t,
				chromedp.EmulateViewport(tc.width, tc.height),
				chromedp.Navigate("http://"+s.http+"/docs"),
				chromedp.WaitVisible(openButton),
			)
			tb.screenshot(t, tc.name+"-closed")
			tb.do(t,
				press(create+".opblock-summary-control"),
				chromedp.WaitVisible(chromedp.CSS(create+".opblock-description")),
				chromedp.WaitVisible(chromedp.CSS(create+".responses-table tr:nth-child(2)")),
			)
			tb.screenshot(t, tc.name)
			got := get(t, tb, chromedp.Evaluate[layout](fmt.Sprintf(`(() => {
				const path = document.querySelector(%[1]q + ".opblock-summary-path");
				return {
					First: document.querySelector(".opblock").id,
					Screens: document.querySelector(%[1]q.trim()).getBoundingClientRect().height / innerHeight,
					NameLines: path.getBoundingClientRect().height / parseFloat(getComputedStyle(path).fontSize),
					Overflow: document.documentElement.scrollWidth - innerWidth,
					Filled: [...document.querySelectorAll(%[1]q + ".parameters input")].map((i) => i.value).join(""),
					Inverted: getComputedStyle(document.querySelector("#swagger-ui")).filter !== "none",
				};
			})()`, create)))
			if !strings.HasSuffix(got.First, "createToken") || got.Screens > tc.screens || got.NameLines > 3 || got.Overflow > 0 ||
				got.Filled != "" || got.Inverted != tc.dark {
				t.Errorf("%+v, want createToken first, at most %v screens, its name in 2 lines, nothing prefilled, dark %v", got, tc.screens, tc.dark)
			}
		})
	}
}

// layout is what TestLayout measures.
type layout struct {
	First     string  // operation on the page
	Screens   float64 // height of the opened operation
	NameLines float64 // height of its name, in its font size
	Overflow  float64 // pixels beyond the right edge
	Filled    string  // parameters that have a value
	Inverted  bool    // dark
}

// TestPageBelowPrefix checks the page behind a proxy that adds a prefix.
func TestPageBelowPrefix(t *testing.T) {
	tb := openTab(t)
	s := startDev(t)
	proxy := httptest.NewServer(http.StripPrefix("/tokens", httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.http})))
	t.Cleanup(proxy.Close)
	status, body := tb.tryPage(t, proxy.URL+"/tokens/docs/", s.jwt) // which leads to /tokens/docs
	tb.checkPage(t, strings.TrimPrefix(proxy.URL, "http://"), status, body)
}
