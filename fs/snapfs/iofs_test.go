package snapfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

// ioTree makes a tree that io/fs can speak of, but for one name, and returns
// what is in it. All its links lead to something.
func ioTree(t *testing.T) (dir string, names []string) {
	t.Helper()
	dir = t.TempDir()
	at := time.Date(1969, 7, 20, 20, 17, 40, 123456789, time.UTC)
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string, mode fs.FileMode, p []byte) {
		path := filepath.Join(dir, name)
		check(os.MkdirAll(filepath.Dir(path), 0o755))
		check(os.WriteFile(path, p, 0o644))
		check(os.Chmod(path, mode))
		check(os.Chtimes(path, at, at))
		names = append(names, name)
	}
	file("a file", 0o640, []byte("text"))
	file("empty", 0o644, nil)
	file("large", 0o444, bytes.Repeat([]byte("many chunks "), 3000))
	file("dir/sub/deep", fs.ModeSetuid|fs.ModeSetgid|0o755, []byte("#!/bin/sh\n"))
	file("dir/.hidden", 0o600, []byte("x"))
	file("dir/new\nline", 0o644, []byte("y"))
	file("ümläut", 0o644, []byte("z"))
	for i := range 200 {
		file(fmt.Sprintf("many/%03d", i), 0o644, []byte{byte(i)})
	}
	check(os.Mkdir(filepath.Join(dir, "none"), 0o755))
	check(os.Chmod(filepath.Join(dir, "none"), fs.ModeSticky|0o777))
	check(syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644))
	check(os.Symlink("a file", filepath.Join(dir, "link")))
	check(os.Symlink("../link", filepath.Join(dir, "dir/link to a link")))
	check(os.Symlink("dir/./sub/..//sub/", filepath.Join(dir, "link to a dir")))
	names = append(names, "dir", "dir/sub", "none", "fifo", "link", "dir/link to a link", "link to a dir")
	check(os.WriteFile(filepath.Join(dir, "not UTF-8 \xff"), nil, 0o644))
	return dir, names
}

// views are the ways to see a tree as an fs.FS.
func views(t *testing.T, dir string) map[string]fs.FS {
	t.Helper()
	live, err := source.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	root, _ := stored(t, live)
	return map[string]fs.FS{
		"stored": snapfs.FS(t.Context(), root),
		"live":   snapfs.FS(t.Context(), live),
	}
}

func TestFS(t *testing.T) {
	dir, names := ioTree(t)
	for view, fsys := range views(t, dir) {
		if err := fstest.TestFS(fsys, names...); err != nil {
			t.Errorf("%s: %v", view, err)
		}
		if _, err := fs.Stat(fsys, "not UTF-8 \xff"); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%s: a name that io/fs cannot say: %v", view, err)
		}
	}
	c := newChunks()
	if err := fstest.TestFS(snapfs.FS(t.Context(), c.open(t))); err != nil {
		t.Errorf("an empty tree: %v", err)
	}
	// There and back: io/fs as nodes as io/fs, and through a repository.
	src := source.FS(fstest.MapFS{"d/e/f": {Data: []byte("f"), Mode: 0o600}, "g": {Data: []byte("g")}, "l": {Data: []byte("d/e/f"), Mode: fs.ModeSymlink | 0o777}})
	root, _ := stored(t, src)
	for view, n := range map[string]tree.Node{"io/fs": src, "stored": root} {
		if err := fstest.TestFS(snapfs.FS(t.Context(), n), "d/e/f", "g", "l"); err != nil {
			t.Errorf("%s: %v", view, err)
		}
	}
}

// TestLikeDirFS compares with what the operating system says.
func TestLikeDirFS(t *testing.T) {
	dir, _ := ioTree(t)
	want := os.DirFS(dir)
	for view, fsys := range views(t, dir) {
		n := 0
		err := fs.WalkDir(want, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || strings.Contains(name, "\xff") {
				return err
			}
			n++
			for what, stat := range map[string]func(fs.FS, string) (fs.FileInfo, error){"stat": fs.Stat, "lstat": fs.Lstat} {
				a, err := stat(want, name)
				if err != nil {
					return err
				}
				b, err := stat(fsys, name)
				if err != nil {
					return err
				}
				if a.Name() != b.Name() || a.Mode() != b.Mode() || !a.ModTime().Equal(b.ModTime()) || a.IsDir() != b.IsDir() || !a.IsDir() && a.Size() != b.Size() {
					t.Errorf("%s: %s of %q is %s, want %s", view, what, name, fs.FormatFileInfo(b), fs.FormatFileInfo(a))
				}
				if attr, ok := b.Sys().(*tree.Attr); !ok || attr.Mtime.Time() != b.ModTime() {
					t.Errorf("%s: Sys of %q is %T", view, name, b.Sys())
				}
			}
			if d.Type() == fs.ModeSymlink {
				a, _ := fs.ReadLink(want, name)
				if b, err := fs.ReadLink(fsys, name); err != nil || a != b {
					t.Errorf("%s: link %q leads to %q, %v; want %q", view, name, b, err, a)
				}
			} else if _, err := fs.ReadLink(fsys, name); !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s: ReadLink of %q: %v", view, name, err)
			}
			if !d.Type().IsRegular() {
				return nil
			}
			a, err := fs.ReadFile(want, name)
			if err != nil {
				return err
			}
			if b, err := fs.ReadFile(fsys, name); err != nil || !bytes.Equal(a, b) {
				t.Errorf("%s: %q holds %d bytes, %v", view, name, len(b), err)
			}
			return nil
		})
		if err != nil || n < 200 {
			t.Errorf("%s: %d names, %v", view, n, err)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	dir, _ := ioTree(t)
	for view, fsys := range views(t, dir) {
		f, err := fsys.Open("large")
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 11)
		if n, err := f.(io.ReaderAt).ReadAt(p, 12); n != 11 || err != nil || string(p) != "many chunks" {
			t.Errorf("%s: ReadAt %q, %v", view, p, err)
		}
		if off, err := f.(io.Seeker).Seek(-7, io.SeekEnd); off != 36000-7 || err != nil {
			t.Errorf("%s: Seek to %d, %v", view, off, err)
		}
		if rest, err := io.ReadAll(f); err != nil || string(rest) != "chunks " {
			t.Errorf("%s: %q, %v", view, rest, err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("%s: %v", view, err)
		}

		d, err := fsys.Open("many")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(p); !errors.Is(err, syscall.EISDIR) {
			t.Errorf("%s: reading a directory: %v", view, err)
		}
		list, err := d.(fs.ReadDirFile).ReadDir(50)
		rest, rerr := d.(fs.ReadDirFile).ReadDir(-1)
		if err != nil || rerr != nil || len(list) != 50 || len(rest) != 150 || rest[0].Name() != "050" {
			t.Errorf("%s: %d entries, %v; then %d, %v", view, len(list), err, len(rest), rerr)
		}
		if err := d.Close(); err != nil {
			t.Errorf("%s: %v", view, err)
		}
	}
}

// TestSymlinks has links that lead nowhere, out of the tree, and in a circle.
func TestSymlinks(t *testing.T) {
	c := newChunks()
	link := func(name, target string) *tree.Entry {
		return &tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.Symlink, Target: target, Nlink: 1}}
	}
	chain := []*tree.Entry{link("chain00", "target")}
	for i := 1; i < 45; i++ {
		chain = append(chain, link(fmt.Sprintf("chain%02d", i), fmt.Sprintf("chain%02d", i-1)))
	}
	root := c.open(t, append(chain, c.dir(t, "dir", c.file(t, "f", c.data([]byte("in dir"))), link("out", "../../etc/passwd"), link("up", "..")),
		link("loop", "loop"), link("loop1", "loop2"), link("loop2", "loop1"), link("nowhere", "not/here"), link("root", "/etc/passwd"),
		c.file(t, "target", c.data([]byte("target"))), link("to dir", "dir"))...)
	fsys := snapfs.FS(t.Context(), root)
	for _, tt := range []struct {
		name, holds string
		want        error
	}{
		{"chain39", "target", nil},
		{"chain40", "", syscall.ELOOP},
		{"to dir/f", "in dir", nil},
		{"to dir/up/to dir/up/target", "target", nil},
		{"dir/up/dir/f", "in dir", nil},
		{"loop", "", syscall.ELOOP},
		{"loop1", "", syscall.ELOOP},
		{"loop1/x", "", syscall.ELOOP},
		{"nowhere", "", fs.ErrNotExist},
		{"root", "", fs.ErrNotExist},
		{"dir/out", "", fs.ErrNotExist},
		{"target/x", "", syscall.ENOTDIR},
		{"chain00/x", "", syscall.ENOTDIR},
		{"../target", "", fs.ErrInvalid},
		{"/target", "", fs.ErrInvalid},
		{"", "", fs.ErrInvalid},
	} {
		p, err := fs.ReadFile(fsys, tt.name)
		if tt.want == nil {
			if err != nil || string(p) != tt.holds {
				t.Errorf("%q: %q, %v", tt.name, p, err)
			}
			continue
		}
		wantErr(t, tt.name, err, tt.want)
		var pe *fs.PathError
		if !errors.As(err, &pe) || pe.Path != tt.name {
			t.Errorf("%q: the error %v names another path", tt.name, err)
		}
		if _, err := fs.Lstat(fsys, tt.name); tt.want == syscall.ELOOP && strings.Count(tt.name, "/") == 0 && err != nil {
			t.Errorf("Lstat of %q: %v", tt.name, err)
		}
	}
	list, err := fs.ReadDir(fsys, "to dir")
	if err != nil || len(list) != 3 {
		t.Errorf("ReadDir of a link: %v, %v", list, err)
	}
	if info, err := fs.Stat(fsys, "to dir"); err != nil || !info.IsDir() || info.Name() != "to dir" {
		t.Errorf("Stat of a link: %v, %v", info, err)
	}
}

// TestDamagedFS: ReadDir returns what can be read, and the error.
func TestDamagedFS(t *testing.T) {
	c := newChunks()
	const total = 2000
	dir := c.dir(t, "d", manyFiles(t, c, total)...)
	refs := c.refs(t, dir.Root)
	bad := refs[1]
	c.bad[bad.ID] = chunk.ErrCorrupt
	fsys := snapfs.FS(t.Context(), c.open(t, dir))
	list, err := fs.ReadDir(fsys, "d")
	wantErr(t, "ReadDir", err, chunk.ErrCorrupt)
	if len(list) != total-int(bad.Items) {
		t.Errorf("%d entries, want %d", len(list), total-int(bad.Items))
	}
	// In pieces: the error stands where the damage is, and one may go on.
	d, err := fsys.Open("d")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var names []string
	errs := 0
	for {
		part, err := d.(fs.ReadDirFile).ReadDir(7)
		for _, e := range part {
			names = append(names, e.Name())
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			errs++
			wantErr(t, "ReadDir(7)", err, chunk.ErrCorrupt)
			if len(names) != int(refs[0].Items) {
				t.Errorf("the error comes after %d names, want %d", len(names), refs[0].Items)
			}
		}
	}
	if errs != 1 || len(names) != len(list) || !slices.IsSorted(names) {
		t.Errorf("%d names, %d errors", len(names), errs)
	}
	_, err = fs.Stat(fsys, "d/"+bad.Last)
	wantErr(t, "Stat", err, chunk.ErrCorrupt)
}
