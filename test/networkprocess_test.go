package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestBadLineProcesses lets processes work over a line that does everything to two
// requests of five. It takes a minute, most of which they wait.
func TestBadLineProcesses(t *testing.T) {
	if !slow() {
		t.Skip("LEFT OUT: CUTBANK_SLOW=1 runs it, `make test-services` with a real server")
	}
	b := newBucket(t)
	newRuns(t, b, faults...).work(1)
}

// TestServicesBadLine does the same to a real server: with all faults together and,
// in full size, with each alone.
func TestServicesBadLine(t *testing.T) {
	b := realBucket(t)
	t.Run("all", func(t *testing.T) {
		t.Parallel()
		newRuns(t, b.fresh(), faults...).work(2)
	})
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if !slow() {
				t.Skip("LEFT OUT: `CUTBANK_SLOW=1 make test-services` runs it")
			}
			newRuns(t, b.fresh(), f).work(2)
		})
	}
}

// runs are processes on one repository over a line.
type runs struct {
	*cli
	line    *line
	longest atomic.Int64 // time of a process
	most    atomic.Int64 // bytes in memory of a process
	failed  atomic.Int64
}

// What a process may take: even where each answer is lost twice of five times.
const (
	mostTime   = 3 * time.Minute
	mostMemory = 256 << 20
)

func newRuns(t *testing.T, b *bucket, faults ...fault) *runs {
	c := newCLI(t)
	l, url := newLine(t, b.handler, 0.4, time.Second, faults...)
	c.env = append(c.env, "CUTBANK_REPO=s3+"+url+b.path)
	return &runs{cli: c, line: l}
}

// once runs a process to its end.
func (r *runs) once(args ...string) (stderr string, code int) {
	p := r.start(args...)
	begun := time.Now()
	timer := time.AfterFunc(mostTime, func() { p.Process.Kill() })
	defer timer.Stop()
	code = p.end()
	for took := time.Since(begun).Nanoseconds(); ; {
		was := r.longest.Load()
		if took <= was || r.longest.CompareAndSwap(was, took) {
			break
		}
	}
	used := p.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	for {
		was := r.most.Load()
		if used <= was || r.most.CompareAndSwap(was, used) {
			break
		}
	}
	if code == 3 { // findings are no errors of the program
		return p.err.String() + p.out.String(), code
	}
	return p.err.String(), code
}

// again runs a command until it succeeds. When it does not it must say why, with
// the exit code of what may pass.
func (r *runs) again(args ...string) {
	r.t.Helper()
	for try := 1; ; try++ {
		stderr, code := r.once(args...)
		if code == 0 {
			return
		}
		r.failed.Add(1)
		r.t.Logf("cutbank %s: %d: %s", args[0], code, strings.TrimSpace(stderr))
		if try == 8 || code != 1 || !strings.Contains(stderr, "cutbank: ") {
			r.t.Errorf("cutbank %q, attempt %d: exit code %d\n%s", args, try, code, stderr)
			return
		}
	}
}

func (r *runs) work(rounds int) {
	t := r.t
	r.again("init", "--chunk-size", "4KiB", "--frame-size", "16KiB", "--no-password")
	r.env = append(r.env, "CUTBANK_PASSWORD=")
	dirs := []string{t.TempDir(), t.TempDir()}
	var group sync.WaitGroup
	for i, dir := range dirs {
		group.Go(func() {
			for n := range rounds {
				bulk(t, fmt.Sprintf("%s/%d", dir, n), uint64(100*i+n), 1)
				r.again("snapshot", "--name", fmt.Sprintf("w%d", i), dir, "--quiet")
			}
		})
	}
	group.Go(func() {
		for range rounds {
			r.again("prune", "--quiet")
		}
	})
	group.Wait()
	group.Go(func() { r.again("forget", "--name", "w0", "--keep-last", "1") })
	group.Go(func() { r.again("prune", "--quiet") })
	group.Go(func() { r.again("verify", "--read-data") })
	for i, dir := range dirs {
		group.Go(func() {
			out := t.TempDir()
			r.again("restore", fmt.Sprintf("w%d/latest:%s", i, dir), out, "--no-receipt")
			if diff, err := exec.Command("diff", "-r", dir, out).CombinedOutput(); err != nil {
				t.Errorf("restored w%d: %v\n%s", i, err, diff)
			}
		})
	}
	group.Wait()
	r.mounted(dirs)
	r.line.quiet()
	r.again("prune", "--quiet")
	r.again("verify", "--read-data")
	for i, dir := range dirs {
		r.again("diff", fmt.Sprintf("w%d/latest", i), dir)
	}
	t.Logf("%d runs failed; at most %s and %d MiB; happened %v", r.failed.Load(), time.Duration(r.longest.Load()).Round(time.Second/10), r.most.Load()>>20, r.line.counts)
	if got := r.most.Load(); got > mostMemory {
		t.Errorf("a process took %d MiB, at most %d are right", got>>20, mostMemory>>20)
	}
}

// mounted reads all through a mount over the line.
func (r *runs) mounted(dirs []string) {
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		r.t.Logf("LEFT OUT: the mount: %v", err)
		return
	} else {
		f.Close()
	}
	mnt := r.t.TempDir()
	m := r.mount(mnt)
	defer m.stop()
	for i, dir := range dirs {
		if diff, err := exec.Command("diff", "-r", dir, fmt.Sprintf("%s/w%d/latest%s", mnt, i, dir)).CombinedOutput(); err != nil {
			r.t.Errorf("mounted w%d: %v\n%s", i, err, diff)
		}
	}
}

// TestInterruptedHung sends one Ctrl-C to a snapshot whose server has stopped
// answering. It ends soon, and the next goes on.
func TestInterruptedHung(t *testing.T) {
	if !slow() {
		t.Skip("LEFT OUT: CUTBANK_SLOW=1 runs it")
	}
	b := newBucket(t)
	var hangs atomic.Bool
	hung, release := make(chan struct{}, 1), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/packs/") && hangs.Load() {
			select {
			case hung <- struct{}{}:
			default:
			}
		}
		if hangs.Load() && len(hung) > 0 {
			<-release
			panic(http.ErrAbortHandler)
		}
		b.handler.ServeHTTP(w, r)
	}))
	defer srv.Close()
	c := newCLI(t)
	c.env = append(c.env, "CUTBANK_REPO=s3+"+srv.URL+b.path, "CUTBANK_PASSWORD=")
	c.run("init", "--no-password")
	src := t.TempDir()
	bulk(t, src, 3, 60)
	hangs.Store(true)
	p := c.start("snapshot", "--name", "host", src)
	for len(hung) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	p.Process.Signal(syscall.SIGINT)
	begun := time.Now()
	late := time.AfterFunc(mostTime, func() { p.Process.Kill() })
	defer late.Stop()
	if code := p.end(); code != 130 {
		t.Errorf("after Ctrl-C: exit code %d\n%s", code, p.err.String())
	}
	t.Logf("it ended %s after Ctrl-C", time.Since(begun).Round(time.Second))
	hangs.Store(false)
	close(release)
	c.run("snapshot", "--name", "host", src)
	c.verified("at last")
	c.restored("at last", "host/latest", src)
}
