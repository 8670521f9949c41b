package docs

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// stored serves content.
func stored(content []byte, contentType string) http.Handler {
	etag := etagOf(content)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serve(w, r, content, contentType, etag)
	})
}

// gzipped serves compressed content, decompressed for clients that do not accept gzip.
func gzipped(content []byte, contentType string) http.Handler {
	etag := etagOf(content)
	plain := sync.OnceValues(func() ([]byte, error) { // rarely needed
		z, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept-Encoding")
		if acceptsGzip(r.Header) {
			w.Header().Set("Content-Encoding", "gzip")
			serve(w, r, content, contentType, etag)
			return
		}
		content, err := plain()
		if err != nil {
			panic(err) // cannot happen: it is in the binary, and a test reads it
		}
		serve(w, r, content, contentType, strings.TrimSuffix(etag, `"`)+`-plain"`)
	})
}

// serve responds with content, or that the client's copy is current.
func serve(w http.ResponseWriter, r *http.Request, content []byte, contentType, etag string) {
	protect(w.Header())
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("ETag", etag)
	if slices.Contains(etags(r.Header), etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(content) // at once: http.ServeContent copies it through a buffer that a client can hold
	}
}

// etags returns those that a client has, without the mark of weak ones (RFC 9110, section 13.1.2).
func etags(h http.Header) []string {
	var all []string
	for tag := range strings.SplitSeq(strings.Join(h.Values("If-None-Match"), ","), ",") {
		all = append(all, strings.TrimPrefix(strings.TrimSpace(tag), "W/"))
	}
	return all
}

// etagOf returns an ETag that depends on the content alone.
func etagOf(content []byte) string {
	sum := sha256.Sum256(content)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// acceptsGzip reports whether the client accepts gzip by name and with a weight above zero.
func acceptsGzip(h http.Header) bool {
	for accepted := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		coding, params, err := mime.ParseMediaType(accepted)
		if err == nil && coding == "gzip" {
			return strings.Trim(params["q"], "0.") != "" || params["q"] == ""
		}
	}
	return false
}
