package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// grace is how long what is told to end may take before it is killed, and how long
// the pipes of a process that has ended may be held open by what it left running.
const grace = 5 * time.Second

// maxTail is how much of what a process says on stderr is kept for its error.
const maxTail = 2 << 10

// Proc is a program to be run. It has a process group of its own, so that Ctrl-C at
// a terminal does not reach it: what ends it is the end of a context, or of this
// process, whatever kills that. Then the group gets SIGTERM, and five seconds later
// SIGKILL. Where the program ends by itself what it left running is left alone.
type Proc struct {
	What    string   // how messages call it: "the pre hook"
	Args    []string // the program, looked up in PATH, and its arguments
	Env     []string // its whole environment
	Stdin   io.Reader
	Stdout  io.Writer                     // nil: with stderr
	Timeout time.Duration                 // 0: none
	Logf    func(format string, a ...any) // gets each line of stderr as it comes; may be nil
}

// Shell returns the arguments that have the shell do a command.
func Shell(command string) []string { return []string{"/bin/sh", "-c", command} }

// Run runs the program to its end. An error of it ends with the last it said.
func (p Proc) Run(ctx context.Context) error {
	r, err := p.Start(ctx)
	if err != nil {
		return err
	}
	return r.Wait()
}

// Output runs the program and returns what it prints on stdout, at most a mebibyte.
func (p Proc) Output(ctx context.Context) (string, error) {
	var b bytes.Buffer
	p.Stdout = &limited{w: &b, left: 1 << 20}
	err := p.Run(ctx)
	return b.String(), err
}

// Running is a started program.
type Running struct {
	p       Proc
	cmd     *exec.Cmd
	log     *tail
	unguard func() // of the guard
	ctx     context.Context
	end     context.CancelFunc
	done    chan struct{}
	err     error // once done is closed
}

// Start starts the program. What is started must be waited for.
func (p Proc) Start(ctx context.Context) (*Running, error) {
	r := &Running{p: p, done: make(chan struct{}), log: &tail{logf: p.Logf, what: p.What}}
	if r.ctx, r.end = context.WithCancel(ctx); p.Timeout > 0 {
		r.ctx, r.end = context.WithTimeout(ctx, p.Timeout)
	}
	cmd := exec.CommandContext(r.ctx, p.Args[0], p.Args[1:]...)
	cmd.Env, cmd.Stderr, cmd.Stdout = p.Env, r.log, p.Stdout
	if p.Stdout == nil {
		cmd.Stdout = r.log
	}
	if p.Stdin != nil {
		cmd.Stdin = &killing{r, p.Stdin}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	r.cmd = cmd
	err := cmd.Start()
	if err == nil {
		if r.unguard, err = guard(cmd.Process.Pid); err != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		}
	}
	if err != nil {
		r.end()
		return nil, fmt.Errorf("%s: %w", p.What, err)
	}
	go func() {
		r.err = cmd.Wait()
		r.unguard()
		close(r.done)
	}()
	return r, nil
}

// guard watches over a process group from outside: if this process dies before it
// ends the guard, the group is ended. Pdeathsig would reach the program alone, and not
// what that has started; pg_basebackup, for one, has a child that goes on by itself
// for ever, and keeps the server's log from being recycled.
func guard(group int) (end func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	g := exec.Command("/bin/sh", "-c", `read -r _; kill -TERM "-$1"; sleep 5; kill -KILL "-$1"`, "sh", strconv.Itoa(group))
	g.Stdin = r // its end is that of this process, which alone has the other side
	g.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.Start(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return func() {
		_ = g.Process.Kill()
		_ = g.Wait()
		w.Close()
	}, nil
}

// Wait waits for the program's end. It may be called by many, and again.
func (r *Running) Wait() error {
	<-r.done
	cancelled := r.ctx.Err()
	r.end()
	if cancelled != nil {
		// What the program has started goes with it.
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	}
	r.log.flush()
	err := r.err
	switch {
	case errors.Is(err, exec.ErrWaitDelay) && r.cmd.ProcessState.Success():
		return nil // it left something running that holds its stderr, as a hook may
	case err == nil:
		return nil
	case errors.Is(cancelled, context.DeadlineExceeded) && r.p.Timeout > 0:
		return fmt.Errorf("%s did not end within %v%s", r.p.What, r.p.Timeout, r.log.text())
	case cancelled != nil:
		return fmt.Errorf("%s was stopped: %w", r.p.What, cancelled)
	}
	return fmt.Errorf("%s failed: %w%s", r.p.What, err, r.log.text())
}

// Stop ends the program if it still runs, and waits for that.
func (r *Running) Stop() {
	select {
	case <-r.done:
	default:
		r.end()
		<-r.done
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// killing is a program's input. Where it cannot be read the program must not take
// what it got for the whole.
type killing struct {
	r  *Running
	in io.Reader
}

func (k *killing) Read(p []byte) (int, error) {
	n, err := k.in.Read(p)
	if err != nil && err != io.EOF {
		_ = syscall.Kill(-k.r.cmd.Process.Pid, syscall.SIGKILL)
	}
	return n, err
}

// limited is a writer of which too much is an error.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("more output than expected")
	}
	return l.w.Write(p)
}

// tail keeps the last of what a program says.
type tail struct {
	what string
	logf func(format string, a ...any)

	mu   sync.Mutex
	kept []byte
	line []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if len(t.kept) > maxTail {
		t.kept = append([]byte(nil), t.kept[len(t.kept)-maxTail:]...)
	}
	for _, b := range p {
		if b == '\n' || len(t.line) == maxTail {
			t.log()
		}
		if b != '\n' {
			t.line = append(t.line, b)
		}
	}
	return len(p), nil
}

func (t *tail) log() {
	if t.logf != nil && len(t.line) > 0 {
		t.logf("%s: %s", t.what, bytes.ToValidUTF8(t.line, []byte("?")))
	}
	t.line = t.line[:0]
}

func (t *tail) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log()
}

// text is what an error ends with.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := strings.TrimSpace(strings.ToValidUTF8(string(t.kept), "?"))
	if s == "" {
		return ""
	}
	return ": " + strings.ReplaceAll(s, "\n", "; ")
}
