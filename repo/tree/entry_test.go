package tree_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// samples has an entry of every kind, in order of their names, with all that an
// entry can have.
func samples() []tree.Entry {
	extra := protowire.AppendString(protowire.AppendTag(nil, 200, protowire.BytesType), "from later")
	id := func(s string) chunk.ID { return hasher.Sum([]byte(s)) }
	attr := func(name string, kind tree.Kind) tree.Attr {
		return tree.Attr{Name: name, Kind: kind, Mode: 0o640, UID: 1000, GID: 4_294_967_294, Nlink: 1, Mtime: tree.Time{Sec: 1_700_000_000, Nsec: 123_456_789}}
	}
	list := []tree.Entry{
		{Attr: attr("a dir", tree.Dir), Root: id("root"), Children: 2, Below: tree.Totals{Nodes: 9, Files: 5, Dirs: 3, Bytes: 1 << 50}, Scope: true},
		{Attr: attr("b file", tree.File), Extents: []tree.Extent{{Len: 100, Kind: tree.Data, End: tree.EndSplitter, ID: id("1")}, {Off: 100, Len: 5000, Kind: tree.Zero, End: tree.EndZero},
			{Off: 5100, Len: 1 << 40, Kind: tree.Hole, End: tree.EndSource}, {Off: 5100 + 1<<40, Len: 7, Kind: tree.Lost, End: tree.EndFile}}},
		{Attr: attr("c linked", tree.File), Link: "x/b file", Recipe: id("recipe")},
		{Attr: attr("d symlink", tree.Symlink)},
		{Attr: attr("e fifo", tree.FIFO)},
		{Attr: attr("f socket", tree.Socket)},
		{Attr: attr("g char", tree.CharDevice)},
		{Attr: attr("h block", tree.BlockDevice)},
		{Attr: attr("i \xff\n", tree.File), XattrPage: id("xattrs"), Flags: 1 << 20, Extra: extra},
		{Attr: attr("j empty", tree.Dir)},
	}
	list[0].Mode = 0o7777
	list[1].Size, list[1].Holes, list[1].Allocated = 5107+1<<40, 1<<40, 8192
	list[1].Xattrs = []tree.Xattr{{Name: "system.posix_acl_access", Value: []byte{2, 0, 0, 0}}, {Name: "user.x"}}
	list[2].Size, list[2].Holes, list[2].Nlink, list[2].Changed = 1<<61, 1<<61, 3, true
	list[3].Target, list[3].Size = "../\xfftarget", 10
	list[6].Rdev, list[7].Rdev = 259<<8|3, 1<<63
	list[8].Mtime = tree.Time{Sec: math.MinInt64, Nsec: 999_999_999}
	list[9].Mode = 0
	return list
}

// page builds a page by hand.
func page(kind tree.PageKind, level byte, items ...[]byte) []byte {
	p := binary.AppendUvarint([]byte{1, byte(kind), level}, uint64(len(items)))
	for _, item := range items {
		p = append(binary.AppendUvarint(p, uint64(len(item))), item...)
	}
	return p
}

func entryBytes(e tree.Entry) []byte { return tree.AppendEntry(nil, &e) }

func TestEntryRoundTrip(t *testing.T) {
	ps := pages{}
	w := tree.NewDirWriter(ps.put)
	var items [][]byte
	total := tree.Totals{}
	for _, e := range samples() {
		items = append(items, entryBytes(e))
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
		s := e.Totals()
		total = tree.Totals{Nodes: total.Nodes + s.Nodes, Files: total.Files + s.Files, Dirs: total.Dirs + s.Dirs, Bytes: total.Bytes + s.Bytes}
	}
	var dir tree.Entry
	if err := w.Finish(&dir); err != nil {
		t.Fatal(err)
	}
	if want := (tree.Totals{Nodes: 19, Files: 8, Dirs: 5, Bytes: 1<<50 + 5107 + 1<<40 + 1<<61}); dir.Below != want || total != want {
		t.Errorf("totals %+v, summed up %+v, want %+v", dir.Below, total, want)
	}
	if !bytes.Equal(ps[dir.Root], page(tree.DirPage, 0, items...)) {
		t.Error("the page is not what the format says")
	}
	pg, err := tree.ParsePage(ps[dir.Root])
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range samples() {
		if !reflect.DeepEqual(pg.Entries[i], want) {
			t.Errorf("%q comes back as\n%+v, want\n%+v", want.Name, pg.Entries[i], want)
		}
	}
}

// TestHoles: what a file takes on disk is what is no hole, in whole blocks.
func TestHoles(t *testing.T) {
	usual := len(entryBytes(*file("f")))
	for _, tt := range []struct {
		holes, allocated int64
		longer           int
	}{{0, 4096, 0}, {100, 4096, 2}, {101, 0, 2}} {
		e := file("f") // of 101 bytes
		e.Holes = tt.holes
		p := entryBytes(*e)
		pg, err := tree.ParsePage(page(tree.DirPage, 0, p))
		if err != nil || pg.Entries[0].Holes != tt.holes || pg.Entries[0].Allocated != tt.allocated || len(p)-usual != tt.longer {
			t.Errorf("%d bytes of holes take %d bytes more and come back as %+v, %v", tt.holes, len(p)-usual, pg, err)
		}
	}
	for _, tt := range []struct {
		xs               []tree.Extent
		holes, allocated int64
	}{
		{nil, 0, 0},
		{[]tree.Extent{{Len: 1, Kind: tree.Zero}}, 0, 4096},
		{[]tree.Extent{{Len: 5000, Kind: tree.Hole}}, 5000, 0},
		{[]tree.Extent{{Len: 5000, Kind: tree.Hole}, {Len: 4096, Kind: tree.Data}, {Len: 7, Kind: tree.Hole}, {Len: 1, Kind: tree.Zero}, {Len: 1 << 60, Kind: tree.Hole}, {Len: 9, Kind: tree.Lost}}, 5007 + 1<<60, 8192},
	} {
		if e := writeRecipe(t, pages{}, tt.xs); e.Holes != tt.holes || e.Allocated != tt.allocated {
			t.Errorf("%v: holes of %d bytes, %d allocated; want %d, %d", tt.xs, e.Holes, e.Allocated, tt.holes, tt.allocated)
		}
	}
}

// TestContradictions has entries that make no sense: neither a writer nor a
// reader takes them.
func TestContradictions(t *testing.T) {
	id := hasher.Sum(nil)
	dir := tree.Entry{Attr: tree.Attr{Name: "d", Kind: tree.Dir}, Root: id, Children: 1, Below: tree.Totals{Nodes: 1}}
	for _, tt := range []struct {
		name string
		e    tree.Entry
		do   func(*tree.Entry)
	}{
		{"no kind", *file("f"), func(e *tree.Entry) { e.Kind = 0 }},
		{"no name", *file("f"), func(e *tree.Entry) { e.Name = "" }},
		{"slash in the name", *file("f"), func(e *tree.Entry) { e.Name = "a/b" }},
		{"name ..", *file("f"), func(e *tree.Entry) { e.Name = ".." }},
		{"extents too short", *file("f"), func(e *tree.Entry) { e.Size++ }},
		{"extents too long", *file("f"), func(e *tree.Entry) { e.Size-- }},
		{"extents beyond all bounds", *file("f"), func(e *tree.Entry) {
			e.Size = math.MinInt64
			e.Extents = []tree.Extent{{Len: 1<<62 - 1, Kind: tree.Hole}, {Len: 1<<62 - 1, Kind: tree.Hole}}
		}},
		{"extents and a recipe", *file("f"), func(e *tree.Entry) { e.Recipe = id }},
		{"more holes than bytes", *file("f"), func(e *tree.Entry) { e.Holes = e.Size + 1 }},
		{"file with pages", *file("f"), func(e *tree.Entry) { e.Root = id }},
		{"file with children", *file("f"), func(e *tree.Entry) { e.Children = 1 }},
		{"file with nodes below", *file("f"), func(e *tree.Entry) { e.Below.Nodes = 1 }},
		{"root but no children", dir, func(e *tree.Entry) { e.Children = 0 }},
		{"children but no root", dir, func(e *tree.Entry) { e.Root = chunk.ID{} }},
		{"fewer nodes than children", dir, func(e *tree.Entry) { e.Children = 2 }},
		{"directory with a link", dir, func(e *tree.Entry) { e.Link = "x" }},
		{"directory with extents", dir, func(e *tree.Entry) { e.Extents = file("f").Extents }},
		{"directory with a recipe", dir, func(e *tree.Entry) { e.Recipe = id }},
		{"NUL in a target", tree.Entry{Attr: tree.Attr{Name: "s", Kind: tree.Symlink}}, func(e *tree.Entry) { e.Target = "a\x00" }},
		{"target of 64 KiB and one", tree.Entry{Attr: tree.Attr{Name: "s", Kind: tree.Symlink}}, func(e *tree.Entry) { e.Target = strings.Repeat("x", 1<<16+1) }},
	} {
		e := tt.e
		w := tree.NewDirWriter(pages{}.put)
		if err := w.Add(&e); err != nil {
			t.Fatalf("%s: before the change: %v", tt.name, err)
		}
		tt.do(&e)
		if err := tree.NewDirWriter(pages{}.put).Add(&e); err == nil {
			t.Errorf("%s: a writer takes it", tt.name)
		}
		_, err := tree.ParsePage(page(tree.DirPage, 0, entryBytes(e)))
		wantErr(t, tt.name, err, chunk.ErrCorrupt)
	}
}

func number(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func data(n protowire.Number, p []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), p)
}

func join(ps ...[]byte) []byte { return bytes.Join(ps, nil) }

// TestDamagedPages has pages made by hand, each with one thing wrong.
func TestDamagedPages(t *testing.T) {
	id := hasher.Sum(nil)
	f, g := entryBytes(*file("f")), entryBytes(*file("g"))
	head := join(data(1, []byte("n")), number(2, 4)) // a FIFO
	ref := func(last string, more ...[]byte) []byte {
		return join(append([][]byte{data(1, id[:]), data(2, []byte(last)), number(3, 1)}, more...)...)
	}
	dirPage := func(fields ...[]byte) []byte { return page(tree.DirPage, 0, join(fields...)) }
	extent := func(b ...byte) []byte { return page(tree.RecipePage, 0, b) }
	whole := append([]byte{1, 5}, id[:]...)
	corrupt, version := chunk.ErrCorrupt, tree.ErrVersion
	for _, tt := range []struct {
		name string
		p    []byte
		want error // nil: none
	}{
		{"good directory", page(tree.DirPage, 0, f, g), nil},
		{"good references", page(tree.DirPage, 1, ref("a"), ref("b")), nil},
		{"good recipe", extent(whole...), nil},
		{"good field of later", dirPage(head, data(99, []byte("x"))), nil},
		{"good recipe's references", page(tree.RecipePage, 2, ref(""), ref("")), nil},

		{"nothing", nil, corrupt},
		{"three bytes", []byte{1, 1, 0}, corrupt},
		{"version 0", append([]byte{0}, page(tree.DirPage, 0, f)[1:]...), version},
		{"version 2", append([]byte{2}, page(tree.DirPage, 0, f)[1:]...), version},
		{"kind 0", page(0, 0, f), version},
		{"kind 5", page(5, 0, f), version},
		{"kind 5 with references", page(5, 1, ref("a")), version},
		{"17 levels", page(tree.DirPage, 17, ref("a")), corrupt},
		{"no items", page(tree.DirPage, 0), corrupt},
		{"more items than bytes", []byte{1, 1, 0, 100}, corrupt},
		{"count without end", append([]byte{1, 1, 0}, bytes.Repeat([]byte{0xff}, 11)...), corrupt},
		{"item cut short", page(tree.DirPage, 0, f)[:20], corrupt},
		{"item length without end", append([]byte{1, 1, 0, 1}, bytes.Repeat([]byte{0xff}, 11)...), corrupt},
		{"item length of 2^63", append([]byte{1, 1, 0, 1}, binary.AppendUvarint(nil, 1<<63)...), corrupt},
		{"bytes behind", append(page(tree.DirPage, 0, f), 0), corrupt},
		{"names out of order", page(tree.DirPage, 0, g, f), corrupt},
		{"a name twice", page(tree.DirPage, 0, f, f), corrupt},
		{"several items of 64 KiB together", page(tree.DirPage, 0, join(f, data(99, make([]byte, 1<<16))), g), corrupt},
		{"9 MiB", dirPage(head, data(99, make([]byte, 9<<20))), corrupt},

		{"half a tag", dirPage(head, []byte{0x80}), corrupt},
		{"field cut short", dirPage(head, []byte{0x0a, 50}), corrupt},
		{"field number 0", dirPage(head, []byte{0, 0}), corrupt},
		{"end of a group", dirPage(head, []byte{99<<3&0x7f | 0x84, 1}), corrupt},
		{"no name", dirPage(number(2, 4)), corrupt},
		{"no kind", dirPage(data(1, []byte("n"))), corrupt},
		{"kind of entry 8", dirPage(head, number(2, 8)), corrupt},
		{"kind of entry 258", dirPage(head, number(2, 258)), corrupt},
		{"mode with file type", dirPage(head, number(3, 0o100644)), corrupt},
		{"uid beyond 32 bits", dirPage(head, number(4, 1<<32)), corrupt},
		{"gid beyond 32 bits", dirPage(head, number(5, 1<<32)), corrupt},
		{"a billion nanoseconds", dirPage(head, number(7, 1e9)), corrupt},
		{"size beyond 2^62", dirPage(head, number(8, 1<<62)), corrupt},
		{"holes beyond 2^62", dirPage(head, number(9, 1<<62)), corrupt},
		{"link count beyond 32 bits", dirPage(head, number(12, 1<<32)), corrupt},
		{"attribute cut short", dirPage(head, data(15, []byte{0x0a, 9})), corrupt},
		{"attribute without a name", dirPage(head, data(15, data(2, []byte("v")))), corrupt},
		{"NUL in an attribute's name", dirPage(head, data(15, data(1, []byte("user.\x00")))), corrupt},
		{"page ID of 31 bytes", dirPage(head, data(16, id[:31])), corrupt},
		{"page ID of 33 bytes", dirPage(head, data(18, append(id[:], 0))), corrupt},
		{"page ID that is a number", dirPage(head, number(20, 5)), corrupt},
		{"five extents", dirPage(data(1, []byte("n")), number(2, 2), number(8, 25), bytes.Repeat(data(17, whole), 5)), corrupt},
		{"bytes behind an extent", dirPage(data(1, []byte("n")), number(2, 2), number(8, 5), data(17, append(whole, 0))), corrupt},
		{"2^62 children", dirPage(data(1, []byte("n")), number(2, 1), data(20, id[:]), number(21, 1<<62), number(22, 1<<62)), corrupt},
		{"2^62 bytes below", dirPage(data(1, []byte("n")), number(2, 1), data(20, id[:]), number(21, 1), number(22, 1), number(25, 1<<62)), corrupt},

		{"extent of one byte", extent(1), corrupt},
		{"extent of kind 0", extent(0, 5), version},
		{"extent of kind 6", extent(6, 5), version},
		{"extent that ended by 6", extent(6<<4|2, 5), version},
		{"extent of no bytes", extent(2, 0), corrupt},
		{"extent of 2^62 bytes", extent(binary.AppendUvarint([]byte{2}, 1<<62)...), corrupt},
		{"extents of 2^62 bytes together", page(tree.RecipePage, 0, binary.AppendUvarint([]byte{2}, 1<<62-1), []byte{2, 1}), corrupt},
		{"extent with half an ID", extent(whole[:20]...), corrupt},
		{"extent with bytes behind", extent(append(whole, 0)...), corrupt},

		{"reference without ID", page(tree.DirPage, 1, join(data(2, []byte("a")), number(3, 1))), corrupt},
		{"reference to the zero ID", page(tree.DirPage, 1, join(data(1, make([]byte, 32)), number(3, 1))), corrupt},
		{"reference to nothing", page(tree.DirPage, 1, data(1, id[:])), corrupt},
		{"references out of order", page(tree.DirPage, 1, ref("b"), ref("a")), corrupt},
		{"reference to 2^62 items", page(tree.DirPage, 1, ref("a", number(3, 1<<62))), corrupt},
		{"reference to 2^62 nodes", page(tree.DirPage, 1, ref("a", number(4, 1<<62))), corrupt},
		{"reference to 2^62 bytes", page(tree.RecipePage, 1, ref("", number(7, 1<<62))), corrupt},

		{"witness without a name", page(tree.WitnessPage, 0, number(2, 1)), corrupt},
		{"witnesses out of order", page(tree.WitnessPage, 0, data(1, []byte("b")), data(1, []byte("a"))), corrupt},
		{"witness with a billion nanoseconds", page(tree.WitnessPage, 0, join(data(1, []byte("b")), number(4, 1e9))), corrupt},
		{"witness with half an ID", page(tree.WitnessPage, 0, join(data(1, []byte("b")), data(6, id[:16]))), corrupt},
		{"attribute page without a name", page(tree.XattrPage, 0, data(2, []byte("v"))), corrupt},
	} {
		pg, err := tree.ParsePage(tt.p)
		if tt.want == nil {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		wantErr(t, tt.name, err, tt.want)
		if pg != nil {
			t.Errorf("%s: a page beside the error", tt.name)
		}
	}
}

// TestFrozenPages reads pages that were written when version 1 was made, and
// writes them again. Their files never change.
func TestFrozenPages(t *testing.T) {
	written := map[string]func() []byte{
		"v1-dir.bin": func() []byte {
			var items [][]byte
			for _, e := range samples() {
				items = append(items, entryBytes(e))
			}
			return page(tree.DirPage, 0, items...)
		},
		"v1-dir-refs.bin": func() []byte {
			ps := pages{}
			return ps[writeDir(t, ps, names(500)).Root]
		},
		"v1-recipe.bin": func() []byte {
			ps := pages{}
			return ps[writeRecipe(t, ps, extents(3, 20)).Recipe]
		},
		"v1-recipe-refs.bin": func() []byte {
			ps := pages{}
			return ps[writeRecipe(t, ps, extents(3, 1000)).Recipe]
		},
		"v1-witness.bin": func() []byte {
			ps := pages{}
			w := tree.NewWitnessWriter(ps.put)
			for _, x := range []tree.Witness{{Name: "a", Ino: 5, Dev: 2049, Ctime: tree.Time{Sec: -1, Nsec: 7}}, {Name: "b", Root: hasher.Sum(nil), Extra: number(77, 1)}} {
				if err := w.Add(&x); err != nil {
					t.Fatal(err)
				}
			}
			root, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			return ps[root]
		},
		"v1-xattrs.bin": func() []byte {
			ps := pages{}
			e := file("f")
			if err := e.SetXattrs([]tree.Xattr{{Name: "user.a", Value: bytes.Repeat([]byte("x"), 300)}, {Name: "user.b"}}, ps.put); err != nil {
				t.Fatal(err)
			}
			return ps[e.XattrPage]
		},
	}
	for name, write := range written {
		p := frozen(t, name, write)
		if _, err := tree.ParsePage(p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(p, write()) {
			t.Errorf("%s: it is written otherwise than it was", name)
		}
	}
	pg, err := tree.ParsePage(frozen(t, "v1-dir.bin", nil))
	if err != nil || !reflect.DeepEqual(pg.Entries, samples()) {
		t.Errorf("the frozen entries are read otherwise than they were: %v", err)
	}
}
