package tool

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

// Mounted is a mount and the process that serves it.
type Mounted struct {
	tool  *Tool
	dir   string
	Root  string // where the tree is
	start time.Time
	cmd   *exec.Cmd
	said  *tail
	ended chan struct{} // closed when the process is gone
	peak  int64         // bytes, in all steps so far
}

// StartMount mounts, and waits until the tree can be looked at. A mount that is
// returned must be ended, with an error too.
func StartMount(ctx context.Context, t *Tool, n int, dir string) (*Mounted, Usage, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, Usage{}, err
	}
	m := &Mounted{tool: t, dir: dir, said: &tail{}, ended: make(chan struct{})}
	// It outlives ctx: End ends it.
	m.cmd = t.Command(t.Mount(n, dir)).process(context.Background(), m.said)
	lightenUp()
	m.start = time.Now()
	if err := m.cmd.Start(); err != nil {
		return nil, Usage{}, err
	}
	go func() {
		_ = m.cmd.Wait() // its exit code after a signal says nothing
		close(m.ended)
	}()
	root, err := m.wait(ctx)
	if err != nil {
		return m, Usage{}, err
	}
	m.Root = root
	u, err := m.usage()
	u.Wall = time.Since(m.start)
	return m, u, err
}

// wait returns where the tree is as soon as it is there. It looks from another
// goroutine: a file system that hangs must not hang the program.
func (m *Mounted) wait(ctx context.Context) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan string, 1)
	go func() {
		for ctx.Err() == nil {
			if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil && isMounted(info, m.dir) {
				if root := m.tool.Mounted(m.dir); root != "" {
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
		return "", fmt.Errorf("%s mount ended with %v%s", m.tool.Name, m.cmd.ProcessState, m.said)
	case <-ctx.Done():
		return "", fmt.Errorf("%s shows no snapshot: %w%s", m.tool.Name, context.Cause(ctx), m.said)
	}
}

// usage returns what the process has taken so far.
func (m *Mounted) usage() (Usage, error) {
	u, err := liveUsage(m.cmd.Process.Pid)
	if err != nil {
		return u, fmt.Errorf("%s mount has ended: %w%s", m.tool.Name, err, m.said)
	}
	m.peak = max(m.peak, u.Peak)
	return u, nil
}

// During measures what the process takes while do runs, and adds it to what do
// took itself.
func (m *Mounted) During(do func() (Usage, error)) (Usage, error) {
	before, err := m.usage()
	if err != nil {
		return Usage{}, err
	}
	// If that is refused the peak is that of its life so far.
	_ = resetPeak(strconv.Itoa(m.cmd.Process.Pid))
	u, err := do()
	if err != nil {
		return Usage{}, err
	}
	after, err := m.usage()
	if err != nil {
		return Usage{}, err
	}
	u.CPU += after.CPU - before.CPU
	u.Peak = after.Peak // not that of find or tar
	return u, nil
}

// ask ends the mount as its users would.
func (m *Mounted) ask() error {
	if m.tool.Umount == nil || m.Root == "" {
		return syscall.Kill(-m.cmd.Process.Pid, syscall.SIGINT)
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	_, err := m.tool.Command(m.tool.Umount(m.dir)).Run(ctx, nil)
	return err
}

// End unmounts and waits for the process, in the tool's own way, and if that
// does not do, by force, which is an error. The usage is that of its whole
// life. A second call does nothing.
func (m *Mounted) End() (Usage, error) {
	if m.cmd == nil {
		return Usage{}, nil
	}
	var failure error
	select {
	case <-m.ended:
		failure = fmt.Errorf("%s mount ended by itself, with %v%s", m.tool.Name, m.cmd.ProcessState, m.said)
	default:
		failure = m.ask()
		select {
		case <-m.ended:
		case <-time.After(grace):
			failure = errors.Join(failure, fmt.Errorf("%s mount had to be killed: it did not end within %v", m.tool.Name, grace))
			_ = detach(m.dir) // if that fails, it is said below
			_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
			<-m.ended
		}
	}
	u := Usage{}
	if r, ok := m.cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		u = rusageOf(r)
	}
	u.Peak = max(u.Peak, m.peak)
	m.cmd = nil
	if info, err := os.ReadFile("/proc/self/mountinfo"); err == nil && isMounted(info, m.dir) {
		failure = errors.Join(failure, fmt.Errorf("%s left its mount behind", m.tool.Name), detach(m.dir))
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
