package snapfs

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// snapshot is one tree of nodes.
type snapshot struct {
	c    *Cache
	root *node
}

// node is a tree.Numbered, tree.Extenter and tree.Totaler.
type node struct {
	s      *snapshot
	e      tree.Entry // a copy: nodes outlive pages
	n      uint64
	parent *node // nil for the root
	index  int64 // among the parent's entries

	next  atomic.Int64 // where a sequential reader would go on
	begun atomic.Int64 // where it began to read in order
	ahead atomic.Int64 // up to where chunks were asked for in advance
}

var (
	_ tree.Numbered = (*node)(nil)
	_ tree.Extenter = (*node)(nil)
	_ tree.Totaler  = (*node)(nil)
	_ tree.Placed   = (*node)(nil)
)

// Open returns the root of the tree whose root page is that of a record.
func (c *Cache) Open(ctx context.Context, root chunk.ID) (tree.Numbered, error) {
	pg, err := c.page(ctx, root, tree.DirPage, 0)
	if err != nil {
		return nil, fmt.Errorf("root of the tree: %w", err)
	}
	if len(pg.Entries) != 1 || pg.Entries[0].Kind != tree.Dir {
		return nil, fmt.Errorf("root of the tree: page %s is none: %w", root, chunk.ErrCorrupt)
	}
	s := &snapshot{c: c}
	s.root = &node{s: s, e: pg.Entries[0]}
	s.root.e.Name, s.root.e.Ino = "", 1
	return s.root, nil
}

// child makes the node of an entry. The number of a hard link is that of its
// first name; if that cannot be found for damage, its own.
func (n *node) child(ctx context.Context, e *tree.Entry, at spot) (*node, error) {
	c := n.place(e, at)
	if e.Link != "" {
		first, err := c.scope().walk(ctx, e.Link)
		if ctx.Err() != nil {
			return nil, ctx.Err() // a number once given out must not change
		}
		if err == nil && first.e.Kind == c.e.Kind {
			c.n = first.n
			c.e.Ino = c.n + 1
		}
	}
	return c, nil
}

// spot is where an entry stands: in preorder, and among its directory's.
type spot struct{ number, index uint64 }

// skip goes over what comes before item i of a page.
func (s spot) skip(pg *page, i int) spot {
	s.number += pg.starts[i]
	if pg.Level == 0 {
		s.index += uint64(i)
	} else {
		s.index += pg.items[i]
	}
	return s
}

// first is where a directory's entries begin.
func (n *node) first() spot { return spot{n.n + 1, 0} }

// place is child without a look at hard links.
func (n *node) place(e *tree.Entry, at spot) *node {
	c := &node{s: n.s, e: *e, n: at.number, parent: n, index: int64(at.index)}
	c.e.Ino = at.number + 1
	return c
}

// scope returns the directory that the path of a hard link counts from.
func (n *node) scope() *node {
	d := n.parent
	for d.parent != nil && !d.e.Scope {
		d = d.parent
	}
	return d
}

// walk goes down a slash-separated path. It does not look at hard links: the
// first name of a file is none, and a hostile one could lead in a circle.
func (n *node) walk(ctx context.Context, p string) (*node, error) {
	for name := range strings.SplitSeq(p, "/") {
		e, at, err := n.find(ctx, name)
		if err != nil {
			return nil, err
		}
		n = n.place(e, at)
	}
	return n, nil
}

// Walk returns the node at a slash-separated path below n; "" or "." is n
// itself.
func Walk(ctx context.Context, n tree.Node, p string) (tree.Node, error) {
	p = strings.Trim(path.Clean("/"+p), "/")
	if p == "" {
		return n, nil
	}
	for name := range strings.SplitSeq(p, "/") {
		c, err := n.Lookup(ctx, name)
		if err != nil {
			return nil, &fs.PathError{Op: "lookup", Path: p, Err: cause(err)}
		}
		n = c
	}
	return n, nil
}

// cause strips a path error, whose path the caller knows better.
func cause(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

func (n *node) path() string {
	if n.parent == nil {
		return "."
	}
	var parts []string
	for ; n.parent != nil; n = n.parent {
		parts = append(parts, n.e.Name)
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

func (n *node) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: n.path(), Err: err}
}

func (n *node) Attr() *tree.Attr { return &n.e.Attr }

func (n *node) Number() uint64 { return n.n }

func (n *node) Place() (tree.Numbered, int64) {
	if n.parent == nil {
		return nil, 0
	}
	return n.parent, n.index
}

func (n *node) Totals() tree.Totals { return n.e.Totals() }

// TreeID names what is below a directory: equal IDs, equal trees.
func (n *node) TreeID() chunk.ID { return n.e.Root }

func (n *node) Xattrs(ctx context.Context) ([]tree.Xattr, error) {
	if n.e.LostXattrs {
		return nil, n.fail("getxattr", errLostXattrs)
	}
	if n.e.XattrPage.IsZero() {
		return n.e.Xattrs, nil
	}
	pg, err := n.s.c.page(ctx, n.e.XattrPage, tree.XattrPage, 0)
	if err != nil {
		return nil, n.fail("getxattr", err)
	}
	return pg.Page.Xattrs, nil
}

func (n *node) Lookup(ctx context.Context, name string) (tree.Node, error) {
	c, err := n.lookup(ctx, name)
	if err != nil {
		return nil, &fs.PathError{Op: "lookup", Path: path.Join(n.path(), name), Err: err}
	}
	return c, nil
}

func (n *node) lookup(ctx context.Context, name string) (*node, error) {
	e, at, err := n.find(ctx, name)
	if err != nil {
		return nil, err
	}
	return n.child(ctx, e, at)
}

// find returns the entry of that name, and where it stands.
func (n *node) find(ctx context.Context, name string) (*tree.Entry, spot, error) {
	at := n.first()
	if n.e.Kind != tree.Dir {
		return nil, at, syscall.ENOTDIR
	}
	if n.e.Root.IsZero() {
		return nil, at, n.none()
	}
	pg, err := n.top(ctx)
	for {
		if err != nil {
			return nil, at, err
		}
		if pg.Level == 0 {
			i, ok := slices.BinarySearchFunc(pg.Entries, name, func(e tree.Entry, name string) int { return strings.Compare(e.Name, name) })
			if !ok {
				return nil, at, n.none()
			}
			return &pg.Entries[i], at.skip(pg, i), nil
		}
		i := sort.Search(len(pg.Refs), func(i int) bool { return pg.Refs[i].Last >= name })
		if i == len(pg.Refs) {
			return nil, at, n.none()
		}
		at = at.skip(pg, i)
		pg, err = n.s.c.below(ctx, pg, i)
	}
}

// top returns the root page of a directory that has entries.
func (n *node) top(ctx context.Context) (*page, error) {
	pg, err := n.s.c.page(ctx, n.e.Root, tree.DirPage, -1)
	if err != nil {
		return nil, err
	}
	return pg, pg.promised(n.e.Root, n.e.Below.Nodes, n.e.Children)
}

func (n *node) ByNumber(ctx context.Context, number uint64) (tree.Node, error) {
	at := n.s.root
	if number > at.e.Below.Nodes {
		return nil, fmt.Errorf("node %d: %w", number, fs.ErrNotExist)
	}
	for at.n != number {
		next, err := at.below(ctx, number)
		if err != nil {
			return nil, at.fail("lookup", err)
		}
		if next.n > number || next.n == at.n {
			// Number of a hard link's later name: nobody was told of it.
			return nil, fmt.Errorf("node %d: %w", number, fs.ErrNotExist)
		}
		at = next
	}
	return at, nil
}

// below returns the child that is, or holds, the node of that number.
func (n *node) below(ctx context.Context, number uint64) (*node, error) {
	if n.e.Root.IsZero() {
		return nil, fs.ErrNotExist
	}
	at := n.first()
	pg, err := n.top(ctx)
	for {
		if err != nil {
			return nil, err
		}
		if number < at.number || number-at.number >= pg.total {
			return nil, fmt.Errorf("%d nodes are below, number %d should be among them: %w", pg.total, number-at.number, chunk.ErrCorrupt)
		}
		i := sort.Search(len(pg.starts), func(i int) bool { return pg.starts[i] > number-at.number }) - 1
		at = at.skip(pg, i)
		if pg.Level == 0 {
			return n.child(ctx, &pg.Entries[i], at)
		}
		pg, err = n.s.c.below(ctx, pg, i)
	}
}

func (n *node) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		if n.e.Kind != tree.Dir {
			yield(nil, n.fail("readdir", syscall.ENOTDIR))
			return
		}
		if !n.e.Root.IsZero() && from >= 0 && uint64(from) < n.e.Children {
			pg, err := n.top(ctx)
			if !n.entries(ctx, pg, err, uint64(from), n.first(), yield) {
				return
			}
		}
		if n.e.LostNames {
			yield(nil, n.fail("readdir", errLostNames))
		}
	}
}

// What a repair could not bring back must not look as if it had never been.
var (
	errLostNames  = fmt.Errorf("some of its names were lost before it was repaired: %w", chunk.ErrMissing)
	errLostXattrs = fmt.Errorf("extended attributes were lost before it was repaired: %w", chunk.ErrMissing)
)

// none is the error for a name that is not there.
func (n *node) none() error {
	if n.e.LostNames {
		return errLostNames // perhaps it was
	}
	return fs.ErrNotExist
}

// entries yields the leaf items of a page from the from-th on and reports
// whether to go on. Damage of a page is yielded, and the pages behind it are
// still read.
func (n *node) entries(ctx context.Context, pg *page, err error, from uint64, at spot, yield func(tree.Node, error) bool) bool {
	if err != nil {
		return yield(nil, n.fail("readdir", err)) && ctx.Err() == nil
	}
	for i := range pg.Entries {
		if uint64(i) < from {
			continue
		}
		c, err := n.child(ctx, &pg.Entries[i], at.skip(pg, i))
		if err != nil {
			yield(nil, n.fail("readdir", err))
			return false
		}
		if !yield(c, nil) {
			return false
		}
	}
	for i := range pg.Refs {
		if pg.items[i]+pg.Refs[i].Items <= from {
			continue
		}
		skip := uint64(0)
		if from > pg.items[i] {
			skip = from - pg.items[i]
		}
		next, err := n.s.c.below(ctx, pg, i)
		if !n.entries(ctx, next, err, skip, at.skip(pg, i), yield) {
			return false
		}
	}
	return true
}
