package spiffe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// TestBadAnswers: what an agent, or whoever else has its socket, answers in no good form is told as it is.
func TestBadAnswers(t *testing.T) {
	gRPC := func(body string, trailer ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			_, _ = io.WriteString(w, body)
			for i := 0; i < len(trailer); i += 2 {
				w.Header().Set(http.TrailerPrefix+trailer[i], trailer[i+1])
			}
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   error
		said   string
	}{
		"no such page": {http.NotFound, ErrNoAgent, "it answers HTTP status 404"},
		"a page":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }, ErrNoAgent, "it answers HTTP status 200"},
		"no status":    {gRPC(""), ErrUnreachable, "it has hung up"},
		"no number":    {gRPC("", "Grpc-Status", "x"), ErrUnreachable, "it has hung up"},
		"all is well":  {gRPC("", "Grpc-Status", "0"), ErrUnreachable, "it has ended the stream"},
		"in headers": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "7")
			w.Header().Set("Grpc-Message", "no%20identity")
		}, ErrNotRegistered, ": no identity"},
		"a strange code":   {gRPC("", "Grpc-Status", "99", "Grpc-Message", "100%"), ErrFailed, "Code(99): it has ended the stream"},
		"compressed":       {gRPC("\x01\x00\x00\x00\x00"), ErrUnreachable, "compressed"},
		"too large":        {gRPC("\x00\x7f\x00\x00\x00"), ErrUnreachable, "larger than 4 MiB"},
		"half a header":    {gRPC("\x00\x00"), ErrUnreachable, "unexpected EOF"},
		"half a message":   {gRPC("\x00\x00\x00\x00\x09abc"), ErrUnreachable, "ends too early: unexpected EOF"},
		"only a header":    {gRPC("\x00\x00\x00\x00\x09"), ErrUnreachable, "ends too early: unexpected EOF"},
		"no message of it": {gRPC("\x00\x00\x00\x00\x03abc"), ErrNoAgent, "proto"},
		"an empty message": {gRPC("\x00\x00\x00\x00\x00"), ErrUnusable, "there is no X.509-SVID in it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if _, err := Fetch(ctx, "unix://"+listen(t, tc.answer)); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.said) {
				t.Errorf("got %v, want %v and %q", err, tc.want, tc.said)
			}
		})
	}
}

// listen answers over HTTP/2 on a socket.
func listen(t *testing.T, answer http.HandlerFunc) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") //nolint:usetesting // t.TempDir has the test's name in it, and a socket's path may not be long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: answer, Protocols: &protocols, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l) // until Close
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-served
	})
	return socket
}

// FuzzAnswer: whatever an agent answers is a message that can be parsed, or an error.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x00\x03abc"))
	f.Add([]byte("\x00\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		r := bytes.NewReader(answer)
		for {
			left := r.Len()
			message, err := readFrame(r)
			if err != nil {
				if errors.Is(err, io.EOF) && left != 0 {
					t.Errorf("an end with %d bytes left: %v", left, err)
				}
				return
			}
			if left-r.Len() != frameHeader+len(message) {
				t.Errorf("%d bytes for a message of %d", left-r.Len(), len(message))
			}
			given := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: "spiffe://a/b", X509Svid: message, X509SvidKey: message, Bundle: message}}}
			if id, err := newIdentity(given); err == nil && (id.Certificate.Leaf == nil || id.Certificate.PrivateKey == nil || id.Bundle.Empty()) {
				t.Errorf("half an identity: %v", id.ID)
			}
		}
	})
}
