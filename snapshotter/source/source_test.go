package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/test/gen"
)

var ctx = context.Background()

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, path string) tree.Node {
	t.Helper()
	n, err := source.Open(path)
	must(t, err)
	return n
}

func lookup(t testing.TB, n tree.Node, name string) tree.Node {
	t.Helper()
	c, err := n.Lookup(ctx, name)
	must(t, err)
	return c
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func names(t testing.TB, n tree.Node, from int64) []string {
	t.Helper()
	var list []string
	for c, err := range n.Entries(ctx, from) {
		must(t, err)
		list = append(list, c.Attr().Name)
	}
	return list
}

// TestAttributes holds every node of a generated tree against lstat(2).
func TestAttributes(t *testing.T) {
	dir := t.TempDir()
	opt := gen.Default(11)
	opt.Files, opt.Bytes, opt.Wide = 30, 1<<20, 100
	m, err := gen.Tree(dir, opt)
	must(t, err)
	t.Logf("seed %d", opt.Seed)
	seen := 0
	var walk func(path string, n tree.Node)
	walk = func(path string, n tree.Node) {
		seen++
		checkAttr(t, path, n.Attr())
		checkXattrs(t, path, n)
		if n.Attr().Kind != tree.Dir {
			return
		}
		last := ""
		for c, err := range n.Entries(ctx, 0) {
			must(t, err)
			if name := c.Attr().Name; name <= last {
				t.Errorf("%s: %q after %q", path, name, last)
			}
			last = c.Attr().Name
			walk(path+"/"+last, c)
		}
	}
	walk(dir, open(t, dir))
	if seen != m.Names() {
		t.Errorf("walked %d nodes, generated %d", seen, m.Names())
	}
}

func checkAttr(t *testing.T, path string, got *tree.Attr) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(path, &st))
	want := tree.Attr{
		Name: filepath.Base(path), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		Mtime: tree.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)},
		Ctime: tree.Time{Sec: st.Ctim.Sec, Nsec: uint32(st.Ctim.Nsec)},
		Nlink: uint32(st.Nlink), Dev: st.Dev, Ino: st.Ino,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		want.Kind = tree.Dir
	case unix.S_IFREG:
		want.Kind, want.Size, want.Allocated = tree.File, st.Size, st.Blocks*512
	case unix.S_IFLNK:
		want.Kind, want.Size = tree.Symlink, st.Size
		target, err := os.Readlink(path)
		must(t, err)
		want.Target = target
	case unix.S_IFIFO:
		want.Kind = tree.FIFO
	case unix.S_IFSOCK:
		want.Kind = tree.Socket
	case unix.S_IFCHR:
		want.Kind, want.Rdev = tree.CharDevice, st.Rdev
	case unix.S_IFBLK:
		want.Kind, want.Rdev = tree.BlockDevice, st.Rdev
	}
	if *got != want {
		t.Errorf("%q:\n got %+v\nwant %+v", path, *got, want)
	}
}

func checkXattrs(t *testing.T, path string, n tree.Node) {
	t.Helper()
	list, err := n.Xattrs(ctx)
	must(t, err)
	buf := make([]byte, 64<<10)
	size, err := unix.Llistxattr(path, buf)
	must(t, err)
	if want := bytes.Count(buf[:size], []byte{0}); len(list) != want {
		t.Errorf("%q has %d attributes, want %d", path, len(list), want)
	}
	if !slices.IsSortedFunc(list, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%q: attributes are not sorted", path)
	}
	for _, x := range list {
		size, err := unix.Lgetxattr(path, x.Name, buf)
		must(t, err)
		if !bytes.Equal(x.Value, buf[:size]) {
			t.Errorf("%q: %s is %q, want %q", path, x.Name, x.Value, buf[:size])
		}
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/d/sub", 0o755))
	write(t, dir+"/d/file", "hello")
	must(t, os.Symlink("d", dir+"/link"))
	must(t, os.Symlink("nothing", dir+"/dangling"))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	t.Chdir(dir + "/d")
	for _, c := range []struct {
		path, name string
		kind       tree.Kind
		err        error
	}{
		{path: dir, name: filepath.Base(dir), kind: tree.Dir},
		{path: dir + "//d/.", name: "d", kind: tree.Dir},
		{path: dir + "/d/file", name: "file", kind: tree.File},
		{path: "file", name: "file", kind: tree.File},
		{path: "./file", name: "file", kind: tree.File},
		{path: ".", name: "d", kind: tree.Dir},
		{path: "..", name: filepath.Base(dir), kind: tree.Dir},
		{path: "sub/..", name: "d", kind: tree.Dir},
		{path: "../link", name: "link", kind: tree.Symlink},
		{path: "../link/", name: "link", kind: tree.Dir},
		{path: "../link/file", name: "file", kind: tree.File},
		{path: "../dangling", name: "dangling", kind: tree.Symlink},
		{path: "../fifo", name: "fifo", kind: tree.FIFO},
		{path: "/", name: "", kind: tree.Dir},
		{path: "/dev/null", name: "null", kind: tree.CharDevice},
		{path: "", err: fs.ErrNotExist},
		{path: "none", err: fs.ErrNotExist},
		{path: "../dangling/", err: fs.ErrNotExist},
		{path: "file/", err: syscall.ENOTDIR},
	} {
		n, err := source.Open(c.path)
		if !errors.Is(err, c.err) || err == nil && (n.Attr().Name != c.name || n.Attr().Kind != c.kind) {
			t.Errorf("Open(%q) = %+v, %v; want %q, a %s, %v", c.path, n, err, c.name, c.kind, c.err)
			continue
		}
		if err != nil {
			continue
		}
		if _, err := n.Xattrs(ctx); err != nil {
			t.Errorf("%q: %v", c.path, err)
		}
		if c.kind == tree.Dir && c.path != "/" && len(names(t, n, 0)) == 0 {
			t.Errorf("%q has no entries", c.path)
		}
	}
	// A relative path stays where it was.
	n := open(t, "file")
	t.Chdir("/")
	p := make([]byte, 5)
	if _, err := n.ReadAt(ctx, p, 0); err != nil || string(p) != "hello" {
		t.Errorf("%q, %v", p, err)
	}
}

func TestWrongKind(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", "")
	must(t, os.Symlink("f", dir+"/l"))
	root := open(t, dir)
	for _, name := range []string{"f", "l"} {
		n := lookup(t, root, name)
		if _, err := n.Lookup(ctx, "x"); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("Lookup in %s: %v", name, err)
		}
		for _, err := range n.Entries(ctx, 0) {
			if !errors.Is(err, syscall.ENOTDIR) {
				t.Errorf("Entries of %s: %v", name, err)
			}
		}
	}
	if _, ok := lookup(t, root, "l").(tree.Opener); ok {
		t.Error("a symlink can be opened")
	}
	if _, err := root.ReadAt(ctx, nil, 0); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("reading a directory: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../" + filepath.Base(dir), "f\x00", "none"} {
		if _, err := root.Lookup(ctx, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lookup(%q): %v", name, err)
		}
	}
}

// TestSwaps puts something else into the place of what was listed.
func TestSwaps(t *testing.T) {
	base := t.TempDir()
	write(t, base+"/secret", "not of the tree")
	must(t, os.Mkdir(base+"/outside", 0o755))
	write(t, base+"/outside/f", "")
	for _, c := range []struct {
		name string
		make func(path string) error
		file error // what opening it as a file gives
		dir  error // what listing it as a directory gives
	}{
		{"symlink", func(p string) error { return os.Symlink("../../secret", p) }, syscall.ELOOP, syscall.ENOTDIR},
		{"symlink to directory", func(p string) error { return os.Symlink("../../outside", p) }, syscall.ELOOP, syscall.ENOTDIR},
		{"fifo", func(p string) error { return unix.Mkfifo(p, 0o600) }, fs.ErrInvalid, syscall.ENOTDIR},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, fs.ErrInvalid, nil},
		{"nothing", func(string) error { return nil }, fs.ErrNotExist, fs.ErrNotExist},
	} {
		t.Run(c.name, func(t *testing.T) {
			top := t.TempDir()
			must(t, os.MkdirAll(top+"/d/sub", 0o755))
			write(t, top+"/d/file", "")
			d := lookup(t, open(t, top), "d")
			file, sub := lookup(t, d, "file"), lookup(t, d, "sub")
			must(t, os.Remove(top+"/d/file"))
			must(t, os.Remove(top+"/d/sub"))
			must(t, c.make(top+"/d/file"))
			must(t, c.make(top+"/d/sub"))
			if _, err := file.(tree.Opener).Open(ctx); !errors.Is(err, c.file) {
				t.Errorf("file: %v, want %v", err, c.file)
			}
			var err error
			for _, err = range sub.Entries(ctx, 0) {
			}
			if !errors.Is(err, c.dir) {
				t.Errorf("directory: %v, want %v", err, c.dir)
			}
		})
	}
}

// TestReplacedDirectory reopens a directory that another one has replaced.
func TestReplacedDirectory(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/d", 0o755))
	root := open(t, dir)
	d := lookup(t, root, "d")
	names(t, d, 0) // opens it, and closes it at the end
	must(t, os.Rename(dir+"/d", dir+"/old"))
	must(t, os.Mkdir(dir+"/d", 0o755))
	if _, err := d.Lookup(ctx, "x"); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("replaced directory: %v", err)
	}
	must(t, os.Rename(dir, dir+".old"))
	defer os.RemoveAll(dir + ".old")
	must(t, os.Mkdir(dir, 0o755))
	if _, err := root.Lookup(ctx, "x"); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("replaced root: %v", err)
	}
}

func TestVanishingEntries(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		write(t, fmt.Sprintf("%s/f%d", dir, i), "")
	}
	var got []string
	for n, err := range open(t, dir).Entries(ctx, 0) {
		must(t, err)
		got = append(got, n.Attr().Name)
		os.Remove(dir + "/f1")
		os.Remove(dir + "/f4")
		write(t, dir+"/f9", "") // came too late to be listed
	}
	if want := []string{"f0", "f2", "f3"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	d := t.TempDir()
	n := open(t, d)
	must(t, os.Remove(d))
	for _, err := range n.Entries(ctx, 0) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removed directory: %v", err)
		}
	}
}

func TestEntriesFrom(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b", "a", "\xff", "A", "a.b", "a-b"} {
		write(t, dir+"/"+name, "")
	}
	all := []string{"A", "a", "a-b", "a.b", "b", "\xff"}
	root := open(t, dir)
	for from := range int64(8) {
		if got := names(t, root, from); !slices.Equal(got, all[min(from, 6):]) {
			t.Errorf("from %d: %q", from, got)
		}
	}
	canceled, cancel := context.WithCancel(ctx)
	defer cancel()
	n := 0
	for _, err := range root.Entries(canceled, 0) {
		n++
		cancel()
		if n == 2 && !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}
	}
	if n != 2 {
		t.Errorf("%d steps after cancel", n)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestDeepWalkIsBoundInDescriptors walks 5,000 levels, far beyond PATH_MAX.
func TestDeepWalkIsBoundInDescriptors(t *testing.T) {
	dir := t.TempDir()
	const deep = 5000
	m, err := gen.Tree(dir, gen.Options{Seed: 1, Files: -1, Wide: -1, Deep: deep})
	must(t, err)
	before, most, seen := descriptors(t), 0, 0
	var deepest tree.Node
	var walk func(tree.Node, int)
	walk = func(n tree.Node, depth int) {
		seen++
		if depth == deep+2 {
			deepest = n
		}
		if n.Attr().Kind != tree.Dir {
			return
		}
		for c, err := range n.Entries(ctx, 0) {
			must(t, err)
			walk(c, depth+1)
			if depth%100 == 0 { // on the way back
				most = max(most, descriptors(t))
			}
		}
	}
	walk(open(t, dir), 0)
	if seen != m.Names() {
		t.Errorf("saw %d nodes, want %d", seen, m.Names())
	}
	if most > before+80 {
		t.Errorf("%d descriptors were open, %d before", most, before)
	}
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors are still open", n-before)
	}
	// Long after the walk, a file far down is opened through all its parents.
	p := make([]byte, 10)
	if _, err := deepest.ReadAt(ctx, p, 0); err != nil {
		t.Errorf("the deepest file: %v", err)
	}
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors are still open", n-before)
	}
}

// TestConcurrentUse lists and reads one tree from many goroutines: the
// directories share descriptors and their positions.
func TestConcurrentUse(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 100 {
		d := fmt.Sprintf("%s/d%02d", dir, i)
		must(t, os.Mkdir(d, 0o755))
		for j := range 5 {
			name := fmt.Sprintf("f%d", j)
			write(t, d+"/"+name, name)
			want = append(want, filepath.Base(d)+"/"+name)
		}
	}
	before := descriptors(t)
	root := open(t, dir)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var got []string
			for d, err := range root.Entries(ctx, 0) {
				if err != nil {
					t.Error(err)
					return
				}
				for f, err := range d.Entries(ctx, 0) {
					if err != nil {
						t.Error(err)
						return
					}
					p := make([]byte, 2)
					if _, err := f.ReadAt(ctx, p, 0); err != nil || string(p) != f.Attr().Name {
						t.Errorf("%q, %v", p, err)
					}
					got = append(got, d.Attr().Name+"/"+f.Attr().Name)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d files, want %d", len(got), len(want))
			}
		})
	}
	wg.Wait()
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors are still open", n-before)
	}
}
