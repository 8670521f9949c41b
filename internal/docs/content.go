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
)

// file serves content. Compressed content is decompressed for clients that do not accept gzip.
func file(content []byte, contentType string, compressed bool) (http.Handler, error) {
	sum := sha256.Sum256(content)
	name, plain := hex.EncodeToString(sum[:16]), content
	if compressed {
		z, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		if plain, err = io.ReadAll(z); err != nil {
			return nil, err
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		protect(h)
		body, etag := plain, `"`+name+`"`
		if compressed {
			h.Add("Vary", "Accept-Encoding")
			if acceptsGzip(r.Header) {
				h.Set("Content-Encoding", "gzip")
				body, etag = content, `"`+name+`-gzip"`
			}
		}
		h.Set("Content-Type", contentType)
		h.Set("ETag", etag)
		if slices.Contains(etags(r.Header), etag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Length", strconv.Itoa(len(body)))
		if r.Method != http.MethodHead {
			_, _ = w.Write(body) // at once: http.ServeContent copies it through a buffer that a client can hold
		}
	}), nil
}

// etags returns those that a client has, without the mark of weak ones (RFC 9110, section 13.1.2).
func etags(h http.Header) []string {
	var all []string
	for tag := range strings.SplitSeq(strings.Join(h.Values("If-None-Match"), ","), ",") {
		all = append(all, strings.TrimPrefix(strings.TrimSpace(tag), "W/"))
	}
	return all
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
