package repo

import (
	"context"
	"errors"
	"fmt"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// losses are the chunks and pages that no pack holds any more.
type losses struct {
	chunks map[chunk.ID]int64 // their lengths
	pages  map[chunk.ID]struct{}
	hurt   []*Snapshot // whose trees they are of
}

func (l *losses) count() int { return len(l.chunks) + len(l.pages) }

// lossScan walks trees for what is lost. A page is walked once, unless something
// at or below it is lost.
type lossScan struct {
	p     *repairer
	lost  *losses
	whole map[chunk.ID]struct{} // pages at and below which nothing is lost
	held  map[chunk.ID]bool     // chunks that lie only in damaged packs: whether they can be read

	// file is called for every file of which something is lost; may be nil.
	file func(ctx context.Context, s *Snapshot, path string, e *tree.Entry) error
}

func (p *repairer) newScan() *lossScan {
	return &lossScan{p: p, lost: &losses{chunks: map[chunk.ID]int64{}, pages: map[chunk.ID]struct{}{}}, whole: map[chunk.ID]struct{}{}, held: map[chunk.ID]bool{}}
}

// run walks snapshots.
func (w *lossScan) run(ctx context.Context, snaps []*Snapshot) error {
	w.lost.hurt = nil
	w.p.p.SnapshotsTotal.Add(uint64(len(snaps)))
	for _, s := range snaps {
		hurt, err := w.page(ctx, s, s.Tree.ID, tree.DirPage, "")
		if err != nil {
			return err
		}
		if !s.Witness.IsZero() {
			h, err := w.page(ctx, s, s.Witness.ID, tree.WitnessPage, "")
			if err != nil {
				return err
			}
			hurt = hurt || h
		}
		if hurt {
			w.lost.hurt = append(w.lost.hurt, s)
		}
		w.p.p.Snapshots.Add(1)
	}
	return nil
}

// page walks a page and what is below; true: something there is lost.
func (w *lossScan) page(ctx context.Context, s *Snapshot, id chunk.ID, kind tree.PageKind, path string) (hurt bool, err error) {
	if _, ok := w.whole[id]; ok {
		return false, nil
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	pg, _, err := w.p.page(ctx, id, kind)
	if err != nil {
		if !gone(err) {
			return false, err
		}
		w.lost.pages[id] = struct{}{}
		return true, nil
	}
	below := func(id chunk.ID, kind tree.PageKind, path string) error {
		if id.IsZero() {
			return nil
		}
		h, err := w.page(ctx, s, id, kind, path)
		hurt = hurt || h
		return err
	}
	for i := range pg.Refs {
		if err := below(pg.Refs[i].ID, kind, path); err != nil {
			return hurt, err
		}
	}
	for i := range pg.Witness {
		if err := below(pg.Witness[i].Root, kind, path); err != nil {
			return hurt, err
		}
	}
	for i := range pg.Entries {
		h, err := w.entry(ctx, s, &pg.Entries[i], path, below)
		if hurt = hurt || h; err != nil {
			return hurt, err
		}
	}
	for _, x := range pg.Extents {
		h, err := w.extent(ctx, x)
		if hurt = hurt || h; err != nil {
			return hurt, err
		}
	}
	if !hurt {
		w.whole[id] = struct{}{}
	}
	return hurt, nil
}

func (w *lossScan) entry(ctx context.Context, s *Snapshot, e *tree.Entry, dir string, below func(chunk.ID, tree.PageKind, string) error) (hurt bool, err error) {
	path := join(dir, e)
	if err := below(e.XattrPage, tree.XattrPage, path); err != nil {
		return false, err
	}
	if err := below(e.Root, tree.DirPage, path); err != nil {
		return false, err
	}
	if !e.Recipe.IsZero() {
		if hurt, err = w.page(ctx, s, e.Recipe, tree.RecipePage, path); err != nil {
			return hurt, err
		}
	}
	for _, x := range e.Extents {
		h, err := w.extent(ctx, x)
		if hurt = hurt || h; err != nil {
			return hurt, err
		}
	}
	if hurt && w.file != nil {
		return hurt, w.file(ctx, s, path, e)
	}
	return hurt, nil
}

// join is the path of a directory's entry: "" for the root page, "." for the
// root.
func join(dir string, e *tree.Entry) string {
	switch {
	case dir == "" && e.Kind == tree.Dir && e.Name == tree.RootName:
		return "."
	case dir == "" || dir == ".":
		return e.Name
	}
	return dir + "/" + e.Name
}

func (w *lossScan) extent(ctx context.Context, x tree.Extent) (lost bool, err error) {
	if x.Kind != tree.Data || w.p.held(x.ID) {
		return false, nil
	}
	if _, back := w.p.back[x.ID]; back {
		return false, nil
	}
	held, known := w.held[x.ID]
	if !known {
		if held, err = w.p.readable(ctx, x.ID); err != nil {
			return false, err
		}
		w.held[x.ID] = held
	}
	if !held {
		w.lost.chunks[x.ID] = x.Len
	}
	return !held, nil
}

// readable reports whether a data chunk can be read from anywhere.
func (p *repairer) readable(ctx context.Context, id chunk.ID) (bool, error) {
	_, err := p.r.store.Data(ctx, id)
	if err != nil && !gone(err) {
		return false, err
	}
	return err == nil, nil
}

// page returns a page, decoded and as it is.
func (p *repairer) page(ctx context.Context, id chunk.ID, kind tree.PageKind) (*tree.Page, []byte, error) {
	b, ok := p.pages[id]
	if !ok {
		var err error
		if b, err = p.r.store.Page(ctx, id); err != nil {
			if gone(err) {
				if serr := p.suspect(ctx, id, err); serr != nil {
					return nil, nil, serr
				}
			}
			return nil, nil, err
		}
	}
	pg, err := tree.ParsePage(b)
	if err == nil && pg.Kind != kind {
		err = fmt.Errorf("page %s is of kind %d, not %d: %w", id, pg.Kind, kind, chunk.ErrCorrupt)
	}
	if errors.Is(err, tree.ErrVersion) {
		err = fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return pg, b, err
}
