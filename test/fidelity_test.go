package test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/test/gen"
)

// settled waits until what was just written counts as old for the snapshot
// that follows: file systems' clocks tick.
func settled() { time.Sleep(2100 * time.Millisecond) }

// everyWay compares two trees on disk in all ways.
func everyWay(t *testing.T, what, a, b string) {
	t.Helper()
	start := time.Now()
	rsyncSame(t, what, a, b)
	rsynced := time.Since(start)
	for _, d := range differences(t.Context(), live(t, a), live(t, b), diff.Options{Content: true, Holes: true}) {
		t.Errorf("%s: diff: %s", what, d)
	}
	diffed := time.Since(start)
	kernelSame(t, what, a, b)
	t.Logf("%s: rsync %s, diff %s, system calls %s", what, rsynced.Round(time.Millisecond), (diffed - rsynced).Round(time.Millisecond), (time.Since(start) - diffed).Round(time.Millisecond))
}

// TestFidelity takes a tree with everything in it through snapshot, mount and
// restore, unchanged and changed: source, mount and restored tree are the same.
func TestFidelity(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needFuse(t)
	base := t.TempDir()
	src, mnt, out := base+"/src", base+"/mnt", base+"/out"
	opt := gen.Default(41)
	opt.Files, opt.Bytes, opt.Wide = 200, 6<<20, 500
	if slow() {
		opt.Files, opt.Bytes, opt.Wide, opt.Deep, opt.BigSparse = 3000, 150<<20, 20_000, 200, true
	}
	generate(t, src, opt)
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	settled()
	c := newCLI(t)
	c.run("init")
	first := c.json("snapshot", "snapshot", "--name", "host", src)
	m := c.mount(mnt)
	defer m.stop()
	everyWay(t, "source and mount", src, mnt+"/host/latest"+src)
	c.run("restore", "host/latest:"+src, out)
	everyWay(t, "source and restored", src, out)
	everyWay(t, "mount and restored", mnt+"/host/latest"+src, out)

	second := c.json("snapshot", "snapshot", "--name", "host", src)
	unchanged(t, second)
	changes, err := gen.Mutate(src, 42, 0.05)
	if err != nil {
		t.Fatal(err)
	}
	most := int64(0)
	for _, ch := range changes {
		for _, p := range []string{ch.Path, ch.To} {
			if fi, err := os.Lstat(filepath.Join(src, p)); err == nil && fi.Mode().IsRegular() {
				most += fi.Size()
			}
		}
	}
	third := c.json("snapshot", "snapshot", "--name", "host", src)
	if read := third["read_bytes"].(float64); read == 0 || int64(read) > most {
		t.Errorf("%v bytes were read, the %d changed files have %d", read, len(changes), most)
	}
	// The old one is as it was, the new one as it is; and the mount, which has
	// been there all the time, shows both.
	c.run("restore", first["id"].(string)+":"+src, base+"/old")
	everyWay(t, "old snapshot, restored again", out, base+"/old")
	c.run("restore", third["id"].(string)+":"+src, base+"/new")
	everyWay(t, "new snapshot", src, base+"/new")
	appears(t, mnt+"/ids/"+third["id"].(string), 5*time.Second)
	everyWay(t, "new snapshot in the mount", src, mnt+"/ids/"+third["id"].(string)+src)
	kernelSame(t, "old snapshot in the mount", out, mnt+"/ids/"+first["id"].(string)+src)

	// Restoring the new one over the old one changes what differs only.
	over := c.json("restore", "restore", third["id"].(string)+":"+src, out, "--delete", "--yes")
	everyWay(t, "restored over the old one", src, out)
	if wrote := over["written"].(float64); int64(wrote) > most {
		t.Errorf("%v bytes were written, the changed files have %d", wrote, most)
	}
	c.verified("after all")
}

// TestRealTrees takes trees that were not made for tests through snapshot,
// mount and restore.
func TestRealTrees(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needFuse(t)
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	distribution := strings.TrimSpace(string(goroot))
	trees := []string{distribution + "/src/net"}
	if slow() {
		trees = []string{distribution, "/usr/share"}
	}
	c := newCLI(t)
	c.init()
	mnt := t.TempDir()
	m := c.mount(mnt)
	defer m.stop()
	for i, src := range trees {
		if _, err := os.Stat(src); err != nil {
			missing(t, "trees", err.Error())
		}
		name := fmt.Sprintf("tree%d", i)
		c.run("snapshot", "--name", name, src)
		appears(t, mnt+"/"+name+"/latest", 5*time.Second)
		out := filepath.Join(t.TempDir(), "out")
		c.run("restore", name+"/latest:"+src, out, "--verify")
		everyWay(t, src+" and mount", src, mnt+"/"+name+"/latest"+src)
		everyWay(t, src+" and restored", src, out)
	}
	c.verified("real trees")
}

// unchanged fails the test unless a snapshot read nothing and stored nothing:
// but the directories above the tree, such as /tmp, whose times do change.
func unchanged(t testing.TB, s map[string]any) {
	t.Helper()
	if s["read_bytes"] != 0.0 || s["new_files"] != 0.0 || s["modified_files"] != 0.0 || s["new_bytes"].(float64) > 64<<10 {
		t.Errorf("unchanged tree: %v", s)
	}
}

// appears waits for a path.
func appears(t testing.TB, path string, limit time.Duration) {
	t.Helper()
	start := time.Now()
	for {
		_, err := os.Stat(path)
		if err == nil {
			t.Logf("%s appeared after %s", filepath.Base(path), time.Since(start).Round(10*time.Millisecond))
			return
		}
		if time.Since(start) > limit {
			t.Fatalf("%s is not there after %s: %v", path, limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// kernelSame walks two trees and compares what system calls say: attributes,
// which names are one file, device numbers, blocks, and where data and holes
// are.
func kernelSame(t *testing.T, what, a, b string) {
	t.Helper()
	inodes := map[uint64]uint64{}
	back := map[uint64]uint64{}
	bad := 0
	fail := func(p, format string, args ...any) {
		t.Helper()
		if bad++; bad <= 20 {
			t.Errorf("%s: %q: %s", what, p, fmt.Sprintf(format, args...))
		}
	}
	err := filepath.WalkDir(a, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, a)
		var x, y unix.Stat_t
		if err := errors.Join(unix.Lstat(p, &x), unix.Lstat(b+rel, &y)); err != nil {
			fail(rel, "%v", err)
			return nil
		}
		type fields struct {
			mode, uid, gid uint32
			size           int64
			mtim           unix.Timespec
			rdev, nlink    uint64
		}
		of := func(s *unix.Stat_t) fields {
			f := fields{s.Mode, s.Uid, s.Gid, s.Size, s.Mtim, s.Rdev, uint64(s.Nlink)}
			if d.IsDir() {
				f.size, f.nlink = 0, 0 // each file system's own affair
			}
			return f
		}
		if of(&x) != of(&y) {
			fail(rel, "%+v, %+v", of(&x), of(&y))
		}
		if was, ok := inodes[x.Ino]; ok && was != y.Ino {
			fail(rel, "inode %d, its other name has %d", y.Ino, was)
		}
		if was, ok := back[y.Ino]; ok && was != x.Ino {
			fail(rel, "is one file with another, in the source two")
		}
		inodes[x.Ino], back[y.Ino] = y.Ino, x.Ino
		if d.Type().IsRegular() {
			// File systems add blocks of their own for files in many pieces,
			// some only when the data reaches the disk.
			if d := x.Blocks - y.Blocks; max(d, -d) > 8+x.Blocks/64 {
				fail(rel, "%d blocks, %d", x.Blocks, y.Blocks)
			}
			if x.Blocks*512 < x.Size {
				if m, n := holes(t, p), holes(t, b+rel); m != n {
					fail(rel, "data at %s, %s", m, n)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if bad > 20 {
		t.Errorf("%s: and %d more", what, bad-20)
	}
}

// holes tells where a file has data, by SEEK_DATA and SEEK_HOLE.
func holes(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b strings.Builder
	for off := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return b.String()
		}
		to, err2 := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err := errors.Join(err, err2); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		fmt.Fprintf(&b, "%d-%d ", from, to)
		off = to
	}
}

// TestHugeSparseFile keeps a file of 5 GiB with little in it, and reads it on
// both sides of 4 GiB.
func TestHugeSparseFile(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needFuse(t)
	base := t.TempDir()
	src, mnt, out := base+"/src", base+"/mnt", base+"/out"
	if err := errors.Join(os.Mkdir(src, 0o755), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	const size = 5<<30 + 12345
	rng := rand.NewChaCha8([32]byte{51})
	want := map[int64][]byte{}
	f, err := os.Create(src + "/big")
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 1<<32 - 8192, 1 << 32, 1<<32 + 1<<20, size - 4096} {
		p := make([]byte, 4096)
		rng.Read(p)
		want[off] = p
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	c := newCLI(t)
	c.init()
	s := c.json("snapshot", "snapshot", "--name", "host", src)
	if read := s["read_bytes"].(float64); read > 1<<20 {
		t.Errorf("%v bytes were read of a file with 20 KiB of data", read)
	}
	m := c.mount(mnt)
	defer m.stop()
	c.run("restore", "host/latest:"+src, out)
	for _, dir := range []string{mnt + "/host/latest" + src, out} {
		kernelSame(t, dir, src, dir)
		f, err := os.Open(dir + "/big")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for off, p := range want {
			got := make([]byte, len(p))
			if _, err := f.ReadAt(got, off); err != nil && err != io.EOF || string(got) != string(p) {
				t.Errorf("%s: other bytes at %d, %v", dir, off, err)
			}
		}
	}
}

// TestWideDirectory keeps a directory of very many names.
func TestWideDirectory(t *testing.T) {
	t.Parallel()
	needRoot(t)
	needFuse(t)
	names := 50_000
	if slow() {
		names = 1_000_000
	}
	base := t.TempDir()
	src, mnt, out := base+"/src", base+"/mnt", base+"/out"
	if err := errors.Join(os.MkdirAll(src+"/wide", 0o755), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	for i := range names {
		// Empty, but for one in a hundred: the names are what counts.
		var p []byte
		if i%100 == 0 {
			p = fmt.Appendf(nil, "file %d", i)
		}
		if err := os.WriteFile(fmt.Sprintf("%s/wide/%x-%d", src, i*7919%names, i), p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	settled()
	c := newCLI(t)
	c.init()
	start := time.Now()
	lap := func(what string) {
		t.Logf("%s: %s", what, time.Since(start).Round(time.Millisecond))
		start = time.Now()
	}
	first := c.json("snapshot", "snapshot", "--name", "host", src)
	lap("snapshot")
	if n := first["files"].(float64); int(n) != names {
		t.Errorf("%v files", n)
	}
	second := c.json("snapshot", "snapshot", "--name", "host", src)
	lap("unchanged")
	unchanged(t, second)
	m := c.mount(mnt)
	defer m.stop()
	view := mnt + "/host/latest" + src
	list, err := os.ReadDir(view + "/wide")
	if err != nil || len(list) != names {
		t.Fatalf("the mount shows %d names, %v", len(list), err)
	}
	lap("listing")
	rsyncSame(t, "source and mount", src, view)
	lap("rsync with the mount")
	c.run("restore", "host/latest:"+src, out)
	lap("restore")
	rsyncSame(t, "source and restored", src, out)
	lap("rsync with the restored tree")
}
