// Package docs is the API's page: Swagger UI, and the OpenAPI document that it shows. All of it comes out of the binary, and the
// browser is told to ask no other host for anything. It knows nothing of calls: those that the page makes are like any other.
package docs

import (
	"embed"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/ForstaLabs/ephemeral-token-service/gen/openapi"
	"github.com/ForstaLabs/ephemeral-token-service/third_party/swaggerui"
)

// own is the page itself and how it starts Swagger UI.
//
//go:embed static
var own embed.FS

// Pages are what a GET or HEAD of each path is answered with: /docs with its parts, and /openapi.json. They need no credential.
//
// Of the Go module that carries Swagger UI there are but the files: its handlers use html/template, and with that the linker can leave
// out no method of anything, which would double the binary.
func Pages() (map[string]http.Handler, error) {
	pages := map[string]http.Handler{
		"/docs/":        http.HandlerFunc(withoutSlash),
		"/openapi.json": gzipped(openapi.Gzipped, "application/json"),
	}
	for _, p := range []struct {
		path, contentType string
		files             fs.FS
		name              string
		make              func(content []byte, contentType string) http.Handler
	}{
		{"/docs", "text/html; charset=utf-8", own, "static/index.html", stored},
		{"/docs/init.js", "text/javascript; charset=utf-8", own, "static/init.js", stored},
		{"/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8", swaggerui.FS, "swagger-ui-bundle.js.gz", gzipped},
		{"/docs/swagger-ui.css", "text/css; charset=utf-8", swaggerui.FS, "swagger-ui.css.gz", gzipped},
		{"/docs/favicon-32x32.png", "image/png", swaggerui.FS, "favicon-32x32.png", stored},
	} {
		content, err := fs.ReadFile(p.files, p.name)
		if err != nil {
			return nil, fmt.Errorf("the API page: %w", err)
		}
		pages[p.path] = p.make(content, p.contentType)
	}
	return pages, nil
}

// withoutSlash sends to the page, whose links are relative to where it is. So is this one: a proxy may have added a prefix.
func withoutSlash(w http.ResponseWriter, _ *http.Request) {
	protect(w.Header())
	w.Header().Set("Location", "../docs")
	w.WriteHeader(http.StatusPermanentRedirect)
}

// protect has the browser take code and styles from this origin only, talk to it only, and show the page in no other one.
func protect(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "+
		"img-src 'self' data:; "+ // Swagger UI's style sheet has its icons in it
		"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-cache") // it may be kept, and is asked for with its ETag
}
