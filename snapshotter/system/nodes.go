package system

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"slices"
	"sort"
	"strings"
	"syscall"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// Node is a node of a tree that is made at once and read later: what a capture
// stores, or what a view shows. It is not to be changed once Seal was called, and
// safe for concurrent use from then on. It is a tree.Numbered and a tree.Placed,
// and a file is a tree.Opener. It has no inode, so that no later snapshot takes it
// for unchanged.
type Node struct {
	attr   tree.Attr
	xattrs []tree.Xattr
	lazy   func(ctx context.Context) ([]tree.Xattr, error) // xattrs; may be nil
	data   io.ReaderAt                                     // of a file; nil: left out
	cuts   []int64                                         // where its records end, ascending; the last is its size
	page   int64                                           // its records are this long; 0: cuts says
	kids   []*Node                                         // sorted by name once sealed

	root   *Node
	parent *Node
	number uint64
	index  int64
	all    []*Node // of a root, by number
}

var _ interface {
	tree.Numbered
	tree.Placed
	tree.Opener
} = (*Node)(nil)

// NewDir returns an empty directory.
func NewDir(name string, mtime tree.Time) *Node {
	return &Node{attr: tree.Attr{Name: name, Kind: tree.Dir, Mode: 0o755, Mtime: mtime, Nlink: 1}}
}

// NewFile returns a file of size bytes, which data has; it must stay open and
// unchanged for as long as the tree is read. Where cuts are given a chunk ends at
// each of them: ascending offsets, the last is size.
func NewFile(name string, mtime tree.Time, data io.ReaderAt, size int64, cuts []int64) *Node {
	return &Node{attr: tree.Attr{Name: name, Kind: tree.File, Mode: 0o600, Mtime: mtime, Size: size, Nlink: 1}, data: data, cuts: cuts}
}

// NewPaged returns a file as NewFile does, which is cut at each multiple of page
// bytes: pages that are written in place stay chunks of their own.
func NewPaged(name string, mtime tree.Time, data io.ReaderAt, size, page int64) *Node {
	n := NewFile(name, mtime, data, size, nil)
	n.page = page
	return n
}

// NewAbsent returns a file of size bytes that were left out: reading them gives
// ENODATA.
func NewAbsent(name string, mtime tree.Time, size int64) *Node {
	return NewFile(name, mtime, nil, size, nil)
}

// SetOwner sets the permission bits and the numeric owner, which are otherwise
// 0755 or 0600, and root.
func (n *Node) SetOwner(mode, uid, gid uint32) {
	n.attr.Mode, n.attr.UID, n.attr.GID = mode, uid, gid
}

// SetXattrs sets the extended attributes; they are sorted here.
func (n *Node) SetXattrs(xs ...tree.Xattr) {
	slices.SortFunc(xs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	n.xattrs = xs
}

// SetXattrsFunc has f asked for the extended attributes each time that they are wanted:
// sorted by name, always the same, from any goroutine.
func (n *Node) SetXattrsFunc(f func(ctx context.Context) ([]tree.Xattr, error)) { n.lazy = f }

// Add adds a child to a directory. Names that are taken are told by Seal.
func (n *Node) Add(c *Node) { n.kids = append(n.kids, c) }

// Child returns a directory's child of that name, before or after Seal.
func (n *Node) Child(name string) *Node {
	if n.root != nil {
		i := sort.Search(len(n.kids), func(i int) bool { return n.kids[i].attr.Name >= name })
		if i < len(n.kids) && n.kids[i].attr.Name == name {
			return n.kids[i]
		}
		return nil
	}
	for _, c := range n.kids {
		if c.attr.Name == name {
			return c
		}
	}
	return nil
}

// Seal sorts the tree below a root and numbers it. Two children of one name, or a
// name that cannot be one, are an error.
func (n *Node) Seal() error {
	n.all = nil
	n.index = 0
	return n.seal(n)
}

func (n *Node) seal(root *Node) error {
	n.root, n.number = root, uint64(len(root.all))
	root.all = append(root.all, n)
	slices.SortFunc(n.kids, func(a, b *Node) int { return strings.Compare(a.attr.Name, b.attr.Name) })
	for i, c := range n.kids {
		if !tree.ValidName(c.attr.Name) {
			return fmt.Errorf("%q can be no file's name", c.attr.Name)
		}
		if i > 0 && n.kids[i-1].attr.Name == c.attr.Name {
			return fmt.Errorf("two nodes named %q in %q", c.attr.Name, n.attr.Name)
		}
		c.parent, c.index = n, int64(i)
		if err := c.seal(root); err != nil {
			return err
		}
	}
	return nil
}

// Attr implements tree.Node.
func (n *Node) Attr() *tree.Attr { return &n.attr }

// Xattrs implements tree.Node.
func (n *Node) Xattrs(ctx context.Context) ([]tree.Xattr, error) {
	if n.lazy != nil {
		return n.lazy(ctx)
	}
	return n.xattrs, nil
}

// Number implements tree.Numbered.
func (n *Node) Number() uint64 { return n.number }

// ByNumber implements tree.Numbered.
func (n *Node) ByNumber(_ context.Context, number uint64) (tree.Node, error) {
	if number >= uint64(len(n.root.all)) {
		return nil, n.fail("lookup", fs.ErrNotExist)
	}
	return n.root.all[number], nil
}

// Place implements tree.Placed.
func (n *Node) Place() (tree.Numbered, int64) {
	if n.parent == nil {
		return nil, 0
	}
	return n.parent, n.index
}

// Totals implements tree.Totaler.
func (n *Node) Totals() tree.Totals {
	t := tree.Totals{Nodes: 1}
	switch n.attr.Kind {
	case tree.File:
		t.Files, t.Bytes = 1, uint64(n.attr.Size)
	case tree.Dir:
		t.Dirs = 1
	}
	for _, c := range n.kids {
		t.Add(c.Totals())
	}
	return t
}

// Lookup implements tree.Node.
func (n *Node) Lookup(_ context.Context, name string) (tree.Node, error) {
	if n.attr.Kind != tree.Dir {
		return nil, n.fail("lookup", syscall.ENOTDIR)
	}
	if c := n.Child(name); c != nil {
		return c, nil
	}
	return nil, &fs.PathError{Op: "lookup", Path: name, Err: fs.ErrNotExist}
}

// Entries implements tree.Node.
func (n *Node) Entries(_ context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		if n.attr.Kind != tree.Dir {
			yield(nil, n.fail("readdir", syscall.ENOTDIR))
			return
		}
		for _, c := range n.kids[min(max(from, 0), int64(len(n.kids))):] {
			if !yield(c, nil) {
				return
			}
		}
	}
}

// ReadAt implements tree.Node.
func (n *Node) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	switch {
	case n.attr.Kind != tree.File:
		return 0, n.fail("read", syscall.EISDIR)
	case off < 0:
		return 0, n.fail("read", fs.ErrInvalid)
	case off >= n.attr.Size:
		return 0, io.EOF
	case n.data == nil:
		return 0, n.fail("read", syscall.ENODATA)
	}
	return n.data.ReadAt(p, off)
}

func (n *Node) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: n.attr.Name, Err: err}
}

// Open implements tree.Opener.
func (n *Node) Open(context.Context) (tree.OpenFile, error) {
	if n.attr.Kind != tree.File {
		return nil, n.fail("open", syscall.EISDIR)
	}
	return openNode{n}, nil
}

type openNode struct{ n *Node }

func (o openNode) ReadAt(p []byte, off int64) (int, error) {
	return o.n.ReadAt(context.Background(), p, off)
}
func (o openNode) Close() error              { return nil }
func (o openNode) Stat() (*tree.Attr, error) { return &o.n.attr, nil }

// Extents implements tree.OpenFile.
func (o openNode) Extents(off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		at, n := int64(0), o.n
		if n.page > 0 {
			at = off - off%n.page
		}
		for i := 0; at < n.attr.Size; i++ {
			end := n.end(i, at)
			if end > off {
				from := max(at, off)
				x := tree.Extent{Off: from, Len: end - from, Kind: tree.Data, End: tree.EndRecord}
				if n.data == nil {
					x.Kind = tree.Absent
				}
				if end == n.attr.Size {
					x.End = tree.EndFile
				}
				if !yield(x, nil) {
					return
				}
			}
			at = end
		}
	}
}

// end returns where the i-th record ends, which begins at an offset below the size.
func (n *Node) end(i int, at int64) int64 {
	switch {
	case n.page > 0:
		return min(at+n.page, n.attr.Size)
	case i < len(n.cuts):
		return n.cuts[i]
	}
	return n.attr.Size
}
