package snapfs

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sort"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// readAhead is how far in front of a sequential reader chunks are decoded, and how
// far apart reads may lie that count as sequential.
const readAhead = 4 << 20

// window is how far in front of a reader who has read run bytes in order chunks are
// asked for. Where Chunks are far away that grows with what was read: who looks
// at a file's beginning shall not pay for more.
func (c *Cache) window(run int64) int64 {
	if c.ahead <= readAhead {
		return readAhead
	}
	return min(2*run, c.ahead)
}

func (n *node) Extents(ctx context.Context, off int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		if n.e.Kind != tree.File {
			yield(tree.Extent{}, n.fail("extents", syscall.EINVAL))
			return
		}
		if off < 0 || off >= n.e.Size {
			return
		}
		if n.e.Recipe.IsZero() {
			for _, x := range n.e.Extents {
				if x.Off+x.Len > off && !yield(x, nil) {
					return
				}
			}
			return
		}
		pg, err := n.s.c.page(ctx, n.e.Recipe, tree.RecipePage, -1)
		if err == nil && pg.total != uint64(n.e.Size) {
			err = fmt.Errorf("the recipe describes %d bytes of %d: %w", pg.total, n.e.Size, chunk.ErrCorrupt)
		}
		n.extents(ctx, pg, err, off, 0, yield)
	}
}

func (n *node) extents(ctx context.Context, pg *page, err error, off, start int64, yield func(tree.Extent, error) bool) bool {
	if err != nil {
		yield(tree.Extent{}, n.fail("read", err))
		return false
	}
	first := 0
	if off > start {
		first = max(0, sort.Search(len(pg.starts), func(i int) bool { return start+int64(pg.starts[i]) > off })-1)
	}
	for i := first; i < len(pg.starts); i++ {
		at := start + int64(pg.starts[i])
		if pg.Level > 0 {
			next, err := n.s.c.below(ctx, pg, i)
			if !n.extents(ctx, next, err, off, at, yield) {
				return false
			}
			continue
		}
		x := pg.Page.Extents[i]
		x.Off = at
		if x.Off+x.Len > off && !yield(x, nil) {
			return false
		}
	}
	return true
}

func (n *node) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	switch {
	case n.e.Kind == tree.Dir:
		return 0, n.fail("read", syscall.EISDIR)
	case n.e.Kind != tree.File || off < 0:
		return 0, n.fail("read", syscall.EINVAL)
	case off >= n.e.Size:
		return 0, io.EOF
	}
	want := p
	if int64(len(p)) > n.e.Size-off {
		want = p[:n.e.Size-off]
	}
	done := 0
	for x, err := range n.Extents(ctx, off) {
		if err != nil {
			return done, err
		}
		from := off + int64(done) - x.Off
		if from < 0 || from >= x.Len {
			return done, n.fail("read", fmt.Errorf("extents leave a gap at %d: %w", off+int64(done), chunk.ErrCorrupt))
		}
		dst := want[done:]
		if int64(len(dst)) > x.Len-from {
			dst = dst[:x.Len-from]
		}
		if err := n.fill(ctx, dst, x, from); err != nil {
			return done, n.fail("read", err)
		}
		if done += len(dst); done == len(want) {
			break
		}
	}
	n.prefetch(ctx, off, int64(done))
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// fill copies into dst what stands from offset from on of an extent.
func (n *node) fill(ctx context.Context, dst []byte, x tree.Extent, from int64) error {
	switch x.Kind {
	case tree.Zero, tree.Hole:
		clear(dst)
	case tree.Absent:
		return syscall.ENODATA
	case tree.Lost:
		return syscall.EIO
	default:
		b, err := n.s.c.c.Data(ctx, x.ID)
		if err != nil {
			return err
		}
		if int64(len(b)) != x.Len {
			return fmt.Errorf("chunk %s has %d bytes, the recipe says %d: %w", x.ID, len(b), x.Len, chunk.ErrCorrupt)
		}
		copy(dst, b[from:])
	}
	return nil
}

// prefetch asks for what a sequential reader will want next. Reads of the
// kernel's read-ahead may come slightly out of order: what lies within one
// window of the last read counts as sequential.
func (n *node) prefetch(ctx context.Context, off, done int64) {
	end := off + done
	last := n.next.Swap(end)
	if off == 0 || off < last-readAhead/2 || off > last+readAhead/2 {
		n.begun.Store(off)
	}
	if end >= n.e.Size || off != 0 && n.begun.Load() == off {
		return
	}
	window := n.s.c.window(end - n.begun.Load())
	ahead := n.ahead.Load()
	if ahead-end > window/2 && ahead-end <= max(window, readAhead) || !n.ahead.CompareAndSwap(ahead, end+window) {
		return
	}
	from := end
	if ahead > end && ahead < end+window {
		from = ahead
	}
	var ids []chunk.ID
	for x, err := range n.Extents(ctx, from) {
		if err != nil || x.Off >= end+window {
			break
		}
		if x.Kind == tree.Data {
			ids = append(ids, x.ID)
		}
	}
	n.s.c.c.Prefetch(ids)
}
