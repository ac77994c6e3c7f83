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

	"golang.org/x/sys/unix"
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
// Its input has an end only where that of Stdin is read: not if Stdin fails, nor if
// this process is killed.
type Proc struct {
	What    string   // how messages call it: "the pre hook"
	Args    []string // the program, looked up in PATH, and its arguments
	Env     []string // its whole environment
	Stdin   io.Reader
	Stdout  io.Writer                     // nil: with stderr
	Timeout time.Duration                 // 0: none
	Hold    *os.File                      // is open until the group is ended, also if this process is killed; may be nil
	Logf    func(format string, a ...any) // gets each line of stderr as it comes; may be nil
	Warnf   func(format string, a ...any) // gets the end of stderr, at once, where no error has it; may be nil
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
	p.Stdout = Limited(&b, 1<<20)
	err := p.Run(ctx)
	return b.String(), err
}

// Running is a started program.
type Running struct {
	p       Proc
	cmd     *exec.Cmd
	log     *tail
	stderr  *tail // without what went to stdout
	warned  sync.Once
	in      *os.File // the other side of its input; nil: it has none
	rest    *os.File // its input itself: what is in there at the end was not read
	fed     chan struct{}
	unguard func()
	ctx     context.Context
	end     context.CancelFunc
	late    <-chan time.Time // set when it is told to end: the time for that is over
	done    chan struct{}
	took    int64 // bytes of its input, once done is closed
	err     error // likewise
}

// Start starts the program. What is started must be waited for.
func (p Proc) Start(ctx context.Context) (*Running, error) {
	r := &Running{p: p, done: make(chan struct{}), log: &tail{logf: p.Logf, what: p.What}, stderr: &tail{}}
	if r.ctx, r.end = context.WithCancel(ctx); p.Timeout > 0 {
		r.ctx, r.end = context.WithTimeout(ctx, p.Timeout)
	}
	cmd, let, err := p.held(r.ctx)
	if err != nil {
		r.end()
		return nil, fmt.Errorf("%s: %w", p.What, err)
	}
	defer let.Close()
	defer cmd.ExtraFiles[0].Close()
	cmd.Env, cmd.Stderr, cmd.Stdout = p.Env, r.log, p.Stdout
	if p.Warnf != nil {
		cmd.Stderr = io.MultiWriter(r.log, r.stderr)
	}
	if p.Stdout == nil {
		cmd.Stdout = r.log
	}
	if p.Stdin != nil {
		if r.rest, r.in, err = os.Pipe(); err != nil {
			r.end()
			return nil, err
		}
		cmd.Stdin, r.fed = r.rest, make(chan struct{})
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		r.late = time.After(grace)
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	}
	cmd.WaitDelay = grace
	r.cmd = cmd
	if err = cmd.Start(); err == nil {
		if r.unguard, err = guard(cmd.Process.Pid, r.in, p.Hold); err != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
		} else {
			_, _ = let.WriteString("\n") // who does not read it was ended already: Wait tells
		}
	}
	if err != nil {
		r.end()
		if r.in != nil {
			_ = errors.Join(r.in.Close(), r.rest.Close())
		}
		return nil, fmt.Errorf("%s: %w", p.What, err)
	}
	if r.in != nil {
		go r.feed()
	}
	go r.watch()
	return r, nil
}

// watch waits for the program, and for what it has started where that is to end with it.
func (r *Running) watch() {
	defer close(r.done)
	err, stopped := r.cmd.Wait(), error(nil)
	if r.late != nil { // otherwise it has ended by itself
		stopped = r.ctx.Err()
		endGroup(r.cmd.Process.Pid, r.late)
	}
	if r.in != nil {
		_ = r.in.SetWriteDeadline(time.Unix(1, 0)) // nobody reads on
		<-r.fed
		left, lerr := unix.IoctlGetInt(int(r.rest.Fd()), unix.TIOCINQ)
		if r.took -= int64(left); lerr != nil {
			r.took = 0
		}
		_ = r.rest.Close()
	}
	r.unguard()
	r.log.flush()
	r.err = r.outcome(err, stopped)
}

// endGroup waits until a group that was told to end has, and kills what has not when
// it is late.
func endGroup(group int, late <-chan time.Time) {
	if !ended(group, late) {
		_ = syscall.Kill(-group, syscall.SIGKILL)
		ended(group, time.After(time.Second)) // what nobody waits for counts as there
	}
}

// ended waits until a group has ended, but not longer than until.
func ended(group int, until <-chan time.Time) bool {
	for syscall.Kill(-group, 0) == nil {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-until:
			return false
		}
	}
	return true
}

// held returns the program, which begins when a line is written to let: it must be
// guarded by then. If this process dies before, it never begins.
func (p Proc) held(ctx context.Context) (cmd *exec.Cmd, let *os.File, err error) {
	path, err := exec.LookPath(p.Args[0])
	if err != nil {
		return nil, nil, err
	}
	line, let, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	args := append([]string{"-c", `read -r _ <&3 || exit; exec 3<&-; exec "$@"`, "sh", path}, p.Args[1:]...)
	cmd = exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.ExtraFiles = []*os.File{line} // descriptor 3
	return cmd, let, nil
}

// feed gives the program its input, and the end of it. Until then the guard has the
// pipe open, too. The program must not take for the whole what it got of an input
// that cannot be read.
func (r *Running) feed() {
	defer close(r.fed)
	defer r.in.Close()
	var err error
	r.took, err = io.Copy(r.in, onlyReader{r.p.Stdin})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return // it has ended: its exit code says whether that is right
	}
	var next func()
	if err == nil {
		next, err = guard(r.cmd.Process.Pid, nil, r.p.Hold)
	}
	if err != nil {
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		return
	}
	r.unguard() // and with it its side of the pipe
	r.unguard = next
}

// onlyReader keeps io.Copy from other ways than Read.
type onlyReader struct{ io.Reader }

// guard watches over a process group from outside: if this process dies before it
// ends the guard, the group is ended. Pdeathsig would reach the program alone, and not
// what that has started; pg_basebackup, for one, has a child that goes on by itself
// for ever, and keeps the server's log from being recycled. What is to be held stays
// open until then: a pipe of which the group must not see the end before it is ended,
// and a lock that nobody else is to have while it may be at work.
func guard(group int, in, lock *os.File) (end func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	g := exec.Command("/bin/sh", "-c", `read -r _; kill -TERM "-$1"
for i in 1 2 3 4 5; do sleep 1; kill -0 "-$1" || exit; done; kill -KILL "-$1"`, "sh", strconv.Itoa(group))
	g.Stdin = r // its end is that of this process, which alone has the other side
	if in != nil {
		same, err := again(in)
		if err != nil {
			return nil, errors.Join(err, w.Close())
		}
		defer same.Close()
		g.ExtraFiles = []*os.File{same}
	}
	if lock != nil {
		g.ExtraFiles = append(g.ExtraFiles, lock)
	}
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

// again returns a second descriptor of a pipe. Where a file is given to a process
// itself it blocks from then on, and no deadline ends a write to it.
func again(f *os.File) (*os.File, error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	err = c.Control(func(p uintptr) { fd, derr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, derr); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Wait waits for the program's end. It may be called by many, and again.
func (r *Running) Wait() error {
	<-r.done
	r.end()
	if r.err == nil {
		r.warned.Do(r.warn)
	}
	return r.err
}

// Took returns how many bytes the program has read of its input. It is known once Wait
// has returned.
func (r *Running) Took() int64 { return r.took }

// outcome is what Wait says of a program: stopped is why it had to end, if it had.
func (r *Running) outcome(err, stopped error) error {
	switch {
	case err == nil,
		errors.Is(err, exec.ErrWaitDelay) && r.cmd.ProcessState.Success(): // it left something running that holds its stderr, as a hook may
		return nil
	case errors.Is(stopped, context.DeadlineExceeded) && r.p.Timeout > 0:
		return fmt.Errorf("%s did not end within %v%s", r.p.What, r.p.Timeout, r.log.text())
	case stopped != nil:
		return fmt.Errorf("%s was stopped: %w", r.p.What, stopped)
	}
	return fmt.Errorf("%s failed: %w%s", r.p.What, err, r.log.text())
}

// warn tells what a program has said that has ended well: a part of it may not have, as
// all of a pipe but the last.
func (r *Running) warn() {
	if said := r.stderr.text(); said != "" && r.p.Warnf != nil {
		r.p.Warnf("%s ended with exit code 0, but said on its standard error%s", r.p.What, said)
	}
}

// Stop ends the program if it still runs, and waits for that.
func (r *Running) Stop() {
	r.end()
	<-r.done
}

// Limited returns w as a program's output, of which more than n bytes are an error.
func Limited(w io.Writer, n int) io.Writer { return &limited{w, n} }

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
	cut  bool // more was said before
	line []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if len(t.kept) > maxTail {
		t.kept, t.cut = append([]byte(nil), t.kept[len(t.kept)-maxTail:]...), true
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
	s = strings.ReplaceAll(s, "\n", "; ")
	if t.cut {
		s = "..." + s
	}
	return ": " + s
}
