package snapfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/test/gen"
)

const wide = 3000

// TestSnapshot makes a snapshot of a generated tree and compares what comes
// back, node by node.
func TestSnapshot(t *testing.T) {
	opt := gen.Default(5)
	opt.Files, opt.Bytes, opt.Wide, opt.Deep = 60, 4<<20, wide, 30
	t.Logf("seed %d", opt.Seed)
	dir := t.TempDir()
	if _, err := gen.Tree(dir, opt); err != nil {
		t.Fatal(err)
	}
	live, err := source.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	root, r := stored(t, live)
	s := &snapshotTest{live: live, root: root, repo: r, seed: opt.Seed}
	t.Run("numbers", s.numbers)
	t.Run("attributes", s.attributes)
	t.Run("entries", s.entries)
	t.Run("lookup", s.lookup)
	t.Run("contents", s.contents)
	t.Run("extents", s.extents)
	t.Run("concurrent", s.concurrent)
}

type snapshotTest struct {
	live tree.Node
	root tree.Numbered
	repo *repo.Repo
	seed uint64
}

// numbers: each node's number is its place in preorder, that of a hard link the
// place of the first of its names, and ByNumber is the inverse.
func (s *snapshotTest) numbers(t *testing.T) {
	type inode struct{ dev, ino uint64 }
	first := map[inode]uint64{}
	var want []uint64 // by place
	walk(t, s.live, "", func(path string, n tree.Node) {
		a := n.Attr()
		place := uint64(len(want))
		number := place
		if a.Kind != tree.Dir && a.Nlink > 1 {
			key := inode{a.Dev, a.Ino}
			if _, ok := first[key]; !ok {
				first[key] = place
			}
			number = first[key]
		}
		want = append(want, number)
	})
	place, links := uint64(0), 0
	totals := tree.Totals{}
	walk(t, s.root, "", func(path string, n tree.Node) {
		num := n.(tree.Numbered)
		if place >= uint64(len(want)) || num.Number() != want[place] || n.Attr().Ino != num.Number()+1 {
			t.Fatalf("%q is number %d, inode %d; want %d of %d nodes", path, num.Number(), n.Attr().Ino, want[min(place, uint64(len(want)-1))], len(want))
		}
		back, err := s.root.ByNumber(t.Context(), place)
		switch {
		case num.Number() != place: // a later name
			links++
			wantErr(t, "the number of a later name", err, fs.ErrNotExist)
			if back, err = num.ByNumber(t.Context(), num.Number()); err != nil || back.Attr().Size != n.Attr().Size || back.Attr().Mtime != n.Attr().Mtime {
				t.Errorf("%q: its first name is %v, %v", path, back, err)
			}
		case err != nil:
			t.Errorf("%q, number %d: %v", path, place, err)
		case !reflect.DeepEqual(back.Attr(), n.Attr()):
			t.Errorf("number %d is %+v, want %+v", place, back.Attr(), n.Attr())
		}
		place++
		totals.Nodes++
		switch n.Attr().Kind {
		case tree.Dir:
			totals.Dirs++
		case tree.File:
			totals.Files++
			totals.Bytes += uint64(n.Attr().Size)
		}
	})
	if place != uint64(len(want)) || links == 0 {
		t.Errorf("%d nodes, %d of them later names; want %d", place, links, len(want))
	}
	if got := s.root.(tree.Totaler).Totals(); got != totals {
		t.Errorf("totals %+v, counted %+v", got, totals)
	}
	for _, n := range []uint64{place, place + 1, 1 << 40, 1<<64 - 1} {
		_, err := s.root.ByNumber(t.Context(), n)
		wantErr(t, fmt.Sprintf("number %d", n), err, fs.ErrNotExist)
	}
}

func (s *snapshotTest) attributes(t *testing.T) {
	var paths []string
	var nodes []tree.Node
	walk(t, s.live, "", func(path string, n tree.Node) { paths, nodes = append(paths, path), append(nodes, n) })
	i := 0
	walk(t, s.root, "", func(path string, n tree.Node) {
		want := *nodes[i].Attr()
		got := *n.Attr()
		if path != paths[i] {
			t.Fatalf("%q where %q should be", path, paths[i])
		}
		want.Dev, want.Ino, want.Ctime = 0, got.Ino, tree.Time{}
		want.Name = got.Name // the roots' differ
		if want.Kind != tree.File && want.Kind != tree.Symlink {
			want.Size = 0
		}
		want.Allocated = 0
		if want.Kind == tree.File {
			data := int64(0)
			for x, err := range n.(tree.Extenter).Extents(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				if x.Kind != tree.Hole {
					data += x.Len
				}
			}
			want.Allocated = (data + 4095) &^ 4095
		}
		if want.Kind == tree.Dir {
			want.Nlink = 1
		}
		if got != want {
			t.Errorf("%q is\n%+v, want\n%+v", path, got, want)
		}
		xs, err := n.Xattrs(t.Context())
		ws, werr := nodes[i].Xattrs(t.Context())
		same := func(a, b tree.Xattr) bool { return a.Name == b.Name && bytes.Equal(a.Value, b.Value) }
		if err != nil || werr != nil || !slices.EqualFunc(xs, ws, same) {
			t.Errorf("%q has the attributes %v, %v; want %v, %v", path, xs, err, ws, werr)
		}
		i++
	})
}

// entries: Entries begins anywhere, and each node knows where that is.
func (s *snapshotTest) entries(t *testing.T) {
	dir := at(t, s.root, "wide")
	all := kids(t, dir, 0)
	if len(all) != wide {
		t.Fatalf("%d names, want %d", len(all), wide)
	}
	for i, c := range all {
		if i > 0 && all[i-1].Attr().Name >= c.Attr().Name {
			t.Errorf("%q comes before %q", all[i-1].Attr().Name, c.Attr().Name)
		}
		if parent, index := c.(tree.Placed).Place(); index != int64(i) || parent != dir {
			t.Errorf("entry %d believes that it is number %d", i, index)
		}
	}
	for from := range wide {
		n := 0
		for c, err := range dir.Entries(t.Context(), int64(from)) {
			if err != nil {
				t.Fatal(err)
			}
			want := all[from+n]
			if c.Attr().Name != want.Attr().Name || c.(tree.Numbered).Number() != want.(tree.Numbered).Number() {
				t.Fatalf("from %d: entry %d is %q, want %q", from, n, c.Attr().Name, want.Attr().Name)
			}
			if _, index := c.(tree.Placed).Place(); index != int64(from+n) {
				t.Fatalf("from %d: entry %d believes that it is number %d", from, n, index)
			}
			if n++; n == 3 && from%500 != 0 {
				break
			}
		}
		if n != min(3, wide-from) && from%500 != 0 || from%500 == 0 && n != wide-from {
			t.Errorf("from %d: %d entries", from, n)
		}
	}
	for _, from := range []int64{wide, wide + 1, 1 << 62, -1} {
		if list := kids(t, dir, from); len(list) != 0 {
			t.Errorf("from %d: %d entries", from, len(list))
		}
	}
	if list := kids(t, at(t, s.root, "kinds/empty-dir"), 0); len(list) != 0 {
		t.Errorf("an empty directory has %d entries", len(list))
	}
	for _, err := range at(t, s.root, "kinds/file").Entries(t.Context(), 0) {
		wantErr(t, "entries of a file", err, syscall.ENOTDIR)
	}
}

func (s *snapshotTest) lookup(t *testing.T) {
	walk(t, s.root, "", func(path string, n tree.Node) {
		if n.Attr().Kind != tree.Dir {
			return
		}
		for _, c := range kids(t, n, 0) {
			name := c.Attr().Name
			got, err := n.Lookup(t.Context(), name)
			if err != nil || !reflect.DeepEqual(got.Attr(), c.Attr()) || got.(tree.Numbered).Number() != c.(tree.Numbered).Number() {
				t.Errorf("%q in %q: %+v, %v", name, path, got, err)
			}
		}
	})
	dir := at(t, s.root, "wide")
	present := map[string]bool{}
	for _, c := range kids(t, dir, 0) {
		present[c.Attr().Name] = true
	}
	absent := []string{"", ".", "..", "/", "a/b", "\x00", "\xff", "zzz", strings.Repeat("0", 300)}
	for name := range present {
		absent = append(absent, name+"\x00", name+"x", name[:len(name)-1])
	}
	for _, name := range absent {
		if present[name] {
			continue
		}
		_, err := dir.Lookup(t.Context(), name)
		var pe *fs.PathError
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &pe) {
			t.Errorf("absent %q: %v", name, err)
		}
	}
	_, err := at(t, s.root, "kinds/file").Lookup(t.Context(), "x")
	wantErr(t, "lookup in a file", err, syscall.ENOTDIR)
	_, err = at(t, s.root, "kinds/empty-dir").Lookup(t.Context(), "x")
	wantErr(t, "lookup in an empty directory", err, fs.ErrNotExist)
}

// contents reads every file at random, and compares with the live one.
func (s *snapshotTest) contents(t *testing.T) {
	rnd := rand.New(rand.NewPCG(s.seed, 9))
	walk(t, s.root, "", func(path string, n tree.Node) {
		size := n.Attr().Size
		if n.Attr().Kind != tree.File {
			_, err := n.ReadAt(t.Context(), make([]byte, 1), 0)
			want := syscall.EINVAL
			if n.Attr().Kind == tree.Dir {
				want = syscall.EISDIR
			}
			wantErr(t, path, err, want)
			return
		}
		live, err := at(t, s.live, path).(tree.Opener).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer live.Close()
		tries := 3
		if size > 100_000 {
			tries = 15
		}
		for i := range tries {
			off, want := rnd.Int64N(size+1), make([]byte, rnd.IntN(60_000))
			if i == 0 {
				off = 0
			}
			m, err := live.ReadAt(want, off)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			got := bytes.Repeat([]byte{0xee}, len(want))
			n, rerr := n.ReadAt(t.Context(), got, off)
			if n != m || !bytes.Equal(got[:n], want[:m]) || (n < len(got)) != (rerr == io.EOF) || rerr != nil && rerr != io.EOF {
				t.Errorf("%q: %d bytes at %d of %d: %d came, %v; the live file gives %d", path, len(got), off, size, n, rerr, m)
			}
		}
		for _, off := range []int64{size, size + 1, 1 << 62} {
			if n, err := n.ReadAt(t.Context(), make([]byte, 10), off); n != 0 || err != io.EOF {
				t.Errorf("%q at %d of %d: %d, %v", path, off, size, n, err)
			}
		}
		_, err = n.ReadAt(t.Context(), make([]byte, 1), -1)
		wantErr(t, "a negative offset", err, syscall.EINVAL)
	})
}

// extents: they tile the file, from wherever one begins, and the chunks hold
// what the file holds.
func (s *snapshotTest) extents(t *testing.T) {
	rnd := rand.New(rand.NewPCG(s.seed, 10))
	walk(t, s.root, "", func(path string, n tree.Node) {
		size := n.Attr().Size
		if n.Attr().Kind != tree.File {
			return
		}
		var all []tree.Extent
		end := int64(0)
		for x, err := range n.(tree.Extenter).Extents(t.Context(), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if x.Off != end || x.Len <= 0 || (x.Kind == tree.Data) == x.ID.IsZero() {
				t.Errorf("%q: extent %+v where %d should be", path, x, end)
			}
			if x.Kind == tree.Data {
				want, err := s.repo.Store().Data(t.Context(), x.ID)
				got := make([]byte, x.Len)
				if _, rerr := n.ReadAt(t.Context(), got, x.Off); err != nil || rerr != nil && rerr != io.EOF || !bytes.Equal(got, want) {
					t.Errorf("%q: the chunk at %d holds other bytes, %v, %v", path, x.Off, err, rerr)
				}
			}
			end += x.Len
			all = append(all, x)
		}
		if end != size {
			t.Errorf("%q: extents end at %d, the file at %d", path, end, size)
		}
		for range min(10, len(all)) {
			off := rnd.Int64N(size)
			i := 0
			for all[i].Off+all[i].Len <= off {
				i++
			}
			var got []tree.Extent
			for x, err := range n.(tree.Extenter).Extents(t.Context(), off) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, x)
			}
			if !reflect.DeepEqual(got, all[i:]) {
				t.Errorf("%q: from %d on: %v, want %v", path, off, got, all[i:])
			}
		}
		for _, off := range []int64{-1, size, size + 1} {
			for x := range n.(tree.Extenter).Extents(t.Context(), off) {
				t.Errorf("%q: extent %+v from %d on", path, x, off)
			}
		}
	})
	for _, err := range at(t, s.root, "kinds").(tree.Extenter).Extents(t.Context(), 0) {
		wantErr(t, "extents of a directory", err, syscall.EINVAL)
	}
}

// concurrent is for the race detector.
func (s *snapshotTest) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	total := s.root.(tree.Totaler).Totals().Nodes
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(s.seed, uint64(g)))
			for range 500 {
				n, err := s.root.ByNumber(context.Background(), rnd.Uint64N(total))
				if errors.Is(err, fs.ErrNotExist) {
					continue // a hard link
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n.Attr().Kind == tree.File {
					if _, err := n.ReadAt(context.Background(), make([]byte, 5000), 0); err != nil && err != io.EOF {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestMissingChunks: what the repository has lost is an error of its own, and
// never an absent file.
func TestMissingChunks(t *testing.T) {
	c := newChunks()
	root := c.open(t, c.file(t, "f", c.data([]byte("here")), tree.Extent{Len: 5, Kind: tree.Data, ID: chunk.ID{1}}))
	f := at(t, root, "f")
	p := make([]byte, 9)
	n, err := f.ReadAt(t.Context(), p, 0)
	wantErr(t, "a missing chunk", err, chunk.ErrMissing)
	if n != 4 || string(p[:4]) != "here" || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "f") {
		t.Errorf("%d bytes, %v", n, err)
	}
}
