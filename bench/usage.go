package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what a process has used, with its workers.
type usage struct {
	cpu      time.Duration // user and system
	resident int64         // bytes
}

// usage reads what the process and its children use.
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

// cpuTime is the user and system time of a process in nanoseconds: what /proc/PID/stat has in
// hundredths of a second, which is too coarse for a short measurement. The clock is that of
// clock_getcpuclockid(3).
func cpuTime(pid int) (time.Duration, error) {
	const ofWholeProcess = 2
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|ofWholeProcess), &at); err != nil { //nolint:gosec // a process id has at most 22 bits
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}

// stat is what is needed of /proc/PID/stat (proc(5)).
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
	// The name is in parentheses, and may have some in it.
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
