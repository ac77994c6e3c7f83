package tree_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

func TestDirectories(t *testing.T) {
	for _, n := range []int{0, 1, 2, 40, 1000, 100_000} {
		ps := pages{}
		list := names(n)
		dir := writeDir(t, ps, list)
		want := tree.Totals{}
		for _, name := range list {
			e := file(name)
			want.Nodes, want.Files, want.Bytes = want.Nodes+1, want.Files+1, want.Bytes+uint64(e.Size)
		}
		if dir.Children != uint64(n) || dir.Below != want || dir.Root.IsZero() != (n == 0) {
			t.Errorf("%d names: %d children, below %+v, root %s", n, dir.Children, dir.Below, dir.Root)
		}
		i := 0
		for e, err := range tree.Entries(ps.get, dir.Root) {
			if err != nil {
				t.Fatal(err)
			}
			if i == n || !reflect.DeepEqual(e, file(list[i])) {
				t.Fatalf("%d names: the %d-th is %+v", n, i, e)
			}
			i++
		}
		if i != n {
			t.Errorf("%d of %d names came back", i, n)
		}
		if mean := ps.sizes(t); n >= 1000 && (mean < 3000 || mean > 6000) {
			t.Errorf("%d names: pages have %d bytes on average, want about 4 KiB", n, mean)
		}
		again := writeDir(t, pages{}, list)
		if again.Root != dir.Root {
			t.Errorf("%d names: written again it is another page", n)
		}
	}
}

// TestHugeTotals: sparse files can claim more than totals can say; the totals
// stop there, and the directory can be read.
func TestHugeTotals(t *testing.T) {
	ps := pages{}
	w := tree.NewDirWriter(ps.put)
	for _, name := range names(100) {
		e := writeRecipe(t, ps, []tree.Extent{{Len: 1<<62 - 1, Kind: tree.Hole}})
		e.Name = name
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	dir := tree.Entry{Attr: tree.Attr{Name: "dir", Kind: tree.Dir}}
	if err := w.Finish(&dir); err != nil {
		t.Fatal(err)
	}
	if want := (tree.Totals{Nodes: 100, Files: 100, Bytes: 1<<62 - 1}); dir.Below != want {
		t.Errorf("totals %+v, want %+v", dir.Below, want)
	}
	n := 0
	for _, err := range tree.Entries(ps.get, dir.Root) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	up := tree.NewDirWriter(ps.put)
	if err := up.Add(&dir); err != nil || n != 100 {
		t.Errorf("%d entries, %v", n, err)
	}
}

// TestChangesAreLocal changes one name of 10,000: boundaries depend on nearby
// items only, so few pages are new.
func TestChangesAreLocal(t *testing.T) {
	const seed = 1
	rnd := rand.New(rand.NewPCG(seed, 0))
	ps := pages{}
	list := names(10_000)
	writeDir(t, ps, list)
	sum, most := 0, 0
	const tries = 60
	for i := range tries {
		at := rnd.IntN(len(list))
		changed := slices.Clone(list)
		switch i % 3 {
		case 0:
			changed = slices.Insert(changed, at+1, changed[at]+"-new")
		case 1:
			changed = slices.Delete(changed, at, at+1)
		case 2:
			changed[at] += "-renamed"
		}
		other := pages{}
		writeDir(t, other, changed)
		n := other.news(ps)
		sum, most = sum+n, max(most, n)
	}
	if most > 12 || sum > tries*5 {
		t.Errorf("seed %d: a change of one of 10,000 names makes %d of %d pages new at worst, %.1f on average", seed, most, len(ps), float64(sum)/tries)
	}
}

func TestRecipeChangesAreLocal(t *testing.T) {
	const seed = 2
	rnd := rand.New(rand.NewPCG(seed, 0))
	xs := extents(seed, 20_000)
	ps := pages{}
	writeRecipe(t, ps, xs)
	for range 20 {
		changed := slices.Clone(xs)
		changed[rnd.IntN(len(xs))].ID[0] ^= 1
		changed = slices.Insert(changed, rnd.IntN(len(xs)), tree.Extent{Len: 1, Kind: tree.Zero})
		other := pages{}
		writeRecipe(t, other, changed)
		if n := other.news(ps); n > 24 {
			t.Errorf("seed %d: two changes among 20,000 extents make %d of %d pages new", seed, n, len(ps))
		}
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	w := tree.NewDirWriter(pages{}.put)
	for _, name := range []string{"b", "c"} {
		if err := w.Add(file(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"c", "a", "", "bb", ".", "..", "x/y", "x\x00y", strings.Repeat("x", 4097)} {
		if err := w.Add(file(name)); err == nil {
			t.Errorf("%.20q was taken after %q", name, "c")
		}
	}
	for _, name := range []string{"c\x01", "c\xff", "d\n", strings.Repeat("x", 255), strings.Repeat("x", 4096)} {
		if err := w.Add(file(name)); err != nil {
			t.Errorf("%.20q: %v", name, err)
		}
	}
}

func TestFailingPut(t *testing.T) {
	broken := errors.New("no room")
	for fail := range 3 {
		n := 0
		w := tree.NewDirWriter(func(p []byte) (chunk.ID, error) {
			if n++; n > fail {
				return chunk.ID{}, broken
			}
			return hasher.Sum(p), nil
		})
		var err error
		for _, name := range names(300) {
			if err = w.Add(file(name)); err != nil {
				break
			}
		}
		if err == nil {
			err = w.Finish(&tree.Entry{})
		}
		wantErr(t, fmt.Sprintf("put %d fails", fail), err, broken)
	}
	e := &tree.Entry{}
	err := e.SetXattrs([]tree.Xattr{{Name: "user.a", Value: make([]byte, 1000)}}, func([]byte) (chunk.ID, error) { return chunk.ID{}, broken })
	wantErr(t, "put of attributes fails", err, broken)
}

func TestRecipes(t *testing.T) {
	for _, n := range []int{0, 1, 4, 5, 100, 100_000} {
		ps := pages{}
		xs := extents(uint64(n), n)
		e := writeRecipe(t, ps, xs)
		if inline := n <= 4; inline != e.Recipe.IsZero() || inline != (len(ps) == 0) || inline && len(e.Extents) != n || !inline && e.Extents != nil {
			t.Errorf("%d extents: %d inline, %d pages", n, len(e.Extents), len(ps))
		}
		var got []tree.Extent
		for x, err := range tree.Recipe(ps.get, &e) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, x)
		}
		if !slices.Equal(got, xs) {
			t.Errorf("%d extents come back as %d others", n, len(got))
		}
		if mean := ps.sizes(t); n > 1000 && (mean < 3000 || mean > 6000) {
			t.Errorf("pages have %d bytes on average", mean)
		}
	}
	w := tree.NewRecipeWriter(pages{}.put)
	for _, n := range []int64{0, -1} {
		if err := w.Add(tree.Extent{Len: n, Kind: tree.Zero}); err == nil {
			t.Errorf("an extent of %d bytes was taken", n)
		}
	}
}

// TestRecipeWithoutIDs has extents that are all alike: their boundaries cannot
// follow a chunk's ID, and still pages stay small.
func TestRecipeWithoutIDs(t *testing.T) {
	xs := slices.Repeat([]tree.Extent{{Len: 4096, Kind: tree.Hole, End: tree.EndSource}, {Len: 4096, Kind: tree.Zero, End: tree.EndZero}}, 50_000)
	ps := pages{}
	e := writeRecipe(t, ps, xs)
	ps.sizes(t)
	n := 0
	for _, err := range tree.Recipe(ps.get, &e) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != len(xs) || e.Size != 4096*int64(len(xs)) {
		t.Errorf("%d extents, %d bytes", n, e.Size)
	}
}

func TestWitness(t *testing.T) {
	for _, n := range []int{0, 1, 5000} {
		ps := pages{}
		w := tree.NewWitnessWriter(ps.put)
		var want []tree.Witness
		for i, name := range names(n) {
			x := tree.Witness{Name: name, Ino: uint64(i) << 30, Dev: 1 << 40, Ctime: tree.Time{Sec: -int64(i), Nsec: 999_999_999}}
			if i%7 == 0 {
				x.Root = hasher.Sum([]byte(name))
			}
			want = append(want, x)
			if err := w.Add(&x); err != nil {
				t.Fatal(err)
			}
		}
		root, err := w.Finish()
		if err != nil || root.IsZero() != (n == 0) {
			t.Errorf("root %s, %v", root, err)
		}
		var got []tree.Witness
		for x, err := range tree.Witnesses(ps.get, root) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, *x)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%d items come back as %d others", n, len(got))
		}
	}
}

func TestXattrs(t *testing.T) {
	short := []tree.Xattr{{Name: "security.capability", Value: []byte{0, 1, 0xff}}, {Name: "user.empty"}}
	long := append(slices.Clone(short), tree.Xattr{Name: "user.long", Value: make([]byte, 300)})
	border := func(n int) []tree.Xattr { return []tree.Xattr{{Name: "user.a", Value: make([]byte, n)}} }
	for _, tt := range []struct {
		name   string
		xs     []tree.Xattr
		inline bool
	}{
		{"none", nil, true}, {"short", short, true}, {"long", long, false}, {"256 bytes", border(244), true}, {"257 bytes", border(245), false},
		{"64 KiB", border(64 << 10), false}, {"many", slices.Repeat(border(100), 1000), false},
	} {
		ps := pages{}
		e := file("f")
		if err := e.SetXattrs(tt.xs, ps.put); err != nil {
			t.Fatal(err)
		}
		if tt.inline != e.XattrPage.IsZero() || tt.inline != (len(ps) == 0) || !tt.inline && e.Xattrs != nil {
			t.Errorf("%s: %d inline, %d pages", tt.name, len(e.Xattrs), len(ps))
		}
		got := e.Xattrs
		if !tt.inline {
			pg, err := tree.ParsePage(ps[e.XattrPage])
			if err != nil || pg.Kind != tree.XattrPage {
				t.Fatalf("%s: %v", tt.name, err)
			}
			got = pg.Xattrs
		}
		if !reflect.DeepEqual(got, tt.xs) {
			t.Errorf("%s: come back as %v", tt.name, got)
		}
	}
	ps := pages{}
	e := file("f")
	if err := e.SetXattrs(slices.Repeat(border(64<<10), 130), ps.put); err == nil || len(ps) > 0 {
		t.Errorf("more attributes than can be read were stored: %v", err)
	}
}

// TestIteratorErrors has lists whose pages are missing, damaged or of another
// kind.
func TestIteratorErrors(t *testing.T) {
	ps := pages{}
	dir := writeDir(t, ps, names(1000))
	e := writeRecipe(t, ps, extents(1, 1000))
	last := func(root chunk.ID) chunk.ID {
		pg, err := tree.ParsePage(ps[root])
		if err != nil {
			t.Fatal(err)
		}
		return pg.Refs[len(pg.Refs)-1].ID
	}
	collect := func() (n int, err error) {
		for _, err := range tree.Entries(ps.get, dir.Root) {
			if err != nil {
				return n, err
			}
			n++
		}
		return n, nil
	}
	lost := last(dir.Root)
	kept := ps[lost]
	delete(ps, lost)
	n, err := collect()
	wantErr(t, "missing page", err, chunk.ErrMissing)
	if n == 0 || n == 1000 {
		t.Errorf("%d entries before the missing page", n)
	}
	ps[lost] = kept[:len(kept)-1]
	_, err = collect()
	wantErr(t, "damaged page", err, chunk.ErrCorrupt)
	if err != nil && !strings.Contains(err.Error(), lost.String()) {
		t.Errorf("the error %q does not name the page", err)
	}
	ps[lost] = ps[last(e.Recipe)]
	_, err = collect()
	wantErr(t, "page of another kind", err, chunk.ErrCorrupt)
	ps[lost] = ps[dir.Root]
	_, err = collect()
	wantErr(t, "page of another level", err, chunk.ErrCorrupt)

	delete(ps, last(e.Recipe))
	err = nil
	for _, err = range tree.Recipe(ps.get, &e) {
		if err != nil {
			break
		}
	}
	wantErr(t, "missing page of a recipe", err, chunk.ErrMissing)
	for range tree.Entries(ps.get, dir.Root) {
		break // must not go on
	}
	for range tree.Recipe(ps.get, &e) {
		break
	}
	for range tree.Recipe(ps.get, file("f")) {
		break
	}
}
