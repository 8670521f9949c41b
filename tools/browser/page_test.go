package browser

import (
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

var screenshot = flag.String("screenshot", "", "where to save what TestPage sees in the end, as PNG")

const (
	openButton = chromedp.CSS("button.authorize")
	credential = chromedp.CSS(".modal-ux input")
)

// press clicks on what is there, wherever it is by then: the page moves things while it unfolds, and a mouse would miss them.
func press(button chromedp.CSS) chromedp.Action[chromedp.Void] {
	return chromedp.Steps(
		chromedp.WaitVisible(button),
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf("document.querySelector(%q).click()", button)),
	)
}

// tryPage does on the API's page what somebody does who tries the API: opens it, authorises with a JWT and executes a call.
func (tb *tab) tryPage(t *testing.T, at, jwt string) (status, body string) {
	t.Helper()
	const (
		create    = `div[id$="createToken"] `
		responses = create + ".live-responses-table tbody "
	)
	tb.do(t,
		chromedp.Navigate(at),
		press(openButton),
		chromedp.SendKeys(credential, jwt),
		press(".modal-ux button.authorize"),
		press(".modal-ux button.btn-done"),
		press(create+".opblock-summary-control"),
		chromedp.WaitVisible(chromedp.CSS(create+".opblock-description")), // the references of the operation have been followed
		press(create+"button.execute"),
	)
	status = get(t, tb, chromedp.Text(chromedp.CSS(responses+".response-col_status")))
	body = get(t, tb, chromedp.Text(chromedp.CSS(responses+".response-col_description")))
	return strings.TrimSpace(status), body
}

// checkPage fails the test unless there is a token, nothing has gone elsewhere, and the browser has nothing to complain of.
func (tb *tab) checkPage(t *testing.T, host, status, body string) {
	t.Helper()
	if status != "201" || !strings.Contains(body, `"token": "`) {
		t.Errorf("the page shows %q and\n%s", status, body)
	}
	foreign, all := tb.elsewhere(host)
	if len(foreign) > 0 || all < 6 { // the page, its two scripts, style sheet, document, and the call
		t.Errorf("of %d requests these are to others: %q", all, foreign)
	}
	if problems := tb.told(); len(problems) > 0 {
		t.Errorf("the console has\n%s", strings.Join(problems, "\n"))
	}
}

// TestPage: the API's page works, breaks no rule of its own Content-Security-Policy, asks nobody else, and keeps no credential.
func TestPage(t *testing.T) {
	tb := openTab(t)
	s := startDev(t)
	status, body := tb.tryPage(t, "http://"+s.http+"/docs", s.jwt)
	stored := get(t, tb, chromedp.Evaluate[string]("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"))
	if *screenshot != "" {
		if err := os.WriteFile(*screenshot, get(t, tb, chromedp.FullScreenshot(100)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
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
	t.Run("code of others", func(t *testing.T) {
		inject := `document.body.append(Object.assign(document.createElement("script"), {textContent: "window.injected = 1"})); window.injected === 1`
		injected := get(t, tb, chromedp.Evaluate[bool](inject))
		if injected || !slices.ContainsFunc(tb.told(), func(p string) bool { return strings.Contains(p, "Content Security Policy") }) {
			t.Errorf("an inline script runs; the console has %q", tb.told())
		}
	})
}

// TestPageBelowPrefix: a proxy may have the REST listener below a prefix.
func TestPageBelowPrefix(t *testing.T) {
	tb := openTab(t)
	s := startDev(t)
	proxy := httptest.NewServer(http.StripPrefix("/tokens", httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.http})))
	t.Cleanup(proxy.Close)
	status, body := tb.tryPage(t, proxy.URL+"/tokens/docs/", s.jwt) // which leads to /tokens/docs
	tb.checkPage(t, strings.TrimPrefix(proxy.URL, "http://"), status, body)
}
