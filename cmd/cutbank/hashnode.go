package main

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// hashing makes live files comparable with stored ones by chunk IDs, so that
// comparing the two reads the live side only.
type hashing struct {
	sum   func([]byte) chunk.ID
	quick bool // equal size and mtime stand for equal contents
	buf   []byte
}

// hashing returns what to wrap one live tree with; it is for one goroutine.
func (a *app) hashing(quick bool) *hashing {
	return &hashing{sum: a.open.SecretKeys().Data.Sum, quick: quick}
}

// wrap returns the live node, which tells of each range that is a chunk of the
// stored node what ID its bytes have. stored may be nil.
func (h *hashing) wrap(live, stored tree.Node) tree.Node {
	n := hashed{live, h, stored}
	if live.Attr().Kind != tree.File || stored == nil || stored.Attr().Kind != tree.File || stored.Attr().Size != live.Attr().Size {
		return n
	}
	x, ok := stored.(tree.Extenter)
	if o, is := live.(tree.Opener); ok && is {
		return hashedFile{n, o, x}
	}
	return n
}

// hashed is a live node beside the stored one of the same path.
type hashed struct {
	tree.Node
	h      *hashing
	stored tree.Node
}

// beside returns the stored child of that name. One that cannot be read is
// none: comparing finds out about it by itself.
func (n hashed) beside(ctx context.Context, name string) tree.Node {
	if n.stored == nil || n.stored.Attr().Kind != tree.Dir {
		return nil
	}
	c, err := n.stored.Lookup(ctx, name)
	if err != nil {
		return nil
	}
	return c
}

func (n hashed) Lookup(ctx context.Context, name string) (tree.Node, error) {
	c, err := n.Node.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	return n.h.wrap(c, n.beside(ctx, name)), nil
}

func (n hashed) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		for c, err := range n.Node.Entries(ctx, from) {
			if err == nil {
				c = n.h.wrap(c, n.beside(ctx, c.Attr().Name))
			}
			if !yield(c, err) {
				return
			}
		}
	}
}

// hashedFile is a live file whose extents are those of the stored one.
type hashedFile struct {
	hashed
	live   tree.Opener
	recipe tree.Extenter
}

func (n hashedFile) Open(ctx context.Context) (tree.OpenFile, error) {
	if n.h.quick && n.Attr().Mtime == n.stored.Attr().Mtime {
		return trusted{n, ctx}, nil
	}
	f, err := n.live.Open(ctx)
	if err != nil {
		return nil, err
	}
	return hashedOpen{f, n, ctx}, nil
}

// trusted is a file that is taken for equal to the stored one, unread.
type trusted struct {
	n   hashedFile
	ctx context.Context
}

func (t trusted) Close() error              { return nil }
func (t trusted) Stat() (*tree.Attr, error) { return t.n.Attr(), nil }

func (t trusted) ReadAt(p []byte, off int64) (int, error) { return t.n.stored.ReadAt(t.ctx, p, off) }

func (t trusted) Extents(off int64) iter.Seq2[tree.Extent, error] {
	return t.n.recipe.Extents(t.ctx, off)
}

// hashedOpen is an open live file that is hashed as it is walked.
type hashedOpen struct {
	tree.OpenFile
	n   hashedFile
	ctx context.Context
}

func (f hashedOpen) Extents(off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		for x, err := range f.n.recipe.Extents(f.ctx, off) {
			if err == nil {
				err = f.ctx.Err()
			}
			if err == nil {
				x, err = f.extent(x)
			}
			if !yield(x, err) || err != nil {
				return
			}
		}
	}
}

// extent tells of the live bytes where the stored file has extent x. What is no
// chunk there is to be compared as bytes.
func (f hashedOpen) extent(x tree.Extent) (tree.Extent, error) {
	live := tree.Extent{Off: x.Off, Len: x.Len, Kind: tree.Data}
	if x.Kind != tree.Data || x.Len > chunk.MaxSize {
		return live, nil
	}
	if int64(len(f.n.h.buf)) < x.Len {
		f.n.h.buf = make([]byte, x.Len)
	}
	p := f.n.h.buf[:x.Len]
	n, err := f.ReadAt(p, x.Off)
	if err != nil && !errors.Is(err, io.EOF) {
		return live, err
	}
	if n == len(p) { // else the file shrank, which reading will tell
		live.ID = f.n.h.sum(p)
	}
	return live, nil
}
