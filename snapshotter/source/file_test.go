package source_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

func openFile(t testing.TB, n tree.Node) tree.OpenFile {
	t.Helper()
	f, err := n.(tree.Opener).Open(ctx)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestReadAt(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", "0123456789")
	n := open(t, dir+"/f")
	f := openFile(t, n)
	for _, c := range []struct {
		off  int64
		n    int
		want string
		err  error
	}{
		{0, 10, "0123456789", nil}, {3, 4, "3456", nil}, {8, 4, "89", io.EOF}, {10, 1, "", io.EOF}, {99, 1, "", io.EOF},
		{5, 0, "", nil}, {-1, 1, "", fs.ErrInvalid},
	} {
		p := make([]byte, c.n)
		m, err := f.ReadAt(p, c.off)
		if string(p[:m]) != c.want || !errors.Is(err, c.err) {
			t.Errorf("ReadAt(%d, %d) = %q, %v", c.n, c.off, p[:m], err)
		}
		m, err = n.ReadAt(ctx, p, c.off)
		if string(p[:m]) != c.want || !errors.Is(err, c.err) {
			t.Errorf("Node.ReadAt(%d, %d) = %q, %v", c.n, c.off, p[:m], err)
		}
	}
	// The open file tells what it is now, the node what it was.
	write(t, dir+"/f", "short")
	a, err := f.Stat()
	must(t, err)
	if a.Size != 5 || n.Attr().Size != 10 || a.Ino != n.Attr().Ino || a.Name != "f" {
		t.Errorf("now %+v, was %+v", a, n.Attr())
	}
	must(t, f.Close())
	if _, err := f.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("read from a closed file")
	}
	if err := f.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
}

func TestAccessTimeStays(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/f", "x")
	old := time.Unix(1e9, 0)
	must(t, os.Chtimes(dir+"/f", old, time.Unix(2e9, 0)))
	if _, err := open(t, dir+"/f").ReadAt(ctx, make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(dir+"/f", &st))
	if st.Atim.Sec != old.Unix() {
		t.Errorf("reading set the access time to %d", st.Atim.Sec)
	}
}

// layout makes a file with data of one block at each offset.
func layout(t *testing.T, path string, size int64, data ...int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	must(t, f.Truncate(size))
	for _, off := range data {
		_, err := f.WriteAt([]byte(strings.Repeat("x", 65536)), off)
		must(t, err)
	}
	must(t, f.Close())
}

func TestExtents(t *testing.T) {
	const k64 = 64 << 10
	dir := t.TempDir()
	x := func(off, end int64, kind tree.ExtentKind, e tree.End) tree.Extent {
		return tree.Extent{Off: off, Len: end - off, Kind: kind, End: e}
	}
	for _, c := range []struct {
		name string
		size int64
		data []int64
		off  int64
		want []tree.Extent
	}{
		{"empty", 0, nil, 0, nil},
		{"all hole", 10 * k64, nil, 0, []tree.Extent{x(0, 10*k64, tree.Hole, tree.EndFile)}},
		{"all data", k64, []int64{0}, 0, []tree.Extent{x(0, k64, tree.Data, tree.EndFile)}},
		{"hole at the start", 3 * k64, []int64{2 * k64}, 0, []tree.Extent{x(0, 2*k64, tree.Hole, tree.EndSource), x(2*k64, 3*k64, tree.Data, tree.EndFile)}},
		{"hole in the middle", 4 * k64, []int64{0, 3 * k64}, 0, []tree.Extent{x(0, k64, tree.Data, tree.EndSource), x(k64, 3*k64, tree.Hole, tree.EndSource), x(3*k64, 4*k64, tree.Data, tree.EndFile)}},
		{"hole at the end", 2*k64 + 5, []int64{0}, 0, []tree.Extent{x(0, k64, tree.Data, tree.EndSource), x(k64, 2*k64+5, tree.Hole, tree.EndFile)}},
		{"from inside a hole", 4 * k64, []int64{0, 3 * k64}, 2 * k64, []tree.Extent{x(2*k64, 3*k64, tree.Hole, tree.EndSource), x(3*k64, 4*k64, tree.Data, tree.EndFile)}},
		{"from the end", k64, []int64{0}, k64, nil},
		{"beyond 4 GiB", 6 << 30, []int64{5 << 30}, 0, []tree.Extent{x(0, 5<<30, tree.Hole, tree.EndSource), x(5<<30, 5<<30+k64, tree.Data, tree.EndSource), x(5<<30+k64, 6<<30, tree.Hole, tree.EndFile)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := dir + "/f"
			layout(t, path, c.size, c.data...)
			n := open(t, path)
			var got []tree.Extent
			for x, err := range n.(tree.Extenter).Extents(ctx, c.off) {
				must(t, err)
				got = append(got, x)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestExtentsOfAShrinkingFileEnd(t *testing.T) {
	const k64 = 64 << 10
	path := t.TempDir() + "/f"
	layout(t, path, 40*k64, 0, 2*k64, 4*k64, 39*k64)
	f := openFile(t, open(t, path))
	end, n := int64(0), 0
	for x, err := range f.Extents(0) {
		must(t, err)
		if x.Off != end || x.Len <= 0 {
			t.Fatalf("%+v after %d", x, end)
		}
		end = x.Off + x.Len
		if n++; n == 2 {
			must(t, os.Truncate(path, 10))
		}
	}
	if end != 40*k64 {
		t.Errorf("extents end at %d, want the size at the start", end)
	}
}

func TestExtentsWithoutSupport(t *testing.T) {
	// Files of /proc have no size; those of /sys have one, and no holes.
	const path = "/sys/kernel/profiling"
	if _, err := os.Stat(path); err != nil {
		missing(t, path)
	}
	n := open(t, path)
	var got []tree.Extent
	for x, err := range n.(tree.Extenter).Extents(ctx, 0) {
		must(t, err)
		got = append(got, x)
	}
	if len(got) != 1 || got[0].Kind != tree.Data || got[0].Len != n.Attr().Size {
		t.Errorf("got %+v for a file of %d bytes", got, n.Attr().Size)
	}
}

// TestPermissions acts as a user who may not, on this thread alone.
func TestPermissions(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "root, to act as another user")
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	for p := dir; p != "/tmp" && p != "/"; p = p[:max(strings.LastIndexByte(p, '/'), 1)] {
		var st unix.Stat_t
		must(t, unix.Stat(p, &st))
		if st.Mode&0o5 != 0o5 {
			must(t, os.Chmod(p, 0o755))
			t.Cleanup(func() { os.Chmod(p, os.FileMode(st.Mode&0o777)) })
		}
	}
	for _, d := range []string{"list-only", "search-only", "plain"} {
		must(t, os.Mkdir(dir+"/"+d, 0o755))
		write(t, dir+"/"+d+"/f", "x")
		write(t, dir+"/"+d+"/g", "x")
	}
	must(t, os.Chmod(dir+"/plain/f", 0o600))
	must(t, os.Chmod(dir+"/list-only", 0o744))
	must(t, os.Chmod(dir+"/search-only", 0o711))

	done := make(chan struct{})
	go func() { // the thread ends with the goroutine
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		root, err := source.Open(dir)
		if err != nil {
			t.Error(err)
			return
		}
		var failed []string
		child := func(name string) tree.Node {
			n, err := root.Lookup(ctx, name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			return n
		}
		for _, err := range child("list-only").Entries(ctx, 0) {
			var p *fs.PathError
			if !errors.Is(err, fs.ErrPermission) || !errors.As(err, &p) {
				t.Errorf("list-only: %v", err)
				return
			}
			failed = append(failed, p.Path)
		}
		if want := []string{"f", "g"}; !slices.Equal(failed, want) {
			t.Errorf("failed %q, want %q", failed, want)
		}
		s := child("search-only")
		steps := 0
		for _, err := range s.Entries(ctx, 0) {
			var p *fs.PathError
			if steps++; !errors.Is(err, fs.ErrPermission) || !errors.As(err, &p) || p.Path != dir+"/search-only" {
				t.Errorf("search-only: %v", err)
			}
		}
		if steps != 1 {
			t.Errorf("search-only: %d steps", steps)
		}
		if n, err := s.Lookup(ctx, "f"); err != nil {
			t.Errorf("search-only: %v", err)
		} else if _, err := n.ReadAt(ctx, make([]byte, 1), 0); err != nil { // not the owner: without O_NOATIME
			t.Errorf("search-only: %v", err)
		}
		if _, err := s.Xattrs(ctx); err != nil {
			t.Errorf("search-only: %v", err)
		}
		if n, err := child("plain").Lookup(ctx, "f"); err != nil {
			t.Error(err)
		} else if _, err := n.(tree.Opener).Open(ctx); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a file of another user: %v", err)
		}
	}()
	<-done
}

func TestFS(t *testing.T) {
	when := time.Unix(-5, 7)
	root := source.FS(fstest.MapFS{
		"b/file": {Data: []byte("hello"), Mode: 0o640, ModTime: when},
		"b-x":    {Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		"link":   {Data: []byte("b/file"), Mode: fs.ModeSymlink | 0o777},
		"pipe":   {Mode: fs.ModeNamedPipe | 0o600},
		"suid":   {Mode: fs.ModeSetuid | fs.ModeSetgid | 0o755},
	})
	if got, want := names(t, root, 0), []string{"b", "b-x", "link", "pipe", "suid"}; !slices.Equal(got, want) {
		t.Fatalf("names %q, want %q", got, want)
	}
	if got := names(t, root, 3); !slices.Equal(got, []string{"pipe", "suid"}) {
		t.Errorf("from 3: %q", got)
	}
	file := lookup(t, lookup(t, root, "b"), "file")
	want := tree.Attr{Name: "file", Kind: tree.File, Mode: 0o640, Size: 5, Allocated: 5, Mtime: tree.Time{Sec: -5, Nsec: 7}, Nlink: 1}
	if *file.Attr() != want {
		t.Errorf("got %+v, want %+v", *file.Attr(), want)
	}
	p := make([]byte, 9)
	if n, err := file.ReadAt(ctx, p, 1); string(p[:n]) != "ello" || err != io.EOF {
		t.Errorf("%q, %v", p[:n], err)
	}
	f := openFile(t, file)
	for x, err := range f.Extents(1) {
		if err != nil || x.Off != 1 || x.Len != 4 || x.Kind != tree.Data {
			t.Errorf("%+v, %v", x, err)
		}
	}
	if a := lookup(t, root, "link").Attr(); a.Kind != tree.Symlink || a.Target != "b/file" || a.Size != 6 {
		t.Errorf("%+v", a)
	}
	if a := lookup(t, root, "suid").Attr(); a.Mode != 0o6755 {
		t.Errorf("mode %o", a.Mode)
	}
	if a := lookup(t, root, "b-x").Attr(); a.Mode != 0o1777 || a.Kind != tree.Dir {
		t.Errorf("%+v", a)
	}
	if _, err := root.Lookup(ctx, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none: %v", err)
	}
	if _, err := file.Lookup(ctx, "x"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("lookup in a file: %v", err)
	}
	broken := source.FS(os.DirFS(t.TempDir() + "/none"))
	for _, err := range broken.Entries(ctx, 0) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("broken root: %v", err)
		}
	}
}

// missing skips a test, or fails it where CUTBANK_REQUIRE says that nothing
// may be missing.
func missing(t *testing.T, what string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "fuse") {
		t.Fatal("needs " + what)
	}
	t.Skip("SKIPPED: needs " + what)
}
