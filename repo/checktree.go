package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// trees walks the trees of the snapshots. A page is walked once, however many
// snapshots share it, unless something below it is damaged: then each snapshot
// is told which of its paths are.
func (c *checker) trees(ctx context.Context) error {
	snaps := c.opt.Snapshots
	if snaps == nil {
		var err error
		if snaps, err = c.r.Snapshots(ctx); err != nil && !isDamage(err) {
			return err // damaged records were named by objects
		}
	}
	c.p.SnapshotsTotal.Store(uint64(len(snaps)))
	for _, s := range snaps {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w := treeChecker{c, ctx, s}
		w.page(s.Tree.ID, tree.DirPage, -1, "")
		if !s.Witness.IsZero() {
			w.page(s.Witness.ID, tree.WitnessPage, -1, "(witness)")
		}
		c.res.Snapshots++
		c.p.Snapshots.Add(1)
	}
	c.res.Pages = uint64(len(c.pages))
	return ctx.Err()
}

func isDamage(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrMissing) || errors.Is(err, ErrFormat)
}

type treeChecker struct {
	*checker
	ctx context.Context
	s   *Snapshot
}

func (w *treeChecker) damage(id chunk.ID, path string, err error) {
	if path == "" {
		path = "."
	}
	w.report(Damage{Chunk: id, Path: path, Snapshot: w.s, Err: err})
}

// page walks a page and what is below; true: something there is damaged.
func (w *treeChecker) page(id chunk.ID, kind tree.PageKind, level int, path string) bool {
	if hurt, seen := w.pages[id]; seen && !hurt || w.ctx.Err() != nil {
		return false
	}
	w.p.Pages.Add(1)
	hurt := true
	if b, err := w.r.store.Page(w.ctx, id); err != nil {
		if w.ctx.Err() != nil {
			return false
		}
		w.damage(id, path, err)
	} else if pg, err := tree.ParsePage(b); err != nil {
		w.damage(id, path, err)
	} else if pg.Kind != kind || level >= 0 && pg.Level != level {
		w.damage(id, path, fmt.Errorf("page of another kind or level: %w", chunk.ErrCorrupt))
	} else {
		w.sums[id] = sumsOf(pg)
		hurt = w.items(id, pg, path)
	}
	w.pages[id] = hurt
	return hurt
}

func (w *treeChecker) items(id chunk.ID, pg *tree.Page, path string) bool {
	hurt := false
	for i := range pg.Refs {
		if w.page(pg.Refs[i].ID, pg.Kind, pg.Level-1, path) {
			hurt = true
		}
		r := &pg.Refs[i]
		if w.promised(r.ID, sums{r.Items, r.Below}, path) {
			hurt = true
		}
	}
	for i := range pg.Entries {
		if w.entry(&pg.Entries[i], path) {
			hurt = true
		}
	}
	for _, x := range pg.Extents {
		if w.extent(x, path) {
			hurt = true
		}
	}
	for i := range pg.Witness {
		if r := pg.Witness[i].Root; !r.IsZero() && w.page(r, tree.WitnessPage, -1, path) {
			hurt = true
		}
	}
	return hurt
}

func (w *treeChecker) entry(e *tree.Entry, path string) bool {
	switch {
	case path != "":
		path += "/" + e.Name
	case e.Name != tree.RootName || e.Kind != tree.Dir:
		path = e.Name
	}
	if path == "" {
		path = "." // the root itself
	} else if len(path) > 2 && path[:2] == "./" {
		path = path[2:]
	}
	hurt := !e.XattrPage.IsZero() && w.page(e.XattrPage, tree.XattrPage, 0, path)
	if !e.Recipe.IsZero() {
		hurt = w.page(e.Recipe, tree.RecipePage, -1, path) || hurt
		got := w.sums[e.Recipe]
		hurt = w.promised(e.Recipe, sums{got.items, tree.Totals{Bytes: uint64(e.Size)}}, path) || hurt
	}
	if !e.Root.IsZero() {
		hurt = w.page(e.Root, tree.DirPage, -1, path) || hurt
		hurt = w.promised(e.Root, sums{e.Children, e.Below}, path) || hurt
	}
	for _, x := range e.Extents {
		if w.extent(x, path) {
			hurt = true
		}
	}
	return hurt
}

// sums is what a page holds, by its own items.
type sums struct {
	items uint64
	below tree.Totals
}

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

// promised compares what a page holds with what refers to it; by these counts
// readers find their way. What could not be read was told already.
func (w *treeChecker) promised(id chunk.ID, want sums, path string) bool {
	got, ok := w.sums[id]
	if !ok || got == want {
		return false
	}
	w.damage(id, path, fmt.Errorf("page holds %d items, %+v below; %d items, %+v are promised: %w", got.items, got.below, want.items, want.below, chunk.ErrCorrupt))
	return true
}

// extent checks that some pack that exists holds a chunk, and that none was
// found to hold it damaged.
func (w *treeChecker) extent(x tree.Extent, path string) bool {
	switch x.Kind {
	case tree.Lost:
		w.damage(chunk.ID{}, path, fmt.Errorf("%d bytes at %d were lost: %w", x.Len, x.Off, chunk.ErrMissing))
		return true
	case tree.Data:
	default:
		return false
	}
	if err := w.bad[x.ID]; err != nil {
		w.damage(x.ID, path, err)
		return true
	}
	var room [4]pack.Location
	locs, err := w.r.ix.Lookup(x.ID, room[:0])
	for _, l := range locs {
		if lost := w.lost[l.Pack]; lost != nil {
			// The pack could not be checked as a whole; this chunk may be fine.
			if _, derr := w.r.store.Data(w.ctx, x.ID); derr == nil {
				return false
			}
			err = fmt.Errorf("chunk %s: %w", x.ID, lost)
			continue
		}
		if size, ok := w.packs[l.Pack]; ok && int64(l.Off)+int64(l.Stored) <= size && int64(l.Len) == x.Len {
			return false
		}
	}
	if err == nil {
		err = fmt.Errorf("%d bytes at %d: no pack that exists holds chunk %s: %w", x.Len, x.Off, x.ID, chunk.ErrMissing)
	}
	// A pack that came after the listing: another process is writing.
	for _, l := range locs {
		if _, gerr := w.r.b.Get(w.ctx, l.Pack.Object(), int64(l.Off), int64(l.Stored)); gerr == nil {
			return false
		} else if !errors.Is(gerr, fs.ErrNotExist) {
			err = fmt.Errorf("chunk %s in pack %s: %w", x.ID, l.Pack, gerr)
		}
	}
	w.damage(x.ID, path, err)
	return true
}
