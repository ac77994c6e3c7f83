package tree

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// encode writes a page as the writers do.
func encode(pg *Page) []byte {
	var items [][]byte
	for i := range pg.Refs {
		items = append(items, appendRef(nil, &pg.Refs[i]))
	}
	for i := range pg.Entries {
		items = append(items, AppendEntry(nil, &pg.Entries[i]))
	}
	for _, x := range pg.Extents {
		items = append(items, appendExtent(nil, x))
	}
	for i := range pg.Witness {
		items = append(items, appendWitness(nil, &pg.Witness[i]))
	}
	for _, x := range pg.Xattrs {
		items = append(items, appendXattr(nil, x))
	}
	p := binary.AppendUvarint([]byte{pageVersion, byte(pg.Kind), byte(pg.Level)}, uint64(len(items)))
	for _, item := range items {
		p = append(binary.AppendUvarint(p, uint64(len(item))), item...)
	}
	return p
}

func seeds(tb testing.TB) [][]byte {
	files, err := filepath.Glob("testdata/v1-*.bin")
	if err != nil || len(files) < 6 {
		tb.Fatalf("%d frozen pages, %v", len(files), err)
	}
	var all [][]byte
	for _, name := range files {
		p, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// TestCanonical: what a writer wrote is written again byte for byte.
func TestCanonical(t *testing.T) {
	for _, p := range seeds(t) {
		pg, err := ParsePage(p)
		if err != nil || !bytes.Equal(encode(pg), p) {
			t.Errorf("a page of kind %d, level %d is written otherwise: %v", p[1], p[2], err)
		}
	}
}

// TestParsePageAllocates has the items that take most memory for their bytes.
func TestParsePageAllocates(t *testing.T) {
	name := func(i int) string { return string([]byte{'!' + byte(i/90), '!' + byte(i%90)}) }
	for _, n := range []int{1, 100, 129, 5000} {
		pg := &Page{Kind: DirPage}
		for i := range n {
			pg.Entries = append(pg.Entries, Entry{Attr: Attr{Name: name(i), Kind: FIFO}})
		}
		xs := &Page{Kind: XattrPage}
		for i := range n {
			xs.Xattrs = append(xs.Xattrs, Xattr{Name: name(i)})
		}
		for _, p := range [][]byte{encode(pg), encode(xs)} {
			checkAllocates(t, p, 64<<10)
		}
	}
}

// checkAllocates parses p and checks how many bytes that takes; slack is what
// else may be allocated meanwhile.
func checkAllocates(t *testing.T, p []byte, slack int) (*Page, error) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	pg, err := ParsePage(p)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > uint64(512*len(p)+slack) {
		t.Errorf("a page of %d bytes made it allocate %d", len(p), n)
	}
	return pg, err
}

func FuzzParsePage(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		pg, err := checkAllocates(t, p, 1<<20)
		if err != nil {
			if pg != nil {
				t.Error("a page beside an error")
			}
			return
		}
		q := encode(pg)
		again, err := ParsePage(q)
		if err != nil || !reflect.DeepEqual(again, pg) {
			t.Fatalf("written and read again, %v:\n%+v, was\n%+v", err, again, pg)
		}
		if !bytes.Equal(encode(again), q) {
			t.Error("written twice it is other bytes")
		}
	})
}

// pageRefs returns what a parsed page refers to.
func pageRefs(pg *Page) (pages, data []chunk.ID) {
	child := func(id chunk.ID) {
		if !id.IsZero() {
			pages = append(pages, id)
		}
	}
	extents := func(xs []Extent) {
		for _, x := range xs {
			if x.Kind == Data {
				data = append(data, x.ID)
			}
		}
	}
	for i := range pg.Refs {
		child(pg.Refs[i].ID)
	}
	for i := range pg.Entries {
		e := &pg.Entries[i]
		child(e.XattrPage)
		extents(e.Extents)
		child(e.Recipe)
		child(e.Root)
	}
	extents(pg.Extents)
	for i := range pg.Witness {
		child(pg.Witness[i].Root)
	}
	return pages, data
}

// sortIDs makes the order of references not count: fields may come in any.
func sortIDs(ids []chunk.ID) []chunk.ID {
	slices.SortFunc(ids, func(a, b chunk.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// FuzzReferences: what a reader can reach is found; a missed reference would let
// prune remove what a snapshot needs.
func FuzzReferences(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		var pages, data []chunk.ID
		err := References(p, func(id chunk.ID) { pages = append(pages, id) }, func(id chunk.ID) { data = append(data, id) })
		pg, perr := ParsePage(p)
		if perr != nil {
			return
		}
		if err != nil {
			t.Fatalf("ParsePage takes it, References says %v", err)
		}
		found := map[chunk.ID]bool{}
		for _, id := range append(pages, data...) {
			found[id] = true
		}
		wantPages, wantData := pageRefs(pg)
		for _, id := range append(wantPages, wantData...) {
			if !found[id] {
				t.Fatalf("reference to %s was missed", id)
			}
		}
	})
}

func TestReferences(t *testing.T) {
	for _, p := range seeds(t) {
		var pages, data []chunk.ID
		if err := References(p, func(id chunk.ID) { pages = append(pages, id) }, func(id chunk.ID) { data = append(data, id) }); err != nil {
			t.Fatal(err)
		}
		pg, err := ParsePage(p)
		if err != nil {
			t.Fatal(err)
		}
		wantPages, wantData := pageRefs(pg)
		if !slices.Equal(sortIDs(pages), sortIDs(wantPages)) || !slices.Equal(sortIDs(data), sortIDs(wantData)) {
			t.Errorf("a page of kind %d, level %d refers to %d pages and %d chunks; found %d and %d", p[1], p[2], len(wantPages), len(wantData), len(pages), len(data))
		}
	}
}
