package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// frozen returns a file of testdata. These files are what version 1 of the
// format is: once committed, none of them ever changes. A new one is made by
// running its test with CUTBANK_FREEZE=1; what is there is never overwritten.
func frozen(tb testing.TB, name string, fresh func() []byte) []byte {
	tb.Helper()
	path := filepath.Join("testdata", name)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && os.Getenv("CUTBANK_FREEZE") == "1" {
		p = fresh()
		err = os.WriteFile(path, p, 0o644)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

var hasher = chunk.NewHasher([32]byte{'t', 'r', 'e', 'e'})

// pages keeps pages in memory.
type pages map[chunk.ID][]byte

func (ps pages) put(p []byte) (chunk.ID, error) {
	id := hasher.Sum(p)
	ps[id] = append([]byte(nil), p...)
	return id, nil
}

func (ps pages) get(id chunk.ID) ([]byte, error) {
	p, ok := ps[id]
	if !ok {
		return nil, fmt.Errorf("page %s: %w", id, chunk.ErrMissing)
	}
	return p, nil
}

// news counts the pages that old has not.
func (ps pages) news(old pages) int {
	n := 0
	for id := range ps {
		if _, ok := old[id]; !ok {
			n++
		}
	}
	return n
}

// sizes checks that pages are as long as the format says, and returns their
// mean.
func (ps pages) sizes(tb testing.TB) int {
	tb.Helper()
	sum := 0
	for id, p := range ps {
		pg, err := tree.ParsePage(p)
		if err != nil {
			tb.Fatalf("page %s: %v", id, err)
		}
		if n := len(pg.Refs) + len(pg.Entries) + len(pg.Extents) + len(pg.Witness); len(p) > 16<<10+32 && n > 1 {
			tb.Errorf("a page of %d items has %d bytes", n, len(p))
		}
		sum += len(p)
	}
	return sum / max(1, len(ps))
}

// file is a file entry of that name, of contents that follow from it.
func file(name string) *tree.Entry {
	e := &tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.File, Mode: 0o644, UID: 1000, GID: 100, Nlink: 1,
		Mtime: tree.Time{Sec: 1_700_000_000 + int64(len(name)), Nsec: 5}}}
	e.Size = int64(100 + len(name))
	e.Allocated = 4096
	e.Extents = []tree.Extent{{Len: e.Size, Kind: tree.Data, ID: hasher.Sum([]byte(name))}}
	return e
}

// names returns n names in ascending order.
func names(n int) []string {
	s := make([]string, n)
	for i := range s {
		s[i] = fmt.Sprintf("name-%07d", 10*i)
	}
	return s
}

// writeDir writes a directory of files.
func writeDir(tb testing.TB, ps pages, names []string) tree.Entry {
	tb.Helper()
	w := tree.NewDirWriter(ps.put)
	for _, name := range names {
		if err := w.Add(file(name)); err != nil {
			tb.Fatal(err)
		}
	}
	dir := tree.Entry{Attr: tree.Attr{Name: "dir", Kind: tree.Dir}}
	if err := w.Finish(&dir); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// writeRecipe writes a recipe.
func writeRecipe(tb testing.TB, ps pages, xs []tree.Extent) tree.Entry {
	tb.Helper()
	w := tree.NewRecipeWriter(ps.put)
	for _, x := range xs {
		if err := w.Add(x); err != nil {
			tb.Fatal(err)
		}
	}
	e := tree.Entry{Attr: tree.Attr{Name: "file", Kind: tree.File}}
	if err := w.Finish(&e); err != nil {
		tb.Fatal(err)
	}
	if w.Size() != e.Size {
		tb.Errorf("the writer counts %d bytes, the entry says %d", w.Size(), e.Size)
	}
	return e
}

// extents returns n extents of all kinds, from a seed.
func extents(seed uint64, n int) []tree.Extent {
	rnd := rand.New(rand.NewPCG(seed, 0))
	xs := make([]tree.Extent, n)
	off := int64(0)
	for i := range xs {
		x := tree.Extent{Off: off, Len: 1 + rnd.Int64N(1<<rnd.IntN(40)), Kind: tree.Data, End: tree.End(rnd.IntN(5))}
		if rnd.IntN(10) == 0 {
			x.Kind = tree.ExtentKind(2 + rnd.IntN(4))
		} else {
			x.ID = hasher.Sum([]byte{byte(i), byte(i >> 8), byte(i >> 16), byte(seed)})
		}
		xs[i] = x
		off += x.Len
	}
	return xs
}

func wantErr(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if err == nil || !errors.Is(err, want) {
		tb.Errorf("%s: error %v, want %v", what, err, want)
	}
}
