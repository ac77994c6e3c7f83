package test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
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

	"github.com/cutbankfs/cutbank/fs/mount"
)

// bulk writes n files of a megabyte each that do not compress.
func bulk(t testing.TB, dir string, seed uint64, n int) {
	t.Helper()
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 61})
	p := make([]byte, 1<<20)
	for i := range n {
		rng.Read(p)
		path := filepath.Join(dir, fmt.Sprintf("part%d/file%d", i/10, i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, p, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// restored restores the newest snapshot of a tree and compares with it.
func (c *cli) restored(what, snapshot, src string) {
	c.t.Helper()
	out, err := os.MkdirTemp(c.t.TempDir(), "")
	if err != nil {
		c.t.Fatal(err)
	}
	defer os.RemoveAll(out)
	c.run("restore", snapshot+":"+src, out, "--no-receipt")
	if diff, err := exec.Command("diff", "-r", "--no-dereference", src, out).CombinedOutput(); err != nil {
		c.t.Errorf("%s: %v\n%s", what, err, diff)
	}
}

// tmp lists what lies half written in the repository.
func (c *cli) tmp() []os.DirEntry {
	c.t.Helper()
	left, err := os.ReadDir(c.repo + "/tmp")
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.DeleteFunc(left, func(e os.DirEntry) bool { return e.Name() == "reserve~" })
}

// TestKilledSnapshots kills a snapshot at random moments, again and again:
// nothing is damaged, the next run goes on, and what was stored is not stored
// twice.
func TestKilledSnapshots(t *testing.T) {
	t.Parallel()
	kills, size := 10, 40
	if slow() {
		kills, size = 30, 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	old, src := t.TempDir(), t.TempDir()
	bulk(t, old, 1, 3)
	bulk(t, src, 2, size)
	c := newCLI(t)
	c.init()
	c.run("snapshot", "--name", "old", old)
	// How long a run takes that nobody kills.
	other := newCLI(t)
	other.init()
	start := time.Now()
	other.run("snapshot", "--name", "host", src)
	took := time.Since(start) * 11 / 10
	killed, finished := 0, 0
	for i := range kills {
		p := c.start("snapshot", "--name", "host", src, "--no-parent")
		timer := time.AfterFunc(time.Duration(rng.Int64N(int64(took))), func() { p.Process.Kill() })
		code := p.end()
		timer.Stop()
		switch code {
		case 0:
			// It was faster than the kill; the next runs find nothing to do,
			// so they get another tree.
			finished++
			bulk(t, src, seed+uint64(i), size)
		case -1:
			killed++
		default:
			t.Fatalf("kill %d: exit code %d\n%s", i, code, p.err.String())
		}
		if i%3 == 0 {
			c.verified(fmt.Sprintf("after kill %d", i))
		}
	}
	t.Logf("%d killed, %d finished before", killed, finished)
	if killed < kills/3 {
		t.Errorf("only %d of %d were killed", killed, kills)
	}
	// What lies half written in tmp goes when it is old.
	left := c.tmp()
	yesterday := time.Now().Add(-25 * time.Hour)
	if err := errors.Join(os.WriteFile(c.repo+"/tmp/999999-0123456789ab~", []byte("half"), 0o600), os.Chtimes(c.repo+"/tmp/999999-0123456789ab~", yesterday, yesterday)); err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if err := os.Chtimes(c.repo+"/tmp/"+e.Name(), yesterday, yesterday); err != nil {
			t.Fatal(err)
		}
	}
	c.run("snapshot", "--name", "host", src)
	if after := c.tmp(); len(after) > 0 {
		t.Errorf("%d files are left in tmp", len(after))
	}
	c.verified("at last")
	c.restored("old snapshot", "old/latest", old)
	c.restored("new snapshot", "host/latest", src)
	if n := twice(t, c.open()); n > 0 {
		t.Errorf("%d chunks are stored twice", n)
	}
}

// TestInterrupted sends Ctrl-C to a snapshot: it says so, leaves no intent, and
// the next run goes on.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	bulk(t, src, 3, 60)
	c := newCLI(t)
	c.init()
	interrupted := 0
	for wait := 400 * time.Millisecond; wait > 20*time.Millisecond; wait /= 2 {
		p := c.start("snapshot", "--name", "host", src, "--no-parent")
		time.Sleep(wait)
		p.Process.Signal(syscall.SIGINT)
		code := p.end()
		if left, err := os.ReadDir(c.repo + "/intents"); err == nil && len(left) > 0 {
			t.Errorf("after Ctrl-C at %s, exit code %d, %d intents are left", wait, code, len(left))
		}
		if left := c.tmp(); len(left) > 0 {
			t.Errorf("after Ctrl-C at %s, exit code %d, %d files are left in tmp", wait, code, len(left))
		}
		switch {
		case code == -1 && p.err.Len() == 0: // it did not listen to signals yet, and has done nothing
		case code == 130 && strings.Contains(p.err.String(), "interrupted"):
			interrupted++
		case code == -1 && p.err.Len() == 0: // before it listened for signals
		case code != 0:
			t.Errorf("after Ctrl-C at %s: exit code %d\n%s", wait, code, p.err.String())
		}
	}
	if interrupted == 0 {
		t.Error("every run was faster than Ctrl-C")
	}
	c.run("snapshot", "--name", "host", src)
	c.verified("at last")
	c.restored("at last", "host/latest", src)
	if n := twice(t, c.open()); n > 0 {
		t.Errorf("%d chunks are stored twice", n)
	}
}

// TestPruneFullDisk frees a disk without a free byte: what nobody needs goes, also
// where there is no space to copy what is needed in part.
func TestPruneFullDisk(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	bulk(t, src, 6, 20)
	c := newCLI(t)
	tmpfs(t, c.repo, "40m")
	c.init()
	c.run("snapshot", "--name", "all", src)
	if err := os.RemoveAll(src + "/part1"); err != nil {
		t.Fatal(err)
	}
	c.run("snapshot", "--name", "some", src)
	bulk(t, src+"/more", 7, 8)
	c.run("snapshot", "--name", "more", src)
	c.run("forget", "all/latest")
	c.run("forget", "more/latest")
	if err := os.RemoveAll(src + "/more"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(c.repo + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if f.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	out, stderr, code := c.try("prune")
	if code != 1 || !strings.Contains(stderr, "no space to copy") {
		t.Errorf("prune on a full disk: exit code %d\n%s%s", code, out, stderr)
	}
	c.verified("after a prune without space")
	if err := os.Remove(c.repo + "/filler"); err != nil {
		t.Fatal(err)
	}
	c.run("prune")
	c.run("prune")
	c.verified("after a prune with space")
	c.restored("what was kept", "some/latest", src)
	for _, what := range []string{"unneeded", "repack", "left"} {
		if sums := c.json("prune", "prune", "--dry-run")[what].(map[string]any); sums["packs"].(float64) > 0 {
			t.Errorf("%s: %v", what, sums)
		}
	}
}

// TestFullDisk fills the disk that the repository lies on.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	old, src := base+"/old", base+"/src"
	bulk(t, old, 4, 3)
	bulk(t, src, 5, 40)
	c := newCLI(t)
	tmpfs(t, c.repo, "16m")
	c.init()
	c.run("snapshot", "--name", "old", old)
	_, stderr, code := c.try("snapshot", "--name", "host", src)
	if code != 1 || !strings.Contains(stderr, "full") || !strings.Contains(stderr, "free some space") {
		t.Errorf("full disk: exit code %d, %q", code, stderr)
	}
	if out := c.run("snapshots", "--name", "host", "--json"); strings.Contains(out, `"snapshot"`) {
		t.Errorf("there is a snapshot that did not fit: %s", out)
	}
	if left, err := os.ReadDir(c.repo + "/intents"); err == nil && len(left) > 0 {
		t.Errorf("%d intents are left", len(left))
	}
	c.verified("full disk")
	c.restored("old snapshot on a full disk", "old/latest", old)
	// To the last byte: not even an intent fits.
	filler := c.repo + "/filler"
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	if f.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if _, stderr, code = c.try("snapshot", "--name", "host", src); code != 1 || !strings.Contains(stderr, "free some space") {
		t.Errorf("disk without a free byte: exit code %d, %q", code, stderr)
	}
	c.restored("old snapshot without a free byte", "old/latest", old)
	if err := errors.Join(os.Remove(filler), unix.Mount("tmpfs", c.repo, "tmpfs", unix.MS_REMOUNT, "size=256m")); err != nil {
		t.Fatal(err)
	}
	c.run("snapshot", "--name", "host", src)
	c.verified("grown disk")
	c.restored("grown disk", "host/latest", src)
	if n := twice(t, c.open()); n > 0 {
		t.Errorf("%d chunks are stored twice", n)
	}
}

// TestFullCacheDisk gives local state no room at all: everything works, only
// slower.
func TestFullCacheDisk(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	bulk(t, src, 6, 10)
	c := newCLI(t)
	cache := t.TempDir()
	tmpfs(t, cache, "64k")
	c.env = append(c.env, "CUTBANK_CACHE_DIR="+cache)
	c.init()
	c.run("snapshot", "--name", "host", src)
	f, err := os.Create(cache + "/filler")
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); err == nil; {
		_, err = f.Write(block)
	}
	f.Close()
	bulk(t, src, 7, 5)
	c.run("snapshot", "--name", "host", src)
	c.verified("cache disk full")
	c.restored("cache disk full", "host/latest", src)
}

// TestKilledMount kills a mount: its mountpoint is dead, and the next mount
// cleans it.
func TestKilledMount(t *testing.T) {
	t.Parallel()
	needFuse(t)
	src, mnt := t.TempDir(), t.TempDir()
	bulk(t, src, 8, 2)
	c := newCLI(t)
	c.init()
	c.run("snapshot", "--name", "host", src)
	file := mnt + "/host/latest" + src + "/part0/file0"
	m := c.mount(mnt)
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	open, err := os.Open(file) // somebody is looking at it
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	m.Process.Kill()
	if code := m.end(); code != -1 {
		t.Errorf("exit code %d after a kill", code)
	}
	if _, err := os.ReadDir(mnt); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("killed mount: %v", err)
	}
	if st, err := mount.Mounted(mnt); st != mount.Dead || err != nil {
		t.Errorf("killed mount is %s, %v", st, err)
	}
	again := c.mount(mnt)
	got, err := os.ReadFile(file)
	want, err2 := os.ReadFile(src + "/part0/file0")
	if err := errors.Join(err, err2); err != nil || !bytes.Equal(got, want) {
		t.Errorf("mounted again: %v", err)
	}
	again.stop()

	last := c.mount(mnt)
	last.Process.Kill()
	last.end()
	c.run("umount", mnt) // cleans a dead one too
	if st, err := mount.Mounted(mnt); st != mount.None || err != nil {
		t.Errorf("after umount it is %s, %v", st, err)
	}
}

// TestLongMount lets a mount stand while snapshots come: each appears within
// five seconds, also where its absence has been looked at before, and all of
// it can be read.
func TestLongMount(t *testing.T) {
	needFuse(t)
	src, mnt := t.TempDir(), t.TempDir()
	c := newCLI(t)
	c.init()
	m := c.mount(mnt)
	defer m.stop()
	for i := range 2 {
		bulk(t, src, 10+uint64(i), 2+i)
		if _, err := os.Stat(fmt.Sprintf("%s/host%d", mnt, i)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("host%d: %v", i, err)
		}
		s := c.json("snapshot", "snapshot", "--name", fmt.Sprintf("host%d", i), "--tag", "kept", src)
		name := fmt.Sprintf("%s/host%d/latest", mnt, i)
		appears(t, name, 5*time.Second)
		for _, way := range []string{name, mnt + "/ids/" + s["id"].(string), fmt.Sprintf("%s/tags/kept/host%d/%s", mnt, i, s["dir"])} {
			if out, err := exec.Command("diff", "-r", src, way+src).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", way, err, out)
			}
		}
	}
}

// TestProcessesBesideEachOther runs everything at once on one repository, with
// one cache: none waits for or refuses another.
func TestProcessesBesideEachOther(t *testing.T) {
	t.Parallel()
	needFuse(t)
	base, mnt := t.TempDir(), t.TempDir()
	size, rounds := 8, 2
	if slow() {
		size, rounds = 60, 5
	}
	first := base + "/first"
	bulk(t, first, 20, size)
	c := newCLI(t)
	c.init()
	c.run("snapshot", "--name", "first", first)
	m := c.mount(mnt)
	defer m.stop()
	var wg sync.WaitGroup
	each := func(what string, args ...string) {
		wg.Go(func() {
			for range rounds {
				if out, stderr, code := c.try(args...); code != 0 {
					t.Errorf("%s: exit code %d\n%s%s", what, code, out, stderr)
				}
			}
		})
	}
	for i := range 2 {
		dir := fmt.Sprintf("%s/tree%d", base, i)
		bulk(t, dir, 21+uint64(i), size)
		each("snapshot", "snapshot", "--name", fmt.Sprintf("host%d", i), dir, first)
	}
	each("verify", "verify", "--read-data")
	each("restore", "restore", "first/latest:"+first, base+"/out", "--no-receipt")
	wg.Go(func() {
		for range rounds {
			if out, err := exec.Command("diff", "-r", first, mnt+"/first/latest"+first).CombinedOutput(); err != nil {
				t.Errorf("mount: %v\n%s", err, out)
			}
		}
	})
	wg.Wait()
	c.verified("afterwards")
	for i := range 2 {
		c.restored("afterwards", fmt.Sprintf("host%d/latest", i), fmt.Sprintf("%s/tree%d", base, i))
	}
	if left, err := os.ReadDir(c.repo + "/intents"); err == nil && len(left) > 0 {
		t.Errorf("%d intents are left", len(left))
	}
}
