package main

import (
	"context"
	"io/fs"
	"iter"
	"slices"
	"sync"
	"syscall"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// keptViews is how many nodes the views may have together that a mount keeps, at about
// half a KiB each. The one that was used last is kept in any case.
const keptViews = 1 << 19

// viewCache are views that were made, the last used one last.
type viewCache struct {
	mu    sync.Mutex
	limit uint64 // of nodes
	nodes uint64
	made  []*lazyView
}

// lazyView is the root of a view that is made when somebody looks into it, and made
// again where it was dropped for others meanwhile: it is a pure function of what is
// stored, so its nodes have the same numbers then. A list of snapshots makes none.
type lazyView struct {
	views  *viewCache
	stored tree.Numbered // the root has its attributes: ls asks for them
	make   func(ctx context.Context) (tree.Numbered, error)

	making sync.Mutex
	root   tree.Numbered // nil: not there; views.mu guards it
	nodes  uint64
}

var _ tree.Numbered = (*lazyView)(nil)

// open returns the view.
func (v *lazyView) open(ctx context.Context) (tree.Numbered, error) {
	v.making.Lock()
	defer v.making.Unlock()
	if r := v.views.get(v); r != nil {
		return r, nil
	}
	r, err := v.make(ctx)
	if err != nil {
		return nil, err
	}
	nodes := uint64(1)
	if t, ok := r.(tree.Totaler); ok {
		nodes = t.Totals().Nodes
	}
	v.views.put(v, r, nodes)
	return r, nil
}

func (c *viewCache) get(v *lazyView) tree.Numbered {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.made, v); i >= 0 && i < len(c.made)-1 {
		c.made = append(slices.Delete(c.made, i, i+1), v)
	}
	return v.root
}

func (c *viewCache) put(v *lazyView, root tree.Numbered, nodes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v.root, v.nodes = root, nodes
	c.made, c.nodes = append(c.made, v), c.nodes+nodes
	for c.nodes > c.limit && len(c.made) > 1 {
		old := c.made[0]
		c.made, c.nodes = slices.Delete(c.made, 0, 1), c.nodes-old.nodes
		old.root = nil
	}
}

// Attr implements tree.Node.
func (v *lazyView) Attr() *tree.Attr { return v.stored.Attr() }

// Xattrs implements tree.Node.
func (v *lazyView) Xattrs(ctx context.Context) ([]tree.Xattr, error) { return v.stored.Xattrs(ctx) }

// Lookup implements tree.Node.
func (v *lazyView) Lookup(ctx context.Context, name string) (tree.Node, error) {
	r, err := v.open(ctx)
	if err != nil {
		return nil, err
	}
	return r.Lookup(ctx, name)
}

// Entries implements tree.Node.
func (v *lazyView) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	r, err := v.open(ctx)
	if err != nil {
		return func(yield func(tree.Node, error) bool) { yield(nil, err) }
	}
	return r.Entries(ctx, from)
}

// ReadAt implements tree.Node.
func (v *lazyView) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: v.Attr().Name, Err: syscall.EISDIR}
}

// Number implements tree.Numbered.
func (v *lazyView) Number() uint64 { return 0 }

// ByNumber implements tree.Numbered.
func (v *lazyView) ByNumber(ctx context.Context, n uint64) (tree.Node, error) {
	if n == 0 {
		return v, nil
	}
	r, err := v.open(ctx)
	if err != nil {
		return nil, err
	}
	return r.ByNumber(ctx, n)
}
