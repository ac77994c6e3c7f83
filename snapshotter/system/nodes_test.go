package system_test

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/system"
)

func sample(t *testing.T) *system.Node {
	t.Helper()
	text := "one\ntwo\nthree\n"
	root := system.NewDir("", tree.Time{Sec: 1})
	sub := system.NewDir("sub", tree.Time{Sec: 2})
	sub.Add(system.NewFile("z", tree.Time{Sec: 3}, strings.NewReader(text), int64(len(text)), []int64{4, 8, 14}))
	sub.Add(system.NewFile("a", tree.Time{Sec: 3}, strings.NewReader("x"), 1, nil))
	root.Add(sub)
	root.Add(system.NewAbsent("left-out", tree.Time{}, 1000))
	root.Add(system.NewFile("empty", tree.Time{}, strings.NewReader(""), 0, nil))
	if err := root.Seal(); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestNodes(t *testing.T) {
	root, ctx := sample(t), t.Context()
	if got, want := root.Totals(), (tree.Totals{Nodes: 6, Files: 4, Dirs: 2, Bytes: 1015}); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	// Numbers are those of a walk in preorder.
	want := []string{"", "empty", "left-out", "sub", "a", "z"}
	for i, name := range want {
		n, err := root.ByNumber(ctx, uint64(i))
		if err != nil || n.Attr().Name != name {
			t.Errorf("number %d is %v, %v, want %q", i, n, err, name)
		}
	}
	if _, err := root.ByNumber(ctx, 6); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a number too many: %v", err)
	}
	z := root.Child("sub").Child("z")
	if p, i := z.Place(); p.Number() != 3 || i != 1 {
		t.Errorf("place %d in %d", i, p.Number())
	}
	f, err := z.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for off, want := range map[int64][]tree.Extent{
		0: {{Off: 0, Len: 4, Kind: tree.Data, End: tree.EndRecord}, {Off: 4, Len: 4, Kind: tree.Data, End: tree.EndRecord}, {Off: 8, Len: 6, Kind: tree.Data}},
		5: {{Off: 5, Len: 3, Kind: tree.Data, End: tree.EndRecord}, {Off: 8, Len: 6, Kind: tree.Data}},
	} {
		var got []tree.Extent
		for x, err := range f.Extents(off) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, x)
		}
		if !slices.Equal(got, want) {
			t.Errorf("extents from %d: %v, want %v", off, got, want)
		}
	}
	p := make([]byte, 10)
	if n, err := z.ReadAt(ctx, p, 8); n != 6 || err != io.EOF {
		t.Errorf("read %d, %v", n, err)
	}
	if _, err := root.Child("left-out").ReadAt(ctx, p, 0); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("what was left out: %v", err)
	}
}

func TestPaged(t *testing.T) {
	root := system.NewDir("", tree.Time{})
	n := system.NewPaged("f", tree.Time{}, strings.NewReader("0123456789"), 10, 4)
	n.SetOwner(0o640, 5, 6)
	root.Add(n)
	if err := root.Seal(); err != nil {
		t.Fatal(err)
	}
	f, err := n.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	data := func(off, n int64, end tree.End) tree.Extent {
		return tree.Extent{Off: off, Len: n, Kind: tree.Data, End: end}
	}
	for off, want := range map[int64][]tree.Extent{
		0:  {data(0, 4, tree.EndRecord), data(4, 4, tree.EndRecord), data(8, 2, tree.EndFile)},
		5:  {data(5, 3, tree.EndRecord), data(8, 2, tree.EndFile)},
		8:  {data(8, 2, tree.EndFile)},
		10: nil,
	} {
		var got []tree.Extent
		for x := range f.Extents(off) {
			got = append(got, x)
		}
		if !slices.Equal(got, want) {
			t.Errorf("from %d: %v, want %v", off, got, want)
		}
	}
	if a := n.Attr(); a.Mode != 0o640 || a.UID != 5 || a.GID != 6 {
		t.Errorf("%+v", a)
	}
}

func TestNodesAsFS(t *testing.T) {
	root := system.NewDir("", tree.Time{Sec: 1})
	sub := system.NewDir("sub", tree.Time{Sec: 2})
	root.Add(sub)
	sub.Add(system.NewFile("f", tree.Time{}, strings.NewReader("text"), 4, nil))
	if err := root.Seal(); err != nil {
		t.Fatal(err)
	}
	if err := fstest.TestFS(snapfs.FS(t.Context(), root), "sub/f"); err != nil {
		t.Error(err)
	}
}

func TestSealRefuses(t *testing.T) {
	for _, names := range [][]string{{"a", "a"}, {""}, {"."}, {"a/b"}, {"a\x00"}} {
		root := system.NewDir("", tree.Time{})
		for _, name := range names {
			root.Add(system.NewDir(name, tree.Time{}))
		}
		if err := root.Seal(); err == nil {
			t.Errorf("%q: no error", names)
		}
	}
}
