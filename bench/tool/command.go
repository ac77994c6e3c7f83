package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// grace is how long a process that was asked to end may take.
const grace = 15 * time.Second

// Command is one process to run.
type Command struct {
	Args []string // the program first
	Env  []string
	Dir  string // where it runs; empty: the program's own
}

// process prepares it in a group of its own, so that a Ctrl-C at the
// terminal reaches this program only, which then ends the group.
func (c Command) process(ctx context.Context, said *tail) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Env, cmd.Dir = c.Env, c.Dir
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	return cmd
}

// Run runs it to its end. If read is not nil it consumes the standard output,
// to its end; its error counts like one of the process.
func (c Command) Run(ctx context.Context, read func(io.Reader) error) (Usage, error) {
	said := &tail{}
	cmd := c.process(ctx, said)
	var out io.ReadCloser
	if read != nil {
		cmd.Stdout = nil
		var err error
		if out, err = cmd.StdoutPipe(); err != nil {
			return Usage{}, err
		}
	}
	lightenUp()
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return Usage{}, err
	}
	var readErr error
	if read != nil {
		readErr = read(out)
		// A process that cannot write must not be taken for one that hangs.
		_, drain := io.Copy(io.Discard, out)
		readErr = errors.Join(readErr, drain)
	}
	err := cmd.Wait()
	wall := time.Since(start)
	if ctx.Err() != nil {
		// What its children are, and did not end with it.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		return Usage{}, fmt.Errorf("%s: %w", c, context.Cause(ctx))
	}
	if err != nil {
		return Usage{}, fmt.Errorf("%s: %w%s", c, err, said)
	}
	if readErr != nil {
		return Usage{}, fmt.Errorf("%s: %w", c, readErr)
	}
	u := Usage{}
	if r, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u = rusageOf(r)
	}
	u.Wall = wall
	return u, nil
}

// Output runs it and returns what it printed, at most 4 MiB.
func (c Command) Output(ctx context.Context) ([]byte, error) {
	var b bytes.Buffer
	_, err := c.Run(ctx, func(r io.Reader) error {
		_, err := io.Copy(&b, io.LimitReader(r, 4<<20))
		return err
	})
	return b.Bytes(), err
}

// String returns the program and its first arguments, for messages.
func (c Command) String() string {
	name := c.Args[0][strings.LastIndexByte(c.Args[0], os.PathSeparator)+1:]
	return strings.Join(append([]string{name}, c.Args[1:min(len(c.Args), 3)]...), " ")
}

// tail keeps the end of what is written to it, for messages. It is safe for
// concurrent use.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// tailSize is how much of a tool's last words is kept, in bytes.
const tailSize = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-tailSize):]...)
	t.b = t.b[max(0, len(t.b)-tailSize):]
	return len(p), nil
}

// String returns the last lines behind a colon, or nothing.
func (t *tail) String() string {
	const lines = 4
	t.mu.Lock()
	said := strings.Split(strings.TrimSpace(string(t.b)), "\n")
	t.mu.Unlock()
	said = said[max(0, len(said)-lines):]
	for i, line := range said {
		said[i] = strings.TrimSpace(line)
	}
	if text := strings.Join(said, " | "); text != "" {
		return ": " + text
	}
	return ""
}
