package restore

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// mem is a stored node in memory: chunks of a fixed size, with IDs.
type mem struct {
	attr   tree.Attr
	kids   []*mem // as given: also unsorted, for a damaged directory
	fails  error  // ends Entries after kids
	xattrs []tree.Xattr
	data   []byte
	exts   []tree.Extent
	read   *atomic.Int64 // bytes read
	onRead func(off int64) error
}

var hasher = chunk.NewHasher([32]byte{1, 2, 3})

const memChunk = 8 << 10

var someTime = tree.Time{Sec: 1_700_000_000, Nsec: 123_456_789}

func memDir(name string, kids ...*mem) *mem {
	return &mem{attr: tree.Attr{Name: name, Kind: tree.Dir, Mode: 0o755, Mtime: someTime, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Nlink: 1}, kids: kids}
}

func memFile(name string, data []byte) *mem {
	m := memDir(name)
	m.attr.Kind, m.attr.Mode, m.attr.Size, m.data = tree.File, 0o644, int64(len(data)), data
	for off := 0; off < len(data); off += memChunk {
		p := data[off:min(len(data), off+memChunk)]
		m.exts = append(m.exts, tree.Extent{Off: int64(off), Len: int64(len(p)), Kind: tree.Data, ID: hasher.Sum(p)})
	}
	return m
}

func memLink(name, target string) *mem {
	m := memDir(name)
	m.attr.Kind, m.attr.Mode, m.attr.Target = tree.Symlink, 0o777, target
	return m
}

func (m *mem) Attr() *tree.Attr                             { return &m.attr }
func (m *mem) Xattrs(context.Context) ([]tree.Xattr, error) { return m.xattrs, nil }

func (m *mem) Lookup(_ context.Context, name string) (tree.Node, error) {
	if m.attr.Kind != tree.Dir {
		return nil, syscall.ENOTDIR
	}
	for _, k := range m.kids {
		if k.attr.Name == name {
			return k, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (m *mem) Entries(_ context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		for _, k := range m.kids[from:] {
			if !yield(k, nil) {
				return
			}
		}
		if m.fails != nil {
			yield(nil, m.fails)
		}
	}
}

func (m *mem) Extents(_ context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		for _, e := range m.exts {
			if e.Off+e.Len > off && !yield(e, nil) {
				return
			}
		}
	}
}

func (m *mem) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if m.onRead != nil {
		if err := m.onRead(off); err != nil {
			return 0, err
		}
	}
	n, err := bytes.NewReader(m.data).ReadAt(p, off)
	if m.read != nil {
		m.read.Add(int64(n))
	}
	if n == len(p) || err != io.EOF {
		return n, err
	}
	return n, io.EOF
}

// counted makes the file count what is read of it.
func (m *mem) counted() (*mem, *atomic.Int64) {
	m.read = new(atomic.Int64)
	return m, m.read
}

// random returns n bytes that depend on seed alone.
func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		seed = seed*6364136223846793005 + 1442695040888963407
		p[i] = byte(seed >> 56)
	}
	return p
}

// restoreTo restores n into dir and fails the test on any error.
func restoreTo(t *testing.T, n tree.Node, dir string, opt Options) Totals {
	t.Helper()
	tot, err := Run(t.Context(), []Item{{Node: n}}, dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	return tot
}

// put writes files: a name that ends in / is a directory, "-> x" as contents
// a symlink.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, data := range files {
		p := filepath.Join(dir, name)
		var err error
		if name[len(name)-1] == '/' {
			err = os.MkdirAll(p, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(p), 0o755); err == nil {
			if len(data) > 3 && data[:3] == "-> " {
				err = os.Symlink(data[3:], p)
			} else {
				err = os.WriteFile(p, []byte(data), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list tells what is below dir: path -> contents, "-> target", or "/".
func list(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			got[rel] = "/"
		case d.Type()&fs.ModeSymlink != 0:
			l, err := os.Readlink(p)
			got[rel] = "-> " + l
			return err
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			got[rel] = string(b)
			return err
		default:
			got[rel] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}
