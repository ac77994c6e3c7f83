package test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
	"github.com/cutbankfs/cutbank/fs/mount"
	"github.com/cutbankfs/cutbank/repo"
)

// built is the folder of the program that is under test.
var built string

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

// program builds cutbank, once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cutbank-test")
	if err != nil {
		return "", err
	}
	built = dir
	bin := filepath.Join(dir, "cutbank")
	out, err := exec.Command("go", "build", "-o", bin, module+"/cmd/cutbank").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return bin, nil
})

// cli runs cutbank on a repository with a password, local state and a home of
// its own.
type cli struct {
	t    testing.TB
	bin  string
	repo string
	env  []string
}

const password = "correct horse"

func newCLI(t testing.TB) *cli {
	t.Helper()
	if testing.Short() {
		t.Skip("short: the program runs as processes, which is slow, and -race does not look into them")
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c := &cli{t: t, bin: bin, repo: filepath.Join(dir, "repo")}
	c.env = append(os.Environ(), "CUTBANK_REPO="+c.repo, "CUTBANK_PASSWORD="+password, "CUTBANK_CACHE_DIR="+dir+"/cache",
		"XDG_STATE_HOME="+dir+"/state", "HOME="+dir)
	return c
}

// process is a run of cutbank.
type process struct {
	*exec.Cmd
	c        *cli
	out, err bytes.Buffer
}

func (c *cli) command(args ...string) *process {
	p := &process{Cmd: exec.Command(c.bin, args...), c: c}
	p.Env, p.Stdout, p.Stderr = c.env, &p.out, &p.err
	return p
}

func (c *cli) start(args ...string) *process {
	c.t.Helper()
	p := c.command(args...)
	if err := p.Start(); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// end waits for a process and returns its exit code; -1 if a signal killed it.
func (p *process) end() int {
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		p.c.t.Error(err)
	}
	return p.ProcessState.ExitCode()
}

// try runs cutbank and returns all it said and its exit code.
func (c *cli) try(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	p := c.start(args...)
	code = p.end()
	return p.out.String(), p.err.String(), code
}

// run runs cutbank, which must succeed.
func (c *cli) run(args ...string) string {
	c.t.Helper()
	out, stderr, code := c.try(args...)
	if code != 0 {
		c.t.Fatalf("cutbank %q: exit code %d\n%s%s", args, code, out, stderr)
	}
	return out
}

// init makes a repository whose key needs no password: to try one takes a
// quarter of a second.
func (c *cli) init() {
	c.t.Helper()
	c.env = slices.DeleteFunc(c.env, func(v string) bool { return strings.HasPrefix(v, "CUTBANK_PASSWORD=") })
	c.run("init", "--no-password", "--quiet")
}

// json runs a command with --json and returns the fields of its object of that
// type.
func (c *cli) json(typ string, args ...string) map[string]any {
	c.t.Helper()
	return object(c.t, typ, c.run(append(args, "--json")...))
}

func object(t testing.TB, typ, out string) map[string]any {
	t.Helper()
	for line := range strings.Lines(out) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%q is no JSON: %v", line, err)
		}
		if o["type"] == typ {
			return o
		}
	}
	t.Fatalf("no object of type %q in %s", typ, out)
	return nil
}

// open opens the repository by its packages.
func (c *cli) open() *repo.Repo {
	c.t.Helper()
	b, err := local.Open(c.repo)
	if err != nil {
		c.t.Fatal(err)
	}
	opt := options(c.t)
	opt.Password = func() (string, error) { return password, nil }
	r, err := tryOpen(c.t, b, opt)
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// verified runs verify --read-data.
func (c *cli) verified(what string) {
	c.t.Helper()
	if out, stderr, code := c.try("verify", "--read-data"); code != 0 {
		c.t.Errorf("%s: verify: exit code %d\n%s%s", what, code, out, stderr)
	}
}

// needFuse skips a test where nothing can be mounted.
func needFuse(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		missing(t, "fuse", err.Error())
	}
	f.Close()
}

// mounted is a mount in the foreground of a process of its own: a test that
// served what it reads itself could wait for itself.
type mounted struct {
	*process
	dir string
}

// mount mounts at dir and returns when the mount answers. It is gone when the
// test ends.
func (c *cli) mount(dir string, args ...string) *mounted {
	c.t.Helper()
	needFuse(c.t)
	m := &mounted{c.command(append([]string{"mount", dir, "--json"}, args...)...), dir}
	m.Stdout = nil
	out, err := m.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := m.Start(); err != nil {
		c.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.Contains(line, `"mounted"`) {
		m.Process.Kill()
		m.Wait()
		c.t.Fatalf("mount said %q: %v\n%s", line, err, m.err.String())
	}
	c.t.Cleanup(func() {
		if m.ProcessState == nil {
			m.Process.Kill()
			m.Wait()
		}
		for range 3 {
			if unix.Unmount(dir, unix.MNT_DETACH) != nil {
				break
			}
		}
	})
	return m
}

// stop ends the mount as Ctrl-C does.
func (m *mounted) stop() {
	m.c.t.Helper()
	if err := m.Process.Signal(syscall.SIGINT); err != nil {
		m.c.t.Error(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { m.Process.Kill() })
	defer timer.Stop()
	if code := m.end(); code != 0 {
		m.c.t.Errorf("mount: exit code %d after Ctrl-C\n%s", code, m.err.String())
	}
	if st, err := mount.Mounted(m.dir); st != mount.None || err != nil {
		m.c.t.Errorf("%s is %s after Ctrl-C, %v", m.dir, st, err)
	}
}

// rsyncSame compares two folders with rsync, contents and all attributes
// included: it must print nothing.
func rsyncSame(t testing.TB, what, a, b string) {
	t.Helper()
	if _, err := exec.LookPath("rsync"); err != nil {
		missing(t, "rsync", err.Error())
	}
	cmd := exec.Command("rsync", "-aHAXS", "--checksum", "-n", "-i", "--delete", a+"/", b+"/")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if len(out) > 2000 {
		out = append(out[:2000], "..."...)
	}
	if err != nil || len(out) > 0 {
		t.Errorf("%s: rsync: %v\n%s", what, err, out)
	}
}

// tmpfs mounts an empty file system of that size in memory at dir.
func tmpfs(t testing.TB, dir, size string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "fuse", "mounting a tmpfs needs root")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); errors.Is(err, fs.ErrPermission) {
		missing(t, "fuse", "mounting a tmpfs: "+err.Error())
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
