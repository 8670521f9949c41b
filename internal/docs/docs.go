// Package docs serves the API page: Swagger UI with the OpenAPI document. Everything is in the
// binary, and the page's policy forbids requests to other hosts. Calls that the page makes are like
// any other.
package docs

import (
	"embed"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"github.com/ForstaLabs/ephemeral-token-service/gen/openapi"
	"github.com/ForstaLabs/ephemeral-token-service/third_party/swaggerui"
)

// own is the page, its style and the script that starts Swagger UI.
//
//go:embed static
var own embed.FS

// Pages returns the handlers for GET and HEAD of each path: /docs with its parts, and
// /openapi.json. They need no credential.
//
// Swagger UI's files are copied from its Go module. The module's own handlers would add half to the
// size of the binary.
func Pages() (map[string]http.Handler, error) {
	pages := map[string]http.Handler{"/": redirect("docs"), "/docs/": redirect("../docs")}
	for _, p := range []struct {
		path, contentType string
		files             fs.FS
		name              string
	}{
		{"/docs", "text/html; charset=utf-8", own, "static/index.html"},
		{"/docs/init.js", "text/javascript; charset=utf-8", own, "static/init.js"},
		{"/docs/docs.css", "text/css; charset=utf-8", own, "static/docs.css"},
		{"/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8", swaggerui.FS, "swagger-ui-bundle.js.gz"},
		{"/docs/swagger-ui.css", "text/css; charset=utf-8", swaggerui.FS, "swagger-ui.css.gz"},
		{"/docs/favicon-32x32.png", "image/png", swaggerui.FS, "favicon-32x32.png"},
	} {
		content, err := fs.ReadFile(p.files, p.name)
		if err == nil {
			pages[p.path], err = file(content, p.contentType, strings.HasSuffix(p.name, ".gz"))
		}
		if err != nil {
			return nil, fmt.Errorf("the API page: %w", err)
		}
	}
	var err error
	pages["/openapi.json"], err = file(openapi.Gzipped, "application/json", true)
	return pages, err
}

// redirect redirects to the page. Its links are relative, and so is the redirect, because a proxy
// may have added a prefix.
func redirect(location string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		protect(w.Header())
		w.Header().Set("Location", location)
		w.WriteHeader(http.StatusPermanentRedirect)
	})
}

// protect makes the browser load code and styles from this origin only, connect to it only, and
// refuse to show the page in a frame.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
		"img-src 'self' data:; "+ // the icons in Swagger UI's style sheet
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache") // may be stored, but is revalidated by its ETag
}
