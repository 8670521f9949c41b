package proof

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ForstaLabs/ephemeral-token-service/atlas"
	"github.com/ForstaLabs/ephemeral-token-service/internal/testutil"
	"github.com/ForstaLabs/ephemeral-token-service/internal/tokencache"
	"github.com/ForstaLabs/ephemeral-token-service/server"
)

// A replica that can be killed is a process of the test's own program, which TestMain turns into a
// replica if replicaVariable is set.

// replicaVariable contains the replicaSettings as JSON.
const replicaVariable = "TEST_REPLICA"

// replicaSettings are the settings of one replica.
type replicaSettings struct {
	GRPCAddr, HTTPAddr string
	AtlasURL           string
	AtlasCA            []byte
	RedisURL           string
	RedisBudget        time.Duration
	TTL, Stale         time.Duration
}

// config returns the server's configuration.
func (s replicaSettings) config(atlasClient tokencache.Atlas) server.Config {
	c := server.Config{
		GRPCAddr: s.GRPCAddr, HTTPAddr: s.HTTPAddr, Atlas: atlasClient, Logger: slog.New(slog.DiscardHandler),
		CallCeiling: proofCeiling, DrainTimeout: proofCeiling,
		Cache: tokencache.Config{TTL: s.TTL, StaleIfError: s.Stale, SettleTime: proofSettle},
	}
	if s.RedisURL != "" {
		c.Cache.Redis = &tokencache.RedisConfig{URL: s.RedisURL, Budget: s.RedisBudget}
	}
	return c
}

// runReplica serves until it is killed.
func runReplica(settings string) error {
	var s replicaSettings
	if err := json.Unmarshal([]byte(settings), &s); err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.AtlasCA) {
		return errors.New("no authority of Atlas's")
	}
	client, err := atlas.New(atlas.Config{BaseURL: s.AtlasURL, RootCAs: roots, Timeout: proofAtlasTimeout})
	if err != nil {
		return err
	}
	srv, err := server.New(s.config(client))
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return srv.Run(ctx)
}

// replicaProcess is a replica that is killed repeatedly.
type replicaProcess struct {
	t        *testing.T
	settings replicaSettings
	cmd      *exec.Cmd
}

// newReplicaProcess starts a replica.
func (w *world) newReplicaProcess(t *testing.T) *replicaProcess {
	t.Helper()
	p := &replicaProcess{t: t, settings: replicaSettings{
		GRPCAddr: freeAddr(t), HTTPAddr: freeAddr(t), AtlasURL: w.atlas.URL(), AtlasCA: w.atlas.CAPEM(),
		RedisURL: w.redis.URL(), TTL: w.ttl, Stale: w.stale,
	}}
	p.start()
	t.Cleanup(p.kill)
	return p
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start returns when the replica answers.
func (p *replicaProcess) start() {
	if p.cmd != nil && p.cmd.ProcessState == nil {
		return // it is running
	}
	settings, err := json.Marshal(p.settings)
	if err != nil {
		p.t.Error(err)
		return
	}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(p.cmd.Environ(), replicaVariable+"="+string(settings))
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		p.t.Error(err)
		return
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-time.After(5 * time.Millisecond) {
		if conn, err := net.Dial("tcp", p.settings.HTTPAddr); err == nil {
			_ = conn.Close()
			return
		}
	}
	p.t.Error("the replica does not answer")
}

// kill kills the replica.
func (p *replicaProcess) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// callers returns clients that reconnect quickly.
func (p *replicaProcess) callers(t *testing.T) [2]testutil.Caller {
	t.Helper()
	again := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1, MaxDelay: 10 * time.Millisecond}}
	conn, err := grpc.NewClient(p.settings.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(again))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return [2]testutil.Caller{
		testutil.NewGRPCCaller(conn),
		testutil.RESTCaller{Base: "http://" + p.settings.HTTPAddr, Client: &http.Client{Transport: transport}},
	}
}
