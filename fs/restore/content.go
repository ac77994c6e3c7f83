package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

// content is a file's contents to read: a live file is opened once for it.
type content struct {
	size    int64
	readAt  func(p []byte, off int64) (int, error)
	extents func() iter.Seq2[tree.Extent, error]
	close   func()
}

func openContent(ctx context.Context, n tree.Node) (*content, error) {
	c := &content{size: n.Attr().Size, close: func() {}}
	if c.size < 0 {
		return nil, fmt.Errorf("a size of %d bytes is refused", c.size)
	}
	c.readAt = func(p []byte, off int64) (int, error) { return n.ReadAt(ctx, p, off) }
	c.extents = func() iter.Seq2[tree.Extent, error] {
		return func(yield func(tree.Extent, error) bool) {
			if c.size > 0 {
				yield(tree.Extent{Len: c.size, Kind: tree.Data}, nil)
			}
		}
	}
	switch n := n.(type) {
	case tree.Opener:
		f, err := n.Open(ctx)
		if err != nil {
			return nil, err
		}
		c.readAt = f.ReadAt
		c.extents = func() iter.Seq2[tree.Extent, error] { return f.Extents(0) }
		c.close = func() { f.Close() }
	case tree.Extenter:
		c.extents = func() iter.Seq2[tree.Extent, error] { return n.Extents(ctx, 0) }
	}
	return c, nil
}

// read fills p.
func (c *content) read(p []byte, off int64) error {
	n, err := c.readAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("contents end at byte %d of %d: the file changed, or its snapshot is damaged", off+int64(n), c.size)
	}
	return err
}

// each calls f for every extent, once it is known to follow the one before
// and to hold something that can be restored.
func (c *content) each(f func(tree.Extent) error) error {
	pos := int64(0)
	for e, err := range c.extents() {
		if err != nil {
			return err
		}
		if e.Off != pos || e.Len <= 0 || e.Len > c.size-pos {
			return fmt.Errorf("extent of %d bytes at %d does not fit a file of %d bytes read up to %d: the file changed, or its snapshot is damaged", e.Len, e.Off, c.size, pos)
		}
		switch e.Kind {
		case tree.Data, tree.Zero, tree.Hole:
		case tree.Absent:
			return fmt.Errorf("bytes %d to %d were left out of the snapshot: %w", e.Off, e.Off+e.Len, unix.ENODATA)
		case tree.Lost:
			return fmt.Errorf("bytes %d to %d are lost: %w", e.Off, e.Off+e.Len, unix.EIO)
		default:
			return fmt.Errorf("extent of unknown kind %d at byte %d: a newer cutbank may know it", e.Kind, e.Off)
		}
		pos += e.Len
		if err := f(e); err != nil {
			return err
		}
	}
	if pos != c.size {
		return fmt.Errorf("extents end at byte %d of %d: the file changed, or its snapshot is damaged", pos, c.size)
	}
	return nil
}
