package diff

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// bufSize is how much of a file is read at once, from both sides at a time.
const bufSize = 1 << 20

// contents compares two files: sizes, then chunk IDs, then bytes, as far as
// the options want each of them.
func (w *walker) contents(a, b tree.Node) (Fields, error) {
	x, y := a.Attr(), b.Attr()
	if x.Size != y.Size {
		return Size | Content, nil
	}
	trusted := w.opt.Quick && x.Mtime == y.Mtime
	c := comparison{
		w:     w,
		size:  x.Size,
		ids:   w.opt.IDsComparable && w.opt.Ignore&Content == 0,
		holes: w.opt.Holes && w.opt.Ignore&Holes == 0,
	}
	c.bytes = (w.opt.Content || c.ids) && !trusted && w.opt.Ignore&Content == 0
	if x.Size == 0 || !c.ids && !c.bytes && !c.holes {
		return 0, nil
	}
	var err error
	if c.a, err = open(w.ctx, a); err != nil {
		return 0, err
	}
	defer c.a.close()
	if c.b, err = open(w.ctx, b); err != nil {
		return 0, err
	}
	defer c.b.close()
	err = c.run()
	return c.found, err
}

// comparison walks the extents of two files of one size side by side.
type comparison struct {
	w                 *walker
	a, b              *content
	size              int64
	ids, bytes, holes bool   // what to compare
	found             Fields // what differs so far

	// The range that must be read but was not yet: extents that follow each
	// other are read together.
	from, to int64
}

func (c *comparison) run() error {
	for off := int64(0); off < c.size; {
		x, err := c.a.at(off, c.size)
		if err != nil {
			return err
		}
		y, err := c.b.at(off, c.size)
		if err != nil {
			return err
		}
		end := min(x.Off+x.Len, y.Off+y.Len)
		if err := c.extent(off, end, x, y); err != nil {
			return err
		}
		if c.found&Content != 0 && (!c.holes || c.found&Holes != 0) {
			return nil
		}
		off = end
	}
	return c.flush()
}

// extent compares a range that lies in one extent on each side.
func (c *comparison) extent(off, end int64, x, y tree.Extent) error {
	if c.holes && (x.Kind == tree.Hole) != (y.Kind == tree.Hole) {
		c.found |= Holes
	}
	if c.found&Content != 0 || isZero(x) && isZero(y) || x.Kind == tree.Absent || y.Kind == tree.Absent {
		return nil
	}
	if c.ids && x.Off == y.Off && x.Len == y.Len && !x.ID.IsZero() && !y.ID.IsZero() {
		if x.ID != y.ID {
			c.found |= Content
		}
		return nil
	}
	if !c.bytes {
		return nil
	}
	if off != c.to || c.to-c.from >= bufSize {
		if err := c.flush(); err != nil {
			return err
		}
		c.from = off
	}
	c.to = end
	return nil
}

func isZero(x tree.Extent) bool { return x.Kind == tree.Zero || x.Kind == tree.Hole }

// flush reads and compares the range that waits for it.
func (c *comparison) flush() error {
	for ; c.from < c.to && c.found&Content == 0; c.from = min(c.from+bufSize, c.to) {
		if err := c.w.ctx.Err(); err != nil {
			return err
		}
		p, q, err := c.read(c.from, min(bufSize, c.to-c.from))
		if err != nil {
			return err
		}
		if !bytes.Equal(p, q) {
			c.found |= Content
		}
	}
	c.from = c.to
	return nil
}

// read reads a range from both sides, at the same time where that pays. A side
// that ended early gives fewer bytes.
func (c *comparison) read(off, n int64) (p, q []byte, err error) {
	for i := range c.w.bufs {
		if c.w.bufs[i] == nil {
			c.w.bufs[i] = make([]byte, min(bufSize, max(c.size, 64<<10)))
		}
		if int64(len(c.w.bufs[i])) < n {
			c.w.bufs[i] = make([]byte, bufSize)
		}
	}
	var errB error
	readB := func() { q, errB = c.b.read(c.w.bufs[1][:n], off) }
	if n < 128<<10 {
		readB()
		p, err = c.a.read(c.w.bufs[0][:n], off)
	} else {
		done := make(chan struct{})
		go func() {
			defer close(done)
			readB()
		}()
		p, err = c.a.read(c.w.bufs[0][:n], off)
		<-done
	}
	if err == nil {
		err = errB
	}
	return p, q, err
}

// content is one side's file being read.
type content struct {
	readAt func(p []byte, off int64) (int, error)
	close  func()
	next   func() (tree.Extent, error, bool)
	cur    tree.Extent
}

// open prepares a file for reading: a live one is opened once, not for each
// read.
func open(ctx context.Context, n tree.Node) (*content, error) {
	c := &content{
		readAt: func(p []byte, off int64) (int, error) { return n.ReadAt(ctx, p, off) },
		close:  func() {},
	}
	var extents iter.Seq2[tree.Extent, error]
	if x, ok := n.(tree.Extenter); ok {
		extents = x.Extents(ctx, 0)
	}
	if o, ok := n.(tree.Opener); ok {
		f, err := o.Open(ctx)
		if err != nil {
			return nil, err
		}
		c.readAt = f.ReadAt
		c.close = func() { f.Close() } // nothing was written: nothing to learn
		extents = f.Extents(0)
	}
	if extents != nil {
		next, stop := iter.Pull2(extents)
		closeFile := c.close
		c.next = next
		c.close = func() { stop(); closeFile() }
	}
	return c, nil
}

// at returns the extent that holds off. What a side does not tell of is data
// up to size.
func (c *content) at(off, size int64) (tree.Extent, error) {
	for c.next != nil && off >= c.cur.Off+c.cur.Len {
		x, err, ok := c.next()
		switch {
		case err != nil:
			return x, err
		case !ok || x.Off != c.cur.Off+c.cur.Len || x.Len <= 0:
			c.next = nil // ended early, or tells nonsense
		default:
			c.cur = x
		}
	}
	if off < c.cur.Off+c.cur.Len {
		x := c.cur
		x.Len = min(x.Len, size-x.Off)
		return x, nil
	}
	return tree.Extent{Off: off, Len: size - off, Kind: tree.Data}, nil
}

// read fills p from off on, or as far as the file goes.
func (c *content) read(p []byte, off int64) ([]byte, error) {
	n, err := c.readAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return p[:n], err
}
