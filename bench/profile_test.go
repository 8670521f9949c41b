package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

func TestProfile(t *testing.T) {
	var profile bytes.Buffer
	if err := pprof.Lookup("heap").WriteTo(&profile, 0); err != nil { // another kind than tokend's, in the same form
		t.Fatal(err)
	}
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/debug/pprof/profile" || r.URL.Query().Get("seconds") != "1" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(profile.Bytes())
	}))
	t.Cleanup(admin.Close)
	file := filepath.Join(t.TempDir(), "cpu.pprof")
	r := &running{admin: admin.Listener.Addr().String()}
	if err := takeProfile(t.Context(), r, file, time.Millisecond)(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Dir(file), filepath.Base(file)); !bytes.Equal(got, profile.Bytes()) {
		t.Error("the file is not what tokend has answered")
	}
	if got := read(t, filepath.Dir(file), "cpu.txt"); strings.Count(string(got), "flat%") != 2 {
		t.Errorf("the explanation is %s", got)
	}
	err := takeProfile(t.Context(), r, file, 2*time.Second)()
	if err == nil || !strings.Contains(err.Error(), "run without -profile") {
		t.Errorf("without such a page: %v", err)
	}
	if err := takeProfile(t.Context(), &running{}, file, time.Second)(); err != nil {
		t.Errorf("a server without an admin address: %v", err)
	}
}
