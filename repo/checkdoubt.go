package repo

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// What is not where it should be may have moved: prune copies what is needed to
// other packs and removes the old ones, while others look. So nothing is called
// damaged before the index was read again, after the first look failed, and the
// chunk looked for once more; and then only if the snapshot is still there. A
// live snapshot's chunks lie in an indexed pack at any time.

// doubt is a page or an extent that could not be read at first.
type doubt struct {
	page  bool
	id    chunk.ID
	path  string
	kind  tree.PageKind // of a page, as level
	level int
	x     tree.Extent
}

// maxDoubts is how many doubts, or findings, are kept before they are dealt
// with.
const maxDoubts = 10_000

// maxBroken bounds what is remembered of damage, to spare other snapshots a
// second look.
const maxBroken = 100_000

// doubt keeps for later what failed with err.
func (w *treeChecker) doubt(d doubt, err error) {
	if w.ctx.Err() != nil {
		return
	}
	if _, twice := w.broken[d.id]; twice {
		w.damage(d.id, d.path, err)
		return
	}
	w.doubts = append(w.doubts, d)
	if len(w.doubts) >= maxDoubts {
		if err := w.settle(); err != nil {
			w.err, w.gone = err, true
		}
	}
}

// settle looks again for all that is in doubt. What fails once more is damage.
func (w *treeChecker) settle() error {
	for len(w.doubts) > 0 && w.ctx.Err() == nil {
		if w.gone = w.gone || !w.r.alive(w.ctx, w.s.ID); w.gone {
			w.doubts = nil
			break
		}
		if err := w.r.wait(w.ctx, w.r.lag()); err != nil {
			return err
		}
		if _, err := w.r.ix.Sync(w.ctx); err != nil && !unproven(err) {
			return err
		}
		again := w.doubts
		w.doubts = nil
		for _, d := range again {
			if err := w.lookAgain(d); err != nil && w.ctx.Err() == nil {
				if len(w.broken) < maxBroken {
					w.broken[d.id] = struct{}{}
				}
				w.damage(d.id, d.path, err)
			}
			if len(w.found) >= maxDoubts {
				if err := w.tell(); err != nil {
					return err
				}
			}
		}
	}
	return cmp.Or(w.err, w.ctx.Err())
}

func (w *treeChecker) lookAgain(d doubt) error {
	if !d.page {
		return w.held(d.x)
	}
	pg, err := w.read(d.id, d.kind, d.level)
	if err == nil {
		w.enter(d.id, pg, d.path)
	}
	return err
}

// tell reports what was found, unless the snapshot is gone.
func (w *treeChecker) tell() error {
	found := w.found
	w.found = nil
	if len(found) == 0 || w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if w.gone = w.gone || !w.r.alive(w.ctx, w.s.ID); w.gone {
		return nil
	}
	for _, d := range found {
		w.report(d)
	}
	return nil
}

// alive reports whether a snapshot is still there. If nobody can tell, it is.
func (r *Repo) alive(ctx context.Context, id ID) bool {
	if _, err := r.b.Get(ctx, "snapshots/"+id.String(), 0, 1); errors.Is(err, fs.ErrNotExist) {
		return false
	}
	name := "forgotten/" + id.String()
	o, err := r.ownersObject(ctx, name, seal.KindForgotten)
	if err != nil {
		return true
	}
	var f Forgotten
	return decode(name, o.Body, &f) != nil || f.ID != id
}

// extent checks that some pack that exists holds a chunk whole, as far as is
// known; true: it is damaged, or in doubt.
func (w *treeChecker) extent(x tree.Extent, path string) bool {
	switch x.Kind {
	case tree.Lost:
		w.lost(path, fmt.Sprintf("%d bytes at %d were lost", x.Len, x.Off))
		return true
	case tree.Data:
	default:
		return false
	}
	if err := w.held(x); err != nil {
		w.doubt(doubt{id: x.ID, path: path, x: x}, err)
		return true
	}
	return false
}

// held returns what keeps a chunk from being read; nil if nothing is known to.
func (w *treeChecker) held(x tree.Extent) error {
	var room [4]pack.Location
	locs, err := w.r.ix.Lookup(x.ID, room[:0])
	if err != nil {
		return err
	}
	unsure := false
	for _, l := range locs {
		if int64(l.Len) != x.Len {
			continue
		}
		size, listed := w.packs[l.Pack]
		st := w.state[l.Pack]
		switch {
		case !listed:
			// It came after the listing, or is gone.
			_, gerr := w.r.b.Get(w.ctx, l.Pack.Object(), int64(l.Off), int64(l.Stored))
			if gerr == nil {
				return nil
			}
			if !errors.Is(gerr, fs.ErrNotExist) {
				err = fmt.Errorf("chunk %s in pack %s: %w", x.ID, l.Pack, gerr)
			}
		case int64(l.Off)+int64(l.Stored) > size:
			err = fmt.Errorf("chunk %s: pack %s is cut short: %w", x.ID, l.Pack, chunk.ErrCorrupt)
		case st == nil || !st.lost && st.frame(l.Frame) == frameWhole:
			return nil
		case !st.lost && st.frame(l.Frame) == frameBroken:
			err = fmt.Errorf("chunk %s: frame %d of pack %s does not open: %w", x.ID, l.Frame, l.Pack, chunk.ErrCorrupt)
		default:
			unsure = true
		}
	}
	if unsure {
		// The pack as a whole is not to be trusted; this chunk may be fine.
		_, err = w.r.store.Data(w.ctx, x.ID)
		return err
	}
	if err == nil {
		err = fmt.Errorf("%d bytes at %d: no pack that exists holds chunk %s: %w", x.Len, x.Off, x.ID, chunk.ErrMissing)
	}
	return err
}

func (s *packState) frame(n uint32) byte {
	if int(n) < len(s.frames) {
		return s.frames[n]
	}
	return frameWhole
}

// sums is what a page holds, by its own items.
type sums struct {
	items uint64
	below tree.Totals
}

// anyItems stands for a number of items that nobody promised.
const anyItems = ^uint64(0)

func sumsOf(pg *tree.Page) (s sums) {
	for i := range pg.Refs {
		s.items += pg.Refs[i].Items
		s.below.Add(pg.Refs[i].Below)
	}
	for i := range pg.Entries {
		s.below.Add(pg.Entries[i].Totals())
	}
	for _, x := range pg.Extents {
		s.below.Add(tree.Totals{Bytes: uint64(x.Len)})
	}
	s.items += uint64(len(pg.Entries) + len(pg.Extents) + len(pg.Witness))
	return s
}

// halfID is half of a page's ID, which is a hash under a secret key: enough to
// tell pages apart, and there may be millions.
type halfID [2]uint64

func keyOf(id chunk.ID) halfID {
	return halfID{binary.LittleEndian.Uint64(id[:]), binary.LittleEndian.Uint64(id[8:])}
}

// pageSums is what is remembered of a page: whether something below it is
// damaged or in doubt, whether it could be read at all, and hashes of its sums,
// 31 bits each, under a seed that no writer knows.
type pageSums uint64

const (
	pageHurt   pageSums = 1
	pageUnread pageSums = 2
	itemsMask  pageSums = 1<<33 - 4
	belowMask  pageSums = 1<<64 - 1<<33
)

func (c *checker) sum(s sums) pageSums {
	items, below := maphash.Comparable(c.sums, s.items), maphash.Comparable(c.sums, s.below)
	return pageSums(items)&itemsMask | pageSums(below)&belowMask
}

// promised compares what a page holds with what refers to it; by these counts
// readers find their way. What could not be read was told already.
func (w *treeChecker) promised(id chunk.ID, want sums, path string) bool {
	got, ok := w.pages[keyOf(id)]
	if !ok || got&pageUnread != 0 {
		return false
	}
	mask := itemsMask | belowMask
	if want.items == anyItems {
		mask = belowMask
	}
	if got&mask == w.sum(want)&mask {
		return false
	}
	text := ""
	if b, err := w.r.store.Page(w.ctx, id); err == nil {
		if pg, err := tree.ParsePage(b); err == nil {
			s := sumsOf(pg)
			text = fmt.Sprintf("page holds %d items, %+v below; ", s.items, s.below)
			if want.items == anyItems {
				want.items = s.items
			}
		}
	}
	w.damage(id, path, fmt.Errorf("%s%d items, %+v are promised: %w", text, want.items, want.below, chunk.ErrCorrupt))
	return true
}
