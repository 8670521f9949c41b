package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// process is a program that runs until it is stopped.
type process struct {
	name string
	log  string // file with what it says
	cmd  *exec.Cmd
	gone chan struct{}
}

// startProcess runs a program in dir. Its output goes to a file there.
func startProcess(ctx context.Context, dir, name string, args ...string) (*process, error) {
	p := &process{name: filepath.Base(name), log: filepath.Join(dir, filepath.Base(name)+".log"), gone: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.CommandContext(ctx, name, args...) //nolint:gosec // the peers' own commands
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	// tokend refuses a variable with its prefix that is no setting, such as the switch of its
	// tests.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TOKEND_") })
	p.cmd.Env = append(p.cmd.Env, "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	// A group of its own, so that workers end with it; and none outlives a run that is killed.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // it is killed in the end
		close(p.gone)
	}()
	return p, nil
}

// stop kills it, with its workers.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may be gone
	<-p.gone
}

// pollEvery is how closely a start is watched.
const pollEvery = time.Millisecond

// await waits until ready returns nil.
func (p *process) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.gone:
			said, _ := os.ReadFile(p.log)
			return fmt.Errorf("%s ended: %s", p.name, bytes.TrimSpace(said))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", p.name, err)
		case <-time.After(pollEvery):
		}
	}
}

// accepts is ready once something listens on addr.
func accepts(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// answers is ready once url answers 200.
func answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
}

// freeAddr is a loopback address that nobody listens on. Its port is below those that the system
// gives to whoever connects, so that it is still free when a server is told to listen on it.
func freeAddr() (string, error) {
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000)) //nolint:gosec // not a secret
		if l, err := net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", errors.New("no port from 10000 to 31999 is free")
}
