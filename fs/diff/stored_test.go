package diff_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// stored is a made-up node of a repository.
type stored struct {
	attr    tree.Attr
	id      chunk.ID // of a directory
	list    []entry
	data    string
	extents []tree.Extent
	readErr error
	reads   *int
}

// entry is a child, or an error in its place.
type entry struct {
	node tree.Node
	err  error
}

func (n *stored) Attr() *tree.Attr                             { return &n.attr }
func (n *stored) TreeID() chunk.ID                             { return n.id }
func (n *stored) Xattrs(context.Context) ([]tree.Xattr, error) { return nil, nil }

func (n *stored) Lookup(context.Context, string) (tree.Node, error) { return nil, fs.ErrNotExist }

func (n *stored) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		for _, e := range n.list[from:] {
			if !yield(e.node, e.err) {
				return
			}
		}
	}
}

func (n *stored) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if n.reads != nil {
		*n.reads++
	}
	if n.readErr != nil {
		return 0, n.readErr
	}
	return strings.NewReader(n.data).ReadAt(p, off)
}

func (n *stored) Extents(_ context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		for _, x := range n.extents {
			if x.Off+x.Len > off && !yield(x, nil) {
				return
			}
		}
	}
}

func dir(name string, nodes ...tree.Node) *stored {
	d := &stored{attr: tree.Attr{Name: name, Kind: tree.Dir}}
	for _, n := range nodes {
		d.list = append(d.list, entry{node: n})
	}
	return d
}

// textFile is a file that was cut into pieces of these lengths, IDs being
// made from the bytes.
func textFile(name, data string, cuts ...int) *stored {
	f := &stored{attr: tree.Attr{Name: name, Kind: tree.File, Size: int64(len(data)), Nlink: 1}, data: data, reads: new(int)}
	off := 0
	for _, n := range cuts {
		f.extents = append(f.extents, extent(data, off, n))
		off += n
	}
	if off < len(data) {
		f.extents = append(f.extents, extent(data, off, len(data)-off))
	}
	return f
}

func extent(data string, off, n int) tree.Extent {
	x := tree.Extent{Off: int64(off), Len: int64(n), Kind: tree.Data, ID: chunk.Digest([]byte(data[off : off+n]))}
	if strings.Trim(data[off:off+n], "\x00") == "" {
		x.Kind, x.ID = tree.Zero, chunk.ID{}
	}
	return x
}

func TestContentsByID(t *testing.T) {
	zeros := strings.Repeat("\x00", 10)
	hole := textFile("f", zeros)
	hole.extents[0].Kind = tree.Hole
	for _, c := range []struct {
		name  string
		a, b  *stored
		opt   diff.Options
		want  string
		reads int // of each side
	}{
		{"equal IDs", textFile("f", "aaaabbbb", 4), textFile("f", "aaaabbbb", 4), diff.Options{IDsComparable: true}, "", 0},
		{"equal IDs of other keys", textFile("f", "aaaabbbb", 4), textFile("f", "aaaabbbb", 4), everything, "", 1},
		{"other IDs", textFile("f", "aaaabbbb", 4), textFile("f", "aaaacccc", 4), diff.Options{IDsComparable: true}, "content", 0},
		{"IDs beat a trusted mtime", textFile("f", "aaaabbbb", 4), textFile("f", "aaaacccc", 4), diff.Options{IDsComparable: true, Quick: true}, "content", 0},
		{"cut otherwise, same bytes", textFile("f", "aaaabbbbccccdddd", 4, 4, 4), textFile("f", "aaaabbbbccccdddd", 4, 6, 2), diff.Options{IDsComparable: true}, "", 1},
		{"cut otherwise, other bytes", textFile("f", "aaaabbbbccccdddd", 4, 4, 4), textFile("f", "aaaabbbXccccdddd", 4, 6, 2), diff.Options{IDsComparable: true}, "content", 1},
		{"zeros and zeros", textFile("f", zeros+"x", 10), textFile("f", zeros+"x", 4, 6), diff.Options{IDsComparable: true}, "", 0},
		{"zeros and a hole", textFile("f", zeros), hole, everything, "", 0},
		{"zeros and a hole, holes wanted", textFile("f", zeros), hole, diff.Options{Holes: true}, "holes", 0},
		{"not asked for", textFile("f", "aaaa"), textFile("f", "bbbb"), diff.Options{}, "", 0},
		{"sizes", textFile("f", "aaaa"), textFile("f", "aaaab"), diff.Options{}, "size,content", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var want []string
			if c.want != "" {
				want = append(want, `modified "f" `+c.want)
			}
			wantChanges(t, changes(t, dir("", c.a), dir("", c.b), c.opt), want...)
			if *c.a.reads != c.reads || *c.b.reads != c.reads {
				t.Errorf("%d and %d reads, want %d", *c.a.reads, *c.b.reads, c.reads)
			}
		})
	}
}

func TestEqualTreesAreSkipped(t *testing.T) {
	// The IDs lie, to see that they are believed when they may be.
	a, b := dir("d", textFile("f", "one")), dir("d", textFile("f", "other"))
	a.id, b.id = chunk.ID{1}, chunk.ID{1}
	wantChanges(t, changes(t, dir("", a), dir("", b), diff.Options{IDsComparable: true}))
	wantChanges(t, changes(t, dir("", a), dir("", b), diff.Options{}), `modified "d/f" size,content`)
	b.id = chunk.ID{2}
	wantChanges(t, changes(t, dir("", a), dir("", b), diff.Options{IDsComparable: true}), `modified "d/f" size,content`)
	a.id, b.id = chunk.ID{}, chunk.ID{}
	wantChanges(t, changes(t, dir("", a), dir("", b), diff.Options{IDsComparable: true}), `modified "d/f" size,content`)
}

func TestDamageIsNamedAndTheWalkGoesOn(t *testing.T) {
	bad := func(name string) entry {
		return entry{err: &fs.PathError{Op: "stat", Path: name, Err: chunk.ErrCorrupt}}
	}
	full := func() *stored {
		return dir("d", textFile("a", "1"), textFile("b", "2"), textFile("c", "3"), textFile("e", "5"))
	}
	const damage = ": data is damaged"
	for _, c := range []struct {
		name string
		a    func(d *stored)
		want []string
	}{
		{"a child", func(d *stored) { d.list[1] = bad("b") }, []string{`error "d/b" stat d/b` + damage}},
		{"a child only here", func(d *stored) { d.list[3] = bad("zz") },
			[]string{`added "d/e"`, `error "d/zz" stat d/zz` + damage}},
		{"the directory, in the middle", func(d *stored) { d.list = []entry{d.list[0], {err: chunk.ErrCorrupt}, d.list[3]} },
			[]string{`error "d" compare d` + damage}},
		{"the directory, at the end", func(d *stored) { d.list = append(d.list[:2], entry{err: chunk.ErrCorrupt}) },
			[]string{`error "d" compare d` + damage}},
		{"the directory, with a path", func(d *stored) { d.list = []entry{bad("/a/root/d")} },
			[]string{`error "d" compare d: stat /a/root/d` + damage}},
		{"the order", func(d *stored) { d.list[1], d.list[2] = d.list[2], d.list[1] },
			[]string{`added "d/b"`, `error "d" compare d: entry "b" comes after "c"` + damage}}, // seen when "b" has been passed
		{"the same name twice", func(d *stored) { d.list[1] = d.list[0] },
			[]string{`error "d" compare d: entry "a" comes after "a"` + damage}},
		{"contents", func(d *stored) { d.list[2].node.(*stored).readErr = chunk.ErrMissing },
			[]string{`error "d/c" compare d/c: chunk is missing`}},
		{"contents, and a mode", func(d *stored) {
			d.list[2].node.(*stored).readErr = chunk.ErrMissing
			d.list[2].node.(*stored).attr.Mode = 1
		}, []string{`modified "d/c" mode`, `error "d/c" compare d/c: chunk is missing`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := full(), full()
			c.a(a)
			after := textFile("z", "last")
			got := changes(t, dir("", a), dir("", b, after), everything)
			wantChanges(t, got, append(c.want, `added "z"`)...)
		})
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	a, b := textFile("f", "12"), textFile("f", "12")
	b.readErr = chunk.ErrCorrupt
	for c, err := range diff.Compare(context.Background(), dir("", a), dir("", b), everything) {
		var p *fs.PathError
		if !errors.Is(err, chunk.ErrCorrupt) || !errors.As(err, &p) || p.Path != "f" || c.Path != "f" || c.Kind != 0 {
			t.Errorf("got %v, %v", c, err)
		}
	}
}

func TestHardLinks(t *testing.T) {
	link := func(name string, ino uint64, nlink uint32) *stored {
		f := textFile(name, "same")
		f.attr.Ino, f.attr.Nlink = ino, nlink
		return f
	}
	for _, c := range []struct {
		name string
		a, b *stored
		want []string
	}{
		{"numbers do not matter", dir("", link("a", 1, 2), link("b", 1, 2)), dir("", link("a", 9, 3), link("b", 9, 3)), nil},
		{"names outside do not matter", dir("", link("a", 1, 5)), dir("", link("a", 2, 1)), nil},
		{"apart", dir("", link("a", 1, 3), link("b", 1, 3), link("c", 1, 3)), dir("", link("a", 1, 1), link("b", 2, 1), link("c", 3, 1)),
			[]string{`modified "b" links`, `modified "c" links`}},
		{"together", dir("", link("a", 1, 1), link("b", 2, 1)), dir("", link("a", 5, 2), link("b", 5, 2)), []string{`modified "b" links`}},
		{"regrouped", dir("", link("a", 1, 2), link("b", 1, 2), link("c", 2, 2), link("d", 2, 2)),
			dir("", link("a", 1, 2), link("b", 2, 2), link("c", 1, 2), link("d", 2, 2)),
			[]string{`modified "b" links`, `modified "c" links`, `modified "d" links`}},
		{"first name gone", dir("", link("a", 1, 3), link("b", 1, 3), link("c", 1, 3)), dir("", link("b", 1, 2), link("c", 1, 2)),
			[]string{`removed "a"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantChanges(t, changes(t, c.a, c.b, everything), c.want...)
		})
	}
	a, b := link("a", 1, 2), link("b", 1, 2)
	changes(t, dir("", a, b), dir("", link("a", 2, 2), link("b", 2, 2)), everything)
	if *a.reads != 1 || *b.reads != 0 {
		t.Errorf("%d reads by the first name, %d by the second: want one alone", *a.reads, *b.reads)
	}
}

func TestOrderIsThatOfNames(t *testing.T) {
	// As paths, "a-b" and "a.b" would come between "a" and "a/x".
	a := dir("", dir("a", textFile("x", "1")), textFile("a-b", "2"), textFile("a.b", "3"))
	got := changes(t, dir(""), a, everything)
	wantChanges(t, got, `added "a"`, `added "a/x"`, `added "a-b"`, `added "a.b"`)
	got = changes(t, a, dir(""), everything)
	wantChanges(t, got, `removed "a"`, `removed "a/x"`, `removed "a-b"`, `removed "a.b"`)
}

func TestCancelAndStop(t *testing.T) {
	a, b := dir("", textFile("f", "1"), textFile("g", "2")), dir("")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	for _, err := range diff.Compare(ctx, a, b, everything) {
		n++
		cancel()
		if n == 2 && !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}
	}
	if n != 2 {
		t.Errorf("%d steps, want a change and the end", n)
	}
	for range diff.Compare(context.Background(), a, b, everything) {
		break // must not panic in the iterators below
	}
}

func TestShortReadIsADifference(t *testing.T) {
	a, b := textFile("f", "12345"), textFile("f", "12345")
	b.data = "123" // a file that shrank after its attributes were read
	wantChanges(t, changes(t, dir("", a), dir("", b), everything), `modified "f" content`)
	if _, err := b.ReadAt(context.Background(), make([]byte, 5), 0); err != io.EOF {
		t.Fatal(err)
	}
}
