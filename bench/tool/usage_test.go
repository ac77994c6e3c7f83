package tool

import (
	"bufio"
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRusage(t *testing.T) {
	got := rusageOf(&syscall.Rusage{Utime: syscall.Timeval{Sec: 1, Usec: 250_000}, Stime: syscall.Timeval{Usec: 500_000}, Maxrss: 2048})
	if want := (Usage{CPU: 1750 * time.Millisecond, Peak: 2 << 20}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestStatCPU(t *testing.T) {
	for _, c := range []struct {
		stat string
		want time.Duration
		fail bool
	}{
		{"7 (cat) S 1 7 7 0 -1 4194304 10 20 0 0 3 4 5 6 20 0 1", 180 * time.Millisecond, false},
		{"7 (a b) c) R 1 7 7 0 -1 4194304 10 20 0 0 100 0 0 0 20 0 1", time.Second, false},
		{"7 (cat) S 1 7 7", 0, true},
		{"7 cat S", 0, true},
		{"7 (cat) S 1 7 7 0 -1 4194304 10 20 0 0 3 x 5 6 20 0 1", 0, true},
		{"", 0, true},
	} {
		got, err := statCPU([]byte(c.stat))
		if got != c.want || (err != nil) != c.fail {
			t.Errorf("%q: got %v, %v; want %v, error %v", c.stat, got, err, c.want, c.fail)
		}
	}
}

func TestStatusPeak(t *testing.T) {
	for _, c := range []struct {
		status string
		want   int64
		fail   bool
	}{
		{"Name:\tcat\nVmPeak:\t  9999 kB\nVmHWM:\t    1024 kB\nVmRSS:\t 512 kB\n", 1 << 20, false},
		{"Name:\tcat\nState:\tZ (zombie)\n", 0, true},
		{"VmHWM:\t 12 MB\n", 0, true},
		{"VmHWM:\t kB\n", 0, true},
	} {
		got, err := statusPeak([]byte(c.status))
		if got != c.want || (err != nil) != c.fail {
			t.Errorf("%q: got %v, %v; want %v, error %v", c.status, got, err, c.want, c.fail)
		}
	}
}

func TestLiveUsage(t *testing.T) {
	u, err := liveUsage(os.Getpid())
	for start := time.Now(); err == nil && u.CPU < 20*time.Millisecond && time.Since(start) < 10*time.Second; {
		u, err = liveUsage(os.Getpid()) // on a busy machine a turn may be long in coming
	}
	if err != nil {
		t.Fatal(err)
	}
	if u.CPU < 20*time.Millisecond || u.Peak < 1<<20 {
		t.Errorf("got %+v", u)
	}
	if _, err := liveUsage(1 << 30); err == nil {
		t.Error("no error of a process that does not exist")
	}
}

func TestIsMounted(t *testing.T) {
	info := []byte("36 35 98:0 / /mnt rw - ext4 /dev/sda rw\n37 35 0:41 / /tmp/with\\040blank\\134 ro - fuse.x x ro\nshort\n")
	for dir, want := range map[string]bool{"/mnt": true, `/tmp/with blank\`: true, "/tmp": false, "/mnt/": false, "": false} {
		if got := isMounted(info, dir); got != want {
			t.Errorf("%q: got %v", dir, got)
		}
	}
}

// The memory of this process must not be taken for that of a small child.
func TestPeakIsTheChilds(t *testing.T) {
	before, err := Command{Args: []string{"true"}}.Run(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	big, err := unix.Mmap(-1, 0, 256<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Munmap(big); err != nil {
		t.Fatal(err)
	}
	if own, err := liveUsage(os.Getpid()); err != nil || own.Peak < 256<<20 {
		t.Fatalf("the peak of this process is %d bytes, %v: the test tests nothing", own.Peak, err)
	}
	after, err := Command{Args: []string{"true"}}.Run(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if after.Peak > before.Peak+64<<20 {
		t.Errorf("peak of the same command: %d bytes, and after this process had been large %d", before.Peak, after.Peak)
	}
	// Only to see that the measuring itself works: a child that is large.
	large, err := Command{Args: []string{"sh", "-c", "x=$(head -c 100000000 /dev/zero | tr '\\0' x); :"}}.Run(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if large.Peak < 90<<20 {
		t.Errorf("peak of a shell that holds 100 MB: %d bytes", large.Peak)
	}
}

func TestCommandErrors(t *testing.T) {
	_, err := Command{Args: []string{"sh", "-c", "echo one; echo two >&2; exit 3"}}.Run(context.Background(), nil)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "two") {
		t.Errorf("got %v: want the exit code and the last words", err)
	}
	said := &tail{}
	for range 1000 {
		if _, err := said.Write([]byte(strings.Repeat("x", 99) + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	if len(said.b) > tailSize || len(said.String()) > tailSize+20 {
		t.Errorf("%d bytes kept", len(said.b))
	}
}

// readLine reads a number, then calls then, then reads on.
func readLine(n *int, then func()) func(io.Reader) error {
	return func(r io.Reader) error {
		br := bufio.NewReader(r)
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		if *n, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
			return err
		}
		then()
		_, err = io.Copy(io.Discard, br)
		return err
	}
}

// What a tool has started must not outlive it.
func TestCancelEndsTheGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var child int
	_, err := Command{Args: []string{"sh", "-c", "sleep 60 & echo $!; wait"}}.Run(ctx, readLine(&child, cancel))
	if err == nil || child == 0 {
		t.Fatalf("process %d, error %v: want the context's", child, err)
	}
	for range 200 {
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(child) + "/stat"); err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %d still runs", child)
}
