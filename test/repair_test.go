package test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// losable is a stored tree with every kind of page in it.
type losable struct {
	t    *testing.T
	r    *repo.Repo
	s    *repo.Snapshot
	all  map[string][]byte
	root tree.Entry
}

func newLosable(t *testing.T) *losable {
	t.Helper()
	dir := t.TempDir()
	rng := seeded(41)
	write := func(name string, n int) {
		t.Helper()
		p := make([]byte, n)
		_, err := io.ReadFull(rng, p)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755), os.WriteFile(filepath.Join(dir, name), p, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write("big", 500_000) // a recipe of several pages
	for i := range 500 {
		write(fmt.Sprintf("many/%03d", i), 20)
	}
	write("other/file", 100)
	for _, err := range []error{
		os.Link(filepath.Join(dir, "many/010"), filepath.Join(dir, "zlink1")),
		os.Link(filepath.Join(dir, "many/010"), filepath.Join(dir, "zlink2")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(filepath.Join(dir, "other/file"), "user.long", []byte(strings.Repeat("x", 3990)), 0); err != nil {
		t.Logf("no extended attributes here: %v", err)
	}
	b := newMem()
	r := initRepo(t, b, tiny(t, random))
	l := &losable{t: t, r: r, s: snapshot(t, r, live(t, dir), nil)}
	l.all = objects(t, b)
	l.root = l.page(l.s.Tree.ID).Entries[0]
	return l
}

func (l *losable) page(id chunk.ID) *tree.Page {
	l.t.Helper()
	p, err := l.r.Store().Page(l.t.Context(), id)
	if err != nil {
		l.t.Fatal(err)
	}
	pg, err := tree.ParsePage(p)
	if err != nil {
		l.t.Fatal(err)
	}
	return pg
}

func (l *losable) entry(path string) tree.Entry {
	l.t.Helper()
	e := l.root
	get := func(id chunk.ID) ([]byte, error) { return l.r.Store().Page(l.t.Context(), id) }
	for name := range strings.SplitSeq(path, "/") {
		found := false
		for c, err := range tree.Entries(get, e.Root) {
			if err != nil {
				l.t.Fatal(err)
			}
			if c.Name == name {
				e, found = *c, true
				break
			}
		}
		if !found {
			l.t.Fatalf("no %s", path)
		}
	}
	return e
}

// without returns the repository with the frames damaged that hold these pages
// and chunks.
func (l *losable) without(ids ...chunk.ID) backend.Backend {
	l.t.Helper()
	all := map[string][]byte{}
	for name, p := range l.all {
		all[name] = p
	}
	for _, id := range ids {
		locs, err := l.r.Index().Lookup(id, nil)
		if err != nil || len(locs) != 1 {
			l.t.Fatalf("%d places, %v", len(locs), err)
		}
		name := locs[0].Pack.Object()
		all[name] = flipped(all[name], int(locs[0].Off)+3, 1)
	}
	mem := newMem()
	for name, p := range all {
		if err := mem.Put(l.t.Context(), name, p); err != nil {
			l.t.Fatal(err)
		}
	}
	return mem
}

// TestRepairLoses takes each kind of page away: the new snapshot can be walked to
// its end, says what it lacks, and has all the rest.
func TestRepairLoses(t *testing.T) {
	l := newLosable(t)
	big, many := l.entry("big"), l.entry("many")
	if l.page(big.Recipe).Level != 1 || l.page(many.Root).Level != 1 {
		t.Fatal("the tree is too small for this test")
	}
	leaf := func(e chunk.ID, i int) chunk.ID { return l.page(e).Refs[i].ID }
	type losing struct {
		name string
		ids  []chunk.ID
		want func(lost *repo.Lost) bool
		gone []string // paths that cannot be read
		tree bool     // the tree's root is lost
	}
	cases := []losing{
		{"a chunk", []chunk.ID{l.page(leaf(big.Recipe, 0)).Extents[3].ID}, func(x *repo.Lost) bool { return x.Files >= 1 && x.Names == 0 && x.Bytes > 0 }, []string{"big"}, false},
		{"a leaf of a recipe", []chunk.ID{leaf(big.Recipe, 1)}, func(x *repo.Lost) bool { return x.Files >= 1 && x.Bytes > 1000 }, []string{"big"}, false},
		{"a recipe", []chunk.ID{big.Recipe}, func(x *repo.Lost) bool { return x.Bytes >= 500_000 }, []string{"big"}, false},
		{"a leaf of a directory", []chunk.ID{leaf(many.Root, 0)}, func(x *repo.Lost) bool { return x.Dirs >= 1 && x.Names > 5 && x.Names < 500 }, []string{"many/000", "many/010"}, false},
		{"a directory", []chunk.ID{many.Root}, func(x *repo.Lost) bool { return x.Dirs >= 1 && x.Names >= 500 }, []string{"many/000", "many/499"}, false},
		{"the root", []chunk.ID{l.s.Tree.ID}, nil, nil, true},
	}
	if x := l.entry("other/file").XattrPage; !x.IsZero() {
		cases = append(cases, losing{"extended attributes", []chunk.ID{x}, func(x *repo.Lost) bool { return x.Xattrs == 1 }, nil, false})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			mem := l.without(c.ids...)
			r := open(t, mem)
			var made *repo.Snapshot
			res, err := r.Repair(t.Context(), repo.RepairOptions{Index: true, Packs: true, Snapshots: true, ReadData: true}, func(st repo.RepairStep) {
				if st.Do == repo.RepairSnapshot {
					made = st.New
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if c.tree {
				if made != nil || res.Hopeless != 1 {
					t.Errorf("%+v, made %v", res, made)
				}
				return
			}
			if made == nil || !c.want(made.Lost) || len(made.Lost.Paths) == 0 {
				t.Fatalf("%+v, %+v", res, made)
			}
			l.compare(t, r, made, c.gone)
			for _, p := range c.gone {
				if _, err := readAll(t, r, made, p); err == nil || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s, which is lost: %v", p, err)
				}
			}
			// Once the damaged one is gone, and prune has run, what is lost is known.
			if _, err := r.Forget(t.Context(), []repo.ID{l.s.ID}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Prune(t.Context(), repo.PruneOptions{MaxRepack: -1}); err != nil {
				t.Fatal(err)
			}
			known := 0
			_, err = r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) {
				if known++; !d.Known {
					t.Errorf("damage: %s %q: %v", d.Object, d.Path, d.Err)
				}
			})
			if err != nil || known == 0 {
				t.Errorf("%d known losses, %v", known, err)
			}
		})
	}
}

// compare walks the old tree, in the whole repository, and the new one: every
// name that is not said to be lost is there, with the same bytes.
func (l *losable) compare(t *testing.T, r *repo.Repo, made *repo.Snapshot, gone []string) {
	t.Helper()
	var paths []string
	var walk func(n tree.Node, path string)
	walk = func(n tree.Node, path string) {
		for c, err := range n.Entries(t.Context(), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if p := path + c.Attr().Name; c.Attr().Kind == tree.Dir {
				walk(c, p+"/")
			} else {
				paths = append(paths, p)
			}
		}
	}
	walk(stored(t, l.r, l.s), "")
	bad := 0
	for _, p := range paths {
		want, err := readAll(t, l.r, l.s, p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readAll(t, r, made, p)
		switch {
		case err != nil:
			bad++
		case string(got) != string(want):
			t.Errorf("%s has other bytes", p)
		case slices.Contains(gone, p):
			t.Errorf("%s is there", p)
		}
	}
	if said := made.Lost.Files + made.Lost.Names; uint64(bad) != said {
		t.Errorf("%d files cannot be read, the record says %d: %q", bad, said, made.Lost.Paths)
	}
}

func readAll(t *testing.T, r *repo.Repo, s *repo.Snapshot, path string) ([]byte, error) {
	t.Helper()
	var n tree.Node = stored(t, r, s)
	for name := range strings.SplitSeq(path, "/") {
		next, err := n.Lookup(t.Context(), name)
		if err != nil {
			return nil, err
		}
		n = next
	}
	p := make([]byte, n.Attr().Size)
	_, err := n.ReadAt(t.Context(), p, 0)
	if err == io.EOF {
		err = nil
	}
	return p, err
}
