package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/snapshotter/system"
)

func TestState(t *testing.T) {
	dir := t.TempDir()
	s, err := openState(dir, "a", "stream x")
	if err != nil || s.left != nil {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, err := openState(dir, "a", "stream x"); !errors.Is(err, system.ErrRefused) {
		t.Errorf("a second one beside it: %v", err)
	}
	if err := s.begin(began{Name: "a", PID: os.Getpid(), Started: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(dir, "a", "stream x"); !errors.Is(err, system.ErrRefused) || !strings.Contains(err.Error(), fmt.Sprintf("process %d ", os.Getpid())) {
		t.Errorf("a second one beside it: %v", err)
	}
	other, err := openState(dir, "a", "stream y")
	if err != nil || other.left != nil {
		t.Errorf("another system: %+v, %v", other, err)
	}
	s.leave() // as a crash does
	if s, err = openState(dir, "a", "stream x"); err != nil || s.left == nil || s.left.PID != os.Getpid() {
		t.Fatalf("what was left: %+v, %v", s, err)
	}
	if err := s.f.Truncate(5); err != nil { // killed while it was written
		t.Fatal(err)
	}
	s.leave()
	if s, err = openState(dir, "a", "stream x"); err != nil || s.left == nil {
		t.Fatalf("what was left half: %+v, %v", s, err)
	}
	if err := errors.Join(s.end(), other.end()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// alive reports whether the process runs whose number is in a file.
func alive(t *testing.T, file string) bool {
	t.Helper()
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(p)) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// TestGroup: what a program has started ends with it when it is stopped, and stays
// when it has ended by itself.
func TestGroup(t *testing.T) {
	dir := t.TempDir()
	alive := func(file string) bool { return alive(t, dir+"/"+file) }
	p := Proc{What: "it", Args: Shell("sleep 30 >/dev/null 2>&1 & echo $! >" + dir + "/a; wait"), Timeout: 300 * time.Millisecond}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "did not end within 300ms") {
		t.Errorf("%v", err)
	}
	for i := 0; alive("a"); i++ {
		if i == 50 {
			t.Fatal("what was started still runs")
		}
		time.Sleep(20 * time.Millisecond)
	}
	p = Proc{What: "it", Args: Shell("sleep 3 >/dev/null 2>&1 & echo $! >" + dir + "/b")}
	if err := p.Run(t.Context()); err != nil || !alive("b") {
		t.Errorf("%v, alive %v", err, alive("b"))
	}
	// One that does not mind SIGTERM.
	ctx, cancel := context.WithCancelCause(t.Context())
	r, err := Proc{What: "it", Args: Shell(`trap "" TERM; echo up; while :; do sleep 0.1; done`), Stdout: writerFunc(func(b []byte) (int, error) {
		cancel(nil)
		return len(b), nil
	})}.Start(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestGroupTime: what a program has started has the time that the program has, and not
// more, however fast the program itself ends, and whoever waits for it.
func TestGroupTime(t *testing.T) {
	dir := t.TempDir()
	tidy := "(trap 'sleep 0.3; echo >" + dir + "/tidy; exit' TERM; while :; do sleep 0.05; done) >/dev/null 2>&1 & wait"
	if err := (Proc{What: "it", Args: Shell(tidy), Timeout: 300 * time.Millisecond}).Run(t.Context()); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(dir + "/tidy"); err != nil {
		t.Errorf("killed before it could tidy up: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	r, err := Proc{What: "it", Args: Shell("(trap '' TERM; sleep 30) >/dev/null 2>&1 & echo $! >" + dir + "/deaf; echo; wait"), Stdout: w}.Start(ctx)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := up.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for its trap
	cancel()
	time.Sleep(100 * time.Millisecond) // the program itself ends at once
	r.Stop()
	if alive(t, dir+"/deaf") {
		t.Error("what does not mind SIGTERM was left running")
	}
}

// TestWaitAgain: who waits again hears the same, and changes nothing.
func TestWaitAgain(t *testing.T) {
	file := t.TempDir() + "/left"
	for _, code := range []string{"0", "3"} {
		r, err := Proc{What: "it", Args: Shell("sleep 3 >/dev/null 2>&1 & echo $! >" + file + "; exit " + code)}.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a, b := r.Wait(), r.Wait(); fmt.Sprint(a) != fmt.Sprint(b) || (a == nil) != (code == "0") {
			t.Errorf("%v, then %v", a, b)
		}
		time.Sleep(50 * time.Millisecond)
		if !alive(t, file) {
			t.Error("what it left running was ended")
		}
	}
}

// TestTook: what stays in the pipe was not read, however little it is.
func TestTook(t *testing.T) {
	for _, c := range []struct {
		script         string
		size, low, top int64
	}{
		{"cat >/dev/null", 10000, 10000, 10000},
		{"cat >/dev/null", 1 << 20, 1 << 20, 1 << 20},
		{"sleep 0.2", 10000, 0, 0},
		{"head -c 100 >/dev/null; sleep 0.2", 10000, 100, 9999},
		{"exec <&-; sleep 0.2", 10000, 0, 0},
		{"exec <&-; sleep 0.2", 1 << 20, 0, 0},
		{"head -c 1048575 >/dev/null", 1 << 20, 1<<20 - 1, 1<<20 - 1},
		{"sleep 2 >/dev/null 2>&1 <&0 &", 1 << 20, 0, 0},
	} {
		r, err := Proc{What: "it", Args: Shell(c.script), Stdin: io.LimitReader(zeros{}, c.size)}.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Wait(); err != nil || r.Took() < c.low || r.Took() > c.top {
			t.Errorf("%s, %d bytes: %v, %d read", c.script, c.size, err, r.Took())
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestProcSays(t *testing.T) {
	var lines []string
	p := Proc{What: "it", Args: Shell("echo one >&2; printf 'two\\377' >&2; exit 3"), Logf: func(f string, a ...any) { lines = append(lines, fmt.Sprintf(f, a...)) }}
	err := p.Run(t.Context())
	if err == nil || err.Error() != "it failed: exit status 3: one; two?" {
		t.Errorf("%v", err)
	}
	if got := strings.Join(lines, "|"); got != "it: one|it: two?" {
		t.Errorf("%q", got)
	}
	// One that ends well has its stderr shown once, without what it has printed.
	warned := []string{}
	warnf := func(f string, a ...any) { warned = append(warned, fmt.Sprintf(f, a...)) }
	r, err := Proc{What: "it", Args: Shell("echo out; echo a >&2; echo b >&2"), Warnf: warnf}.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Wait(), r.Wait()); err != nil || len(warned) != 1 || warned[0] != "it ended with exit code 0, but said on its standard error: a; b" {
		t.Errorf("%q, %v", warned, err)
	}
	warned = nil
	if err := (Proc{What: "it", Args: Shell("echo out"), Warnf: warnf}).Run(t.Context()); err != nil || len(warned) > 0 {
		t.Errorf("%q, %v", warned, err)
	}
	if err := (Proc{What: "it", Args: Shell("seq 100000 >&2"), Warnf: warnf}).Run(t.Context()); err != nil || len(warned) != 1 || len(warned[0]) > 2*maxTail || !strings.Contains(warned[0], ": ...") || !strings.HasSuffix(warned[0], "; 100000") {
		t.Errorf("%.3000q, %v", warned, err)
	}
	p = Proc{What: "it", Args: Shell("yes >&2 & sleep 0.2; kill $!; exit 1")}
	if err := p.Run(t.Context()); err == nil || len(err.Error()) > 2*maxTail+100 {
		t.Errorf("%d bytes", len(err.Error()))
	}
	if _, err := (Proc{What: "it", Args: Shell("yes")}).Output(t.Context()); err == nil {
		t.Error("output without end: no error")
	}
	if err := (Proc{What: "it", Args: []string{"/no/such/program"}}).Run(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestBadInput: a program whose input cannot be read never sees its end.
func TestBadInput(t *testing.T) {
	file := t.TempDir() + "/ended"
	in := io.MultiReader(strings.NewReader("some"), errReader{})
	err := Proc{What: "it", Args: Shell("cat >/dev/null; touch " + file), Stdin: in}.Run(t.Context())
	if err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("it has seen an end")
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("damaged") }

func TestStreamCloses(t *testing.T) {
	s, err := startStream(t.Context(), Proc{What: "it", Args: Shell("echo x; sleep 30")})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		s.stop()
	}()
	p, err := io.ReadAll(s)
	if err == nil || string(p) != "x\n" || s.whole() {
		t.Errorf("%q, %v", p, err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"9", "15", "9.6"} {
		if err := os.MkdirAll(dir+"/"+v+"/bin", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/"+v+"/bin/tool", nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tools := Tools{Dirs: []string{dir + "/*/bin"}}
	if got, err := tools.Find("tool"); err != nil || got != dir+"/15/bin/tool" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := tools.Find("no-such-tool-anywhere"); err == nil {
		t.Error("no error")
	}
	if got := Major("15.18", 1) + " " + Major("3.4.23", 2) + " " + Major("16", 2); got != "15 3.4 16" {
		t.Errorf("%q", got)
	}
}

// TestDirGone: a directory that is not there any more at the end was not captured.
func TestDirGone(t *testing.T) {
	dir := t.TempDir() + "/data"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := &System{recipe: recipe{Dir: dir}}
	said := func(string, ...any) {}
	c, err := s.Capture(t.Context(), system.CaptureOptions{Name: "n", Mode: system.Full, State: t.TempDir(), Now: time.Now, Logf: said, Warnf: said})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Finish(t.Context()); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Finish(t.Context()); !errors.Is(err, system.ErrIncomplete) {
		t.Errorf("moved away: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Finish(t.Context()); !errors.Is(err, system.ErrIncomplete) {
		t.Errorf("replaced: %v", err)
	}
	if err := c.Close(t.Context(), false); err != nil {
		t.Error(err)
	}
}
