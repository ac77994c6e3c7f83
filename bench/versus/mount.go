package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// mounted is a mount and the process that serves it.
type mounted struct {
	tool  *tool
	dir   string
	root  string // where the tree is
	start time.Time
	cmd   *exec.Cmd
	said  *tail
	ended chan struct{} // closed when the process is gone
	peak  int64         // bytes, in all steps so far
}

// startMount mounts, and waits until the tree can be looked at. A mount that is
// returned must be ended, with an error too.
func startMount(ctx context.Context, t *tool, n int, dir string) (*mounted, usage, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, usage{}, err
	}
	m := &mounted{tool: t, dir: dir, said: &tail{}, ended: make(chan struct{})}
	// It outlives ctx: end ends it.
	m.cmd = t.command(t.mount(n, dir)).process(context.Background(), m.said)
	lightenUp()
	m.start = time.Now()
	if err := m.cmd.Start(); err != nil {
		return nil, usage{}, err
	}
	go func() {
		_ = m.cmd.Wait() // its exit code after a signal says nothing
		close(m.ended)
	}()
	root, err := m.wait(ctx)
	if err != nil {
		return m, usage{}, err
	}
	m.root = root
	u, err := m.usage()
	u.Wall = time.Since(m.start)
	return m, u, err
}

// wait returns where the tree is as soon as it is there. It looks from another
// goroutine: a file system that hangs must not hang the program.
func (m *mounted) wait(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan string, 1)
	go func() {
		for ctx.Err() == nil {
			if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil && isMounted(info, m.dir) {
				if root := m.tool.mounted(m.dir); root != "" {
					found <- root
					return
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	select {
	case root := <-found:
		return root, nil
	case <-m.ended:
		return "", fmt.Errorf("%s mount ended with %v%s", m.tool.name, m.cmd.ProcessState, m.said)
	case <-ctx.Done():
		return "", fmt.Errorf("%s shows no snapshot: %w%s", m.tool.name, context.Cause(ctx), m.said)
	}
}

// usage returns what the process has taken so far.
func (m *mounted) usage() (usage, error) {
	u, err := liveUsage(m.cmd.Process.Pid)
	if err != nil {
		return u, fmt.Errorf("%s mount has ended: %w%s", m.tool.name, err, m.said)
	}
	m.peak = max(m.peak, u.Peak)
	return u, nil
}

// during measures what the process takes while do runs, and adds it to what do
// took itself.
func (m *mounted) during(do func() (usage, error)) (usage, error) {
	before, err := m.usage()
	if err != nil {
		return usage{}, err
	}
	// If that is refused the peak is that of its life so far.
	_ = resetPeak(strconv.Itoa(m.cmd.Process.Pid))
	u, err := do()
	if err != nil {
		return usage{}, err
	}
	after, err := m.usage()
	if err != nil {
		return usage{}, err
	}
	u.CPU += after.CPU - before.CPU
	u.Peak = after.Peak // not that of find or tar
	return u, nil
}

// ask ends the mount as its users would.
func (m *mounted) ask() error {
	if m.tool.umount == nil || m.root == "" {
		return syscall.Kill(-m.cmd.Process.Pid, syscall.SIGINT)
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_, err := m.tool.command(m.tool.umount(m.dir)).run(ctx, nil)
	return err
}

// end unmounts and waits for the process, in the tool's own way, and if that
// does not do, by force, which is an error. The usage is that of its whole
// life. A second call does nothing.
func (m *mounted) end() (usage, error) {
	if m.cmd == nil {
		return usage{}, nil
	}
	var failure error
	select {
	case <-m.ended:
		failure = fmt.Errorf("%s mount ended by itself, with %v%s", m.tool.name, m.cmd.ProcessState, m.said)
	default:
		failure = m.ask()
		select {
		case <-m.ended:
		case <-time.After(grace):
			failure = errors.Join(failure, fmt.Errorf("%s mount had to be killed: it did not end within %v", m.tool.name, grace))
			_ = detach(m.dir) // if that fails, it is said below
			_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
			<-m.ended
		}
	}
	u := usage{}
	if r, ok := m.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u = rusageOf(r)
	}
	u.Peak = max(u.Peak, m.peak)
	m.cmd = nil
	if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil && isMounted(info, m.dir) {
		failure = errors.Join(failure, fmt.Errorf("%s left its mount behind", m.tool.name), detach(m.dir))
	}
	return u, failure
}

// detach takes a mount away though it may be in use or dead.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH)
	for _, bin := range []string{"fusermount3", "fusermount"} {
		if err == nil {
			break
		}
		err = exec.Command(bin, "-u", "-z", dir).Run() // set-uid root: for everybody else
	}
	if err != nil {
		return fmt.Errorf("%s stays mounted: %w", dir, err)
	}
	return nil
}
