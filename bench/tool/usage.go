package tool

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Usage is what a step took.
type Usage struct {
	Wall time.Duration
	CPU  time.Duration // user and system
	Peak int64         // bytes resident at most; 0 if unknown
}

// rusageOf returns CPU time and peak memory of a process and of the children
// that it waited for.
func rusageOf(r *syscall.Rusage) Usage {
	return Usage{
		CPU:  time.Duration(r.Utime.Nano() + r.Stime.Nano()),
		Peak: r.Maxrss << 10, // Linux counts KiB
	}
}

// lightenUp makes this process small. Linux counts the memory of the parent, as
// it is when a child starts, into the child's peak: that is the least that can
// be measured.
func lightenUp() {
	debug.FreeOSMemory()
	_ = resetPeak("self") // an old kernel: the floor stays a little higher
}

// resetPeak makes the peak of a process what it holds now; pid may be "self".
func resetPeak(pid string) error {
	return os.WriteFile("/proc/"+pid+"/clear_refs", []byte("5"), 0)
}

// clockTick is the unit of /proc/PID/stat: the kernel's ABI fixes it at 1/100 s.
const clockTick = 10 * time.Millisecond

// statCPU returns the CPU time, user and system, that a process and the children
// it waited for have had, from the text of /proc/PID/stat.
func statCPU(stat []byte) (time.Duration, error) {
	// The second field is the program's name in parentheses, and may hold both
	// blanks and parentheses.
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("/proc/PID/stat: no program name")
	}
	fields := strings.Fields(string(stat[i+1:]))
	const utime, cstime = 14 - 3, 17 - 3 // utime, stime, cutime, cstime; the state is the third field
	if len(fields) <= cstime {
		return 0, fmt.Errorf("/proc/PID/stat: %d fields after the name", len(fields))
	}
	var sum time.Duration
	for _, f := range fields[utime : cstime+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		sum += time.Duration(n) * clockTick
	}
	return sum, nil
}

// statusPeak returns the peak of a process in bytes, from the text of
// /proc/PID/status.
func statusPeak(status []byte) (int64, error) {
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, "VmHWM:")
		if !ok {
			continue
		}
		number, ok := strings.CutSuffix(strings.TrimSpace(rest), " kB")
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || !ok {
			return 0, fmt.Errorf("/proc/PID/status: %q", strings.TrimSpace(line))
		}
		return n << 10, nil
	}
	return 0, errors.New("/proc/PID/status: no VmHWM: the process has ended")
}

// liveUsage returns what a running process has taken so far, but the wall time.
func liveUsage(pid int) (Usage, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Usage{}, err
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Usage{}, err
	}
	cpu, err := statCPU(stat)
	if err != nil {
		return Usage{}, err
	}
	peak, err := statusPeak(status)
	return Usage{CPU: cpu, Peak: peak}, err
}

// isMounted tells whether something is mounted at dir, from the text of
// /proc/self/mountinfo.
func isMounted(mountinfo []byte, dir string) bool {
	for line := range bytes.Lines(mountinfo) {
		if f := bytes.Fields(line); len(f) > 4 && unescape(string(f[4])) == dir {
			return true
		}
	}
	return false
}

// unescape undoes what mountinfo does to blanks and the like: a backslash and
// three octal digits.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
