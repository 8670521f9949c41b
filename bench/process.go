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
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running program.
type process struct {
	name string
	log  string // file with its output
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
	// tokend refuses unknown variables with its prefix, such as the switch of its tests.
	p.cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "TOKEND_") })
	p.cmd.Env = append(p.cmd.Env, "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	// Its own group, so that stop also ends its workers; and it ends with this process.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // it is killed
		close(p.gone)
	}()
	return p, nil
}

// stop kills the process and its workers.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended
	<-p.gone
}

// pollEvery is the interval of readiness checks.
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

// accepts reports whether addr accepts connections.
func accepts(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

// answers reports whether url answers 200.
func answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		resp, err := get(ctx, url)
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

func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

// freeAddr returns an unused loopback address. Its port is below the range of ephemeral ports, so
// it stays free until a server listens on it.
func freeAddr() (string, error) {
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000)) //nolint:gosec // not a secret
		if l, err := net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", errors.New("no port from 10000 to 31999 is free")
}

// usage is the resources of a process and its workers.
type usage struct {
	cpu      time.Duration // user and system
	resident int64         // bytes
}

// usage reads the usage of the process and its children.
func (p *process) usage() (usage, error) {
	total, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return usage{}, err
	}
	others, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return usage{}, err
	}
	for _, dir := range others {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		stat, err := readStat(pid)
		if err != nil || stat.parent != p.cmd.Process.Pid { // it may have ended meanwhile
			continue
		}
		worker, err := usageOf(pid)
		if err != nil {
			return usage{}, err
		}
		total.cpu += worker.cpu
		total.resident += worker.resident
	}
	return total, nil
}

func usageOf(pid int) (usage, error) {
	stat, err := readStat(pid)
	if err != nil {
		return usage{}, err
	}
	cpu, err := cpuTime(pid)
	return usage{cpu: cpu, resident: stat.pages * int64(os.Getpagesize())}, err
}

// cpuTime returns the user and system time of a process in nanoseconds, from the clock of
// clock_getcpuclockid(3). The hundredths of a second in /proc/PID/stat are too coarse.
func cpuTime(pid int) (time.Duration, error) {
	const ofWholeProcess = 2
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofWholeProcess), &at); err != nil { //nolint:gosec // a process id has at most 22 bits
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}

// stat is a part of /proc/PID/stat; see proc(5).
type stat struct {
	parent int
	ticks  int64 // of CPU, user and system
	pages  int64 // resident
}

func readStat(pid int) (stat, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The name is in parentheses, and may contain some.
	fields := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	if len(fields) < 22 {
		return stat{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	number := func(i int) int64 {
		n, fault := strconv.ParseInt(fields[i], 10, 64)
		if fault != nil {
			err = fault
		}
		return n
	}
	s := stat{parent: int(number(1)), ticks: number(11) + number(12), pages: number(21)}
	return s, err
}
