//go:build unix

package main_test

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ForstaLabs/ephemeral-token-service/atlas/emulator"
	ephemeraltokenv1 "github.com/ForstaLabs/ephemeral-token-service/gen/forsta/ephemeraltoken/v1"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache/redistest"
)

// Replicas remember together, behind a password, and say so; a deleted token is served by none of
// them.
func TestReplicasShareRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, "--requirepass", "correct horse")
	em := startAtlas(t)
	in := invocation{args: []string{
		"--cache-ttl=1m", "--cache-redis-url=" + redis.URL(), "--cache-redis-password-file=" + writeFile(t, "password", []byte("correct horse\n")),
	}}
	here, there := in.startServe(t, em), in.startServe(t, em)
	jwt := "JWT " + em.Org(0).JWT()
	var first string
	poll(t, "one replica to hand out what the other has remembered", func() bool {
		first = rest(t, http.MethodPost, here.http, "Authorization", jwt).token()
		got := rest(t, http.MethodPost, there.http, "Authorization", jwt)
		return first != "" && got.token() == first && strings.HasPrefix(got.header.Get("Cache-Status"), "tokend; hit; ttl=") && got.header.Get("Age") != ""
	})
	if got := rest(t, http.MethodDelete, there.http, "Authorization", jwt); got.status != http.StatusNoContent {
		t.Fatalf("delete: %d %s", got.status, got.body)
	}
	for _, s := range []*service{here, there} {
		if got := rest(t, http.MethodPost, s.http, "Authorization", jwt); got.token() == "" || got.token() == first {
			t.Errorf("after the delete: %d, the old token: %v", got.status, got.token() == first)
		}
		if log := s.stderr.String(); strings.Contains(log, "correct horse") || strings.Contains(log, "one replica only") {
			t.Errorf("the log:\n%s", log)
		}
	}
}

// A cache in memory is for one replica, and a process cannot see others: so it says so.
func TestOneReplicaWarning(t *testing.T) {
	t.Parallel()
	s := startServe(t, "--cache-ttl=1m")
	poll(t, "a warning", func() bool { return strings.Contains(s.stderr.String(), "one replica only") })
}

// Fault row 62: a replica is killed while Atlas deletes. Its caller sees UNAVAILABLE, and the other
// replica does not hand out what was remembered, whether the delete took effect or not.
func TestFault62KilledInMidDelete(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"gRPC", "REST"} {
		for _, effect := range []string{"before", "after"} {
			t.Run(transport+", killed "+effect+" the effect", func(t *testing.T) {
				t.Parallel()
				redis, em := redistest.Start(t), startAtlas(t)
				in := invocation{args: []string{"--cache-ttl=1m", "--cache-redis-url=" + redis.URL()}}
				other := in.startServe(t, em)
				in.built = true
				killed := in.startServe(t, em)
				jwt := "JWT " + em.Org(0).JWT()
				poll(t, "a remembered token", func() bool {
					rest(t, http.MethodPost, killed.http, "Authorization", jwt)
					return strings.Contains(rest(t, http.MethodPost, other.http, "Authorization", jwt).header.Get("Cache-Status"), "hit")
				})
				hold := em.Hold
				if effect == "after" {
					hold = em.HoldAnswer
				}
				gate := hold(emulator.Delete)
				defer gate.Release()
				answer := make(chan bool, 1)
				go func() { answer <- deleteFails(t, transport, killed, jwt) }()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				if err := gate.Wait(ctx, 1); err != nil {
					t.Fatal(err)
				}
				killed.signal(t, os.Kill)
				if !<-answer {
					t.Error("the caller was not told that the service is unavailable")
				}
				for range 5 {
					got := rest(t, http.MethodPost, other.http, "Authorization", jwt)
					if got.token() == "" || got.token() != em.Org(0).EphemeralToken() || strings.Contains(got.header.Get("Cache-Status"), "hit") {
						t.Errorf("%d, Atlas's token: %v, %s", got.status, got.token() == em.Org(0).EphemeralToken(), got.header.Get("Cache-Status"))
					}
				}
			})
		}
	}
}

// deleteFails makes a delete and reports whether it failed as one does whose server is gone.
func deleteFails(t *testing.T, transport string, s *service, jwt string) bool {
	if transport == "REST" {
		_, err := do(newHTTPClient(t, nil), newRequest(t, http.MethodDelete, "http://"+s.http+restPath, "", "Authorization", jwt))
		return err != nil // nothing listens any more
	}
	conn, err := grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", jwt), time.Minute)
	defer cancel()
	_, err = ephemeraltokenv1.NewEphemeralTokenServiceClient(conn).DeleteToken(ctx, &ephemeraltokenv1.DeleteTokenRequest{})
	return status.Code(err) == codes.Unavailable
}
