package snapfs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo/tree"
)

func manyFiles(t *testing.T, c *chunks, n int) []*tree.Entry {
	var list []*tree.Entry
	for i := range n {
		list = append(list, c.file(t, fmt.Sprintf("file-%05d", i), c.data(fmt.Appendf(nil, "content %d", i))))
	}
	return list
}

// TestDamagedPage: one page of a directory is damaged; all names in the others
// are still there.
func TestDamagedPage(t *testing.T) {
	for _, damage := range []error{chunk.ErrCorrupt, chunk.ErrMissing} {
		c := newChunks()
		const total = 2000
		list := manyFiles(t, c, total)
		dir := c.dir(t, "d", list...)
		refs := c.refs(t, dir.Root)
		bad := refs[len(refs)/2]
		root := c.open(t, dir)
		c.bad[bad.ID] = damage
		d := at(t, root, "d")

		got := map[string]bool{}
		var errs []error
		for n, err := range d.Entries(t.Context(), 0) {
			if err != nil {
				errs = append(errs, err)
				continue
			}
			got[n.Attr().Name] = true
		}
		if len(got) != total-int(bad.Items) || len(errs) != 1 {
			t.Errorf("%d of %d entries, of which %d were damaged, and %d errors", len(got), total, bad.Items, len(errs))
		}
		wantErr(t, "the directory", errors.Join(errs...), damage)
		lost := 0
		for i, e := range list {
			n, err := d.Lookup(t.Context(), e.Name)
			if !got[e.Name] {
				lost++
				wantErr(t, e.Name, err, damage)
				if errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: damage looks like an absent file", e.Name)
				}
				_, err = root.ByNumber(t.Context(), uint64(2+i))
				wantErr(t, e.Name+" by number", err, damage)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if p, err := readAll(n, 100); err != nil || string(p) != fmt.Sprintf("content %d", i) {
				t.Errorf("%s: %q, %v", e.Name, p, err)
			}
			if back, err := root.ByNumber(t.Context(), uint64(2+i)); err != nil || back.Attr().Name != e.Name {
				t.Errorf("number %d: %v", 2+i, err)
			}
		}
		if lost != int(bad.Items) {
			t.Errorf("%d names are lost, want %d", lost, bad.Items)
		}
	}
}

func TestDamagedChunk(t *testing.T) {
	c := newChunks()
	var xs []tree.Extent
	var want []byte
	for i := range 1000 {
		p := bytes.Repeat([]byte{byte(i)}, 100+i)
		xs, want = append(xs, c.data(p)), append(want, p...)
	}
	root := c.open(t, c.file(t, "f", xs...))
	f := at(t, root, "f")
	if p, err := readAll(f, 7777); err != nil || !bytes.Equal(p, want) {
		t.Fatalf("%d bytes, %v", len(p), err)
	}
	c.bad[xs[500].ID] = chunk.ErrCorrupt
	start := int64(0)
	for _, x := range xs[:500] {
		start += x.Len
	}
	p := make([]byte, 10_000)
	n, err := f.ReadAt(t.Context(), p, start-50)
	wantErr(t, "reading into the damage", err, chunk.ErrCorrupt)
	if n != 50 || !bytes.Equal(p[:n], want[start-50:start]) {
		t.Errorf("%d bytes before the damage, want 50", n)
	}
	for _, off := range []int64{0, start - 10_000, start + xs[500].Len} {
		if n, err := f.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
			t.Errorf("at %d, beside the damage: %v", off, err)
		}
	}
	// A page of the recipe.
	refs := c.refs(t, c.recipe(t, root))
	c.bad[refs[1].ID] = chunk.ErrMissing
	fresh := at(t, c.reopen(t), "f")
	n, err = fresh.ReadAt(t.Context(), make([]byte, len(want)), 0)
	wantErr(t, "a missing page of the recipe", err, chunk.ErrMissing)
	if uint64(n) != refs[0].Below.Bytes {
		t.Errorf("%d bytes before it, want %d", n, refs[0].Below.Bytes)
	}
	off := int64(refs[0].Below.Bytes + refs[1].Below.Bytes)
	if n, err := fresh.ReadAt(t.Context(), p[:50], off); err != nil || !bytes.Equal(p[:n], want[off:off+50]) {
		t.Errorf("behind it: %v", err)
	}
}

// recipe returns the root of the recipe of the only file below root.
func (c *chunks) recipe(t testing.TB, root tree.Numbered) chunk.ID {
	t.Helper()
	for _, p := range c.m {
		if pg, err := tree.ParsePage(p); err == nil && pg.Kind == tree.DirPage && len(pg.Entries) == 1 && !pg.Entries[0].Recipe.IsZero() {
			return pg.Entries[0].Recipe
		}
	}
	t.Fatal("no file with a recipe")
	return chunk.ID{}
}

// reopen opens the tree again, with nothing cached.
func (c *chunks) reopen(t testing.TB) tree.Numbered {
	t.Helper()
	for id, p := range c.m {
		if pg, err := tree.ParsePage(p); err == nil && pg.Kind == tree.DirPage && len(pg.Entries) == 1 && pg.Entries[0].Name == tree.RootName {
			root, err := snapfs.NewCache(c).Open(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return root
		}
	}
	t.Fatal("no root")
	return nil
}

func TestExtentKinds(t *testing.T) {
	c := newChunks()
	data := c.data([]byte("data"))
	root := c.open(t,
		c.file(t, "a zeros", data, tree.Extent{Len: 5, Kind: tree.Zero}, tree.Extent{Len: 6, Kind: tree.Hole}, data),
		c.file(t, "b absent", data, tree.Extent{Len: 5, Kind: tree.Absent}, data),
		c.file(t, "c lost", data, tree.Extent{Len: 5, Kind: tree.Lost}, data),
		c.file(t, "d empty"),
		c.file(t, "e huge", data, tree.Extent{Len: 1 << 60, Kind: tree.Hole}, data),
	)
	if p, err := readAll(at(t, root, "a zeros"), 3); err != nil || string(p) != "data"+strings.Repeat("\x00", 11)+"data" {
		t.Errorf("zeros: %q, %v", p, err)
	}
	for name, want := range map[string]error{"b absent": syscall.ENODATA, "c lost": syscall.EIO} {
		n := at(t, root, name)
		p, err := readAll(n, 100)
		wantErr(t, name, err, want)
		if string(p) != "data" {
			t.Errorf("%s: %q before it", name, p)
		}
		q := make([]byte, 4)
		if _, err := n.ReadAt(t.Context(), q, 9); err != nil && err != io.EOF || string(q) != "data" {
			t.Errorf("%s: %q behind it, %v", name, q, err)
		}
	}
	if p, err := readAll(at(t, root, "d empty"), 10); err != nil || len(p) != 0 {
		t.Errorf("empty: %q, %v", p, err)
	}
	p := bytes.Repeat([]byte{1}, 10)
	if n, err := at(t, root, "e huge").ReadAt(t.Context(), p, 1<<60-1); n != 9 || err != io.EOF || string(p[:9]) != "\x00\x00\x00\x00\x00data" {
		t.Errorf("huge: %q, %v", p[:n], err)
	}
}

// TestContradictions has trees whose pages are good each, but do not fit
// together.
func TestContradictions(t *testing.T) {
	c := newChunks()
	many := make([]tree.Extent, 10)
	for i := range many {
		many[i] = c.data([]byte{byte(i), 1})
	}
	long := c.file(t, "long", many...)
	short := *long
	short.Name, short.Size = "short", 100
	liar := c.file(t, "liar", tree.Extent{Len: 9, Kind: tree.Data, ID: many[0].ID})
	asDir := c.dir(t, "as dir", c.file(t, "x"))
	asDir.Root = long.Recipe
	attrs := c.file(t, "attrs")
	attrs.XattrPage = long.Recipe
	counts := c.dir(t, "counts", c.file(t, "x"))
	counts.Below.Nodes = 50
	missing := c.file(t, "missing", many...)
	missing.Recipe = chunk.ID{5}
	root := c.open(t, asDir, attrs, counts, liar, long, missing, &short)

	_, err := readAll(at(t, root, "short"), 100)
	wantErr(t, "a recipe that ends too early", err, chunk.ErrCorrupt)
	_, err = readAll(at(t, root, "liar"), 100)
	wantErr(t, "a chunk of another length", err, chunk.ErrCorrupt)
	_, err = readAll(at(t, root, "missing"), 100)
	wantErr(t, "a missing recipe", err, chunk.ErrMissing)
	for _, err = range at(t, root, "as dir").Entries(t.Context(), 0) {
	}
	wantErr(t, "a recipe as a directory", err, chunk.ErrCorrupt)
	_, err = at(t, root, "as dir").Lookup(t.Context(), "x")
	wantErr(t, "lookup in it", err, chunk.ErrCorrupt)
	_, err = at(t, root, "attrs").Xattrs(t.Context())
	wantErr(t, "a recipe as attributes", err, chunk.ErrCorrupt)
	_, err = root.ByNumber(t.Context(), at(t, root, "counts").(tree.Numbered).Number()+10)
	wantErr(t, "a node that is counted but not there", err, chunk.ErrCorrupt)

	for name, id := range map[string]chunk.ID{
		"a recipe": long.Recipe, "an ordinary directory": c.dir(t, "d", long, &short).Root,
		"a file": c.dir(t, "", long).Root, "data": many[0].ID,
	} {
		if _, err := snapfs.NewCache(c).Open(t.Context(), id); err == nil {
			t.Errorf("%s is the root of a tree", name)
		}
	}
	_, err = snapfs.NewCache(c).Open(t.Context(), chunk.ID{9})
	wantErr(t, "no root", err, chunk.ErrMissing)
}

// swapped returns the ID of a page like that of id, but that two references
// exchange what they refer to, so that their counts lie.
func (c *chunks) swapped(t *testing.T, id chunk.ID, differ func(a, b tree.Ref) bool) chunk.ID {
	t.Helper()
	refs := c.refs(t, id)
	for i := range refs[1:] {
		a, b := refs[i], refs[i+1]
		if !differ(a, b) {
			continue
		}
		p := bytes.Clone(c.m[id])
		at, bt := bytes.Index(p, a.ID[:]), bytes.Index(p, b.ID[:])
		copy(p[at:], b.ID[:])
		copy(p[bt:], a.ID[:])
		id, _ = c.put(p)
		return id
	}
	t.Fatal("all references have the same counts")
	return id
}

// TestLyingReferences has references whose counts are not those of the pages.
func TestLyingReferences(t *testing.T) {
	c := newChunks()
	const total = 2000
	list := manyFiles(t, c, total)
	dir := c.dir(t, "d", list...)
	dir.Root = c.swapped(t, dir.Root, func(a, b tree.Ref) bool { return a.Items != b.Items })
	var xs []tree.Extent
	for i := range 1000 {
		xs = append(xs, c.data(bytes.Repeat([]byte{byte(i)}, 100+i)))
	}
	f := c.file(t, "f", xs...)
	f.Recipe = c.swapped(t, f.Recipe, func(a, b tree.Ref) bool { return a.Below.Bytes != b.Below.Bytes })
	root := c.open(t, dir, f)
	d := at(t, root, "d")
	good, errs := 0, 0
	for _, err := range d.Entries(t.Context(), 0) {
		if err != nil {
			errs++
			wantErr(t, "entries", err, chunk.ErrCorrupt)
			continue
		}
		good++
	}
	if errs != 2 || good < total/2 {
		t.Errorf("%d entries, %d errors of 2 pages", good, errs)
	}
	found := 0
	for i, e := range list {
		_, err := d.Lookup(t.Context(), e.Name)
		_, nerr := root.ByNumber(t.Context(), uint64(2+i))
		if err == nil && nerr == nil {
			found++
			continue
		}
		wantErr(t, e.Name, err, chunk.ErrCorrupt)
		wantErr(t, e.Name+" by number", nerr, chunk.ErrCorrupt)
	}
	if found != good {
		t.Errorf("%d names are found, %d are listed", found, good)
	}
	_, err := readAll(at(t, root, "f"), 1<<20)
	wantErr(t, "reading", err, chunk.ErrCorrupt)
}

// TestHardLinks has later names that lead to the first one, that count from
// their scope, and that lead nowhere or in a circle.
func TestHardLinks(t *testing.T) {
	c := newChunks()
	link := func(name, first string) *tree.Entry {
		e := c.file(t, name, c.data([]byte("shared")))
		e.Nlink, e.Link = 3, first
		return e
	}
	member := func(name string) *tree.Entry {
		d := c.dir(t, name, c.dir(t, "a", link("first", "")), link("b later", "a/first"))
		d.Scope = true
		return d
	}
	root := c.open(t,
		link("circle 1", "circle 2"), link("circle 2", "circle 1"), link("dir", "member 1"), link("dotdot", "../x"),
		link("in a file", "self/x"), member("member 1"), member("member 2"), link("nowhere", "not/here"), link("self", "self"),
		c.dir(t, "sub", link("later", "target")), link("target", ""))
	number := func(path string) uint64 { return at(t, root, path).(tree.Numbered).Number() }
	for _, tt := range []struct{ later, first string }{
		{"sub/later", "target"}, {"member 1/b later", "member 1/a/first"}, {"member 2/b later", "member 2/a/first"},
	} {
		if got, want := number(tt.later), number(tt.first); got != want || want == 0 {
			t.Errorf("%q is number %d, %q number %d", tt.later, got, tt.first, want)
		}
		if n := at(t, root, tt.later); n.Attr().Nlink != 3 || n.Attr().Ino != number(tt.first)+1 {
			t.Errorf("%q: %+v", tt.later, n.Attr())
		}
	}
	if number("member 1/a/first") == number("member 2/a/first") {
		t.Error("files of two members are one")
	}
	walk(t, root, "", func(path string, n tree.Node) {
		if n.Attr().Kind != tree.File {
			return
		}
		if p, err := readAll(n, 100); err != nil || string(p) != "shared" {
			t.Errorf("%q: %q, %v", path, p, err)
		}
	})
	// A first name that cannot be found for damage: the file is read still.
	c.bad[c.only(t, "first")] = chunk.ErrCorrupt
	if p, err := readAll(at(t, c.reopen(t), "member 1/b later"), 100); err != nil || string(p) != "shared" {
		t.Errorf("%q, %v", p, err)
	}
	// One who gives up gets no number that is not the node's.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := root.Lookup(ctx, "sub"); err == nil {
		if _, err := n.Lookup(ctx, "later"); err == nil {
			t.Error("a hard link was looked up for one who had given up")
		}
	}
}

// only returns the page that lists that name alone.
func (c *chunks) only(t testing.TB, name string) chunk.ID {
	t.Helper()
	for id, p := range c.m {
		if pg, err := tree.ParsePage(p); err == nil && len(pg.Entries) == 1 && pg.Entries[0].Name == name {
			return id
		}
	}
	t.Fatalf("no page lists only %q", name)
	return chunk.ID{}
}

// TestFewPages: finding a name, a number or a place in a large directory reads
// few pages.
func TestFewPages(t *testing.T) {
	c := newChunks()
	const total = 10_000
	c.open(t, c.dir(t, "d", manyFiles(t, c, total)...))
	rnd := rand.New(rand.NewPCG(1, 2))
	for name, do := range map[string]func(root tree.Numbered, i int) error{
		"Lookup": func(root tree.Numbered, i int) error {
			_, err := at(t, root, "d").Lookup(t.Context(), fmt.Sprintf("file-%05d", i))
			return err
		},
		"Lookup of an absent name": func(root tree.Numbered, i int) error {
			if _, err := at(t, root, "d").Lookup(t.Context(), fmt.Sprintf("file-%05d+", i)); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("absent: %w", err)
			}
			return nil
		},
		"ByNumber": func(root tree.Numbered, i int) error {
			_, err := root.ByNumber(t.Context(), uint64(i))
			return err
		},
		"Entries": func(root tree.Numbered, i int) error {
			for _, err := range at(t, root, "d").Entries(t.Context(), int64(i)) {
				return err
			}
			return errors.New("none")
		},
	} {
		for range 10 {
			root := c.reopen(t)
			c.pages = nil
			if err := do(root, rnd.IntN(total)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if len(c.pages) > 5 {
				t.Errorf("%s reads %d pages", name, len(c.pages))
			}
		}
	}
}

// TestCacheForgets: pages that were used are kept, but not for ever.
func TestCacheForgets(t *testing.T) {
	c := newChunks()
	c.open(t, c.dir(t, "d", manyFiles(t, c, 60_000)...))
	root := c.reopen(t)
	d := at(t, root, "d")
	kids(t, d, 0)
	c.pages = nil
	kids(t, d, 0)
	if len(c.pages) == 0 {
		t.Error("60,000 entries are all cached")
	}
	c.pages = nil
	kids(t, d, 40_000)
	before := len(c.pages)
	kids(t, d, 40_000)
	if len(c.pages) != before {
		t.Errorf("20,000 entries that were just listed are read again: %d pages", len(c.pages)-before)
	}
	// Pages of extended attributes count by their size.
	var list []*tree.Entry
	for i := range 1000 {
		e := c.file(t, fmt.Sprintf("x%04d", i))
		if err := e.SetXattrs([]tree.Xattr{{Name: "user.x", Value: bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 30<<10)}}, c.put); err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
	root = c.open(t, list...)
	for range 2 {
		c.pages = nil
		for _, n := range kids(t, root, 0) {
			if _, err := n.Xattrs(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(c.pages) < 500 {
		t.Errorf("60 MB of extended attributes are cached: %d pages were read again", len(c.pages))
	}
}

// TestPrefetch: who reads on is read ahead for, each chunk once; who jumps is
// not.
func TestPrefetch(t *testing.T) {
	c := newChunks()
	var xs []tree.Extent
	for i := range 400 {
		xs = append(xs, c.data(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 32<<10)))
	}
	root := c.open(t, c.file(t, "f", xs...))
	if _, err := readAll(at(t, root, "f"), 128<<10); err != nil {
		t.Fatal(err)
	}
	hinted := map[chunk.ID]int{}
	for _, id := range c.prefetched {
		hinted[id]++
	}
	missed := 0
	for _, x := range xs {
		if hinted[x.ID] == 0 {
			missed++
		}
	}
	if missed > 3 || len(c.prefetched) > len(xs)*5/4 {
		t.Errorf("%d of %d chunks were not asked for ahead, %d hints in all", missed, len(xs), len(c.prefetched))
	}
	c.prefetched = nil
	f := at(t, root, "f")
	rnd := rand.New(rand.NewPCG(1, 3))
	for range 50 {
		if _, err := f.ReadAt(t.Context(), make([]byte, 4096), 1+rnd.Int64N(f.Attr().Size-4096)); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.prefetched) > 20*64 {
		t.Errorf("random reads made %d hints", len(c.prefetched))
	}
}

func TestWalk(t *testing.T) {
	c := newChunks()
	root := c.open(t, c.dir(t, "a", c.dir(t, "b", c.file(t, "c"))), c.file(t, "f"))
	for path, want := range map[string]string{"": "", ".": "", "/": "", "a": "a", "/a/b/": "b", "a/b/c": "c", "a//b": "b", "a/../f": "f"} {
		n, err := snapfs.Walk(t.Context(), root, path)
		if err != nil || n.Attr().Name != want {
			t.Errorf("%q: %v, %v", path, n, err)
		}
	}
	for path, want := range map[string]error{"x": fs.ErrNotExist, "a/x": fs.ErrNotExist, "f/x": syscall.ENOTDIR} {
		_, err := snapfs.Walk(t.Context(), root, path)
		wantErr(t, path, err, want)
		var pe *fs.PathError
		if !errors.As(err, &pe) || pe.Path != path {
			t.Errorf("%q: the error %v names another path", path, err)
		}
	}
}

func TestCancelled(t *testing.T) {
	c := newChunks()
	c.open(t, manyFiles(t, c, 2000)...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	root := c.reopen(t)
	var names []string
	var last error
	for n, err := range root.Entries(ctx, 0) {
		if last = err; err == nil {
			names = append(names, n.Attr().Name)
		}
		cancel()
	}
	wantErr(t, "a listing that is given up", last, context.Canceled)
	if len(names) > 500 || !slices.IsSorted(names) {
		t.Errorf("%d names after giving up", len(names))
	}
}
