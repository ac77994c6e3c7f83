package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// trees walks the trees of the snapshots. A page is walked once, however many
// snapshots share it, unless something below it is damaged: then each snapshot
// is told which of its paths are.
func (c *checker) trees(ctx context.Context) error {
	snaps := c.opt.Snapshots
	if snaps == nil {
		var err error
		if snaps, err = c.r.Snapshots(ctx); err != nil && !isDamage(err) && !unproven(err) {
			return err // damaged records were named by objects
		}
	}
	c.p.SnapshotsTotal.Store(uint64(len(snaps)))
	for _, s := range snaps {
		w := treeChecker{checker: c, ctx: ctx, s: s}
		w.page(s.Tree.ID, tree.DirPage, -1, "")
		if !s.Witness.IsZero() {
			w.page(s.Witness.ID, tree.WitnessPage, -1, "(witness)")
		}
		err := w.settle()
		if err == nil {
			err = w.tell()
		}
		if err != nil {
			return err
		}
		if !w.gone {
			c.res.Snapshots++
		}
		c.p.Snapshots.Add(1)
	}
	c.res.Pages = uint64(len(c.pages))
	return ctx.Err()
}

func isDamage(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrMissing) || errors.Is(err, ErrFormat)
}

// treeChecker walks the trees of one snapshot.
type treeChecker struct {
	*checker
	ctx    context.Context
	s      *Snapshot
	doubts []doubt  // what could not be read at first
	found  []Damage // not yet reported
	gone   bool     // the snapshot was forgotten meanwhile: nothing of it matters
	err    error    // what kept it from looking
}

func (w *treeChecker) damage(id chunk.ID, path string, err error) {
	if path == "" {
		path = "."
	}
	w.found = append(w.found, Damage{Chunk: id, Path: path, Snapshot: w.s, Node: w.s.node(path), Err: err})
}

// lost is damage, unless a repair wrote it into this snapshot.
func (w *treeChecker) lost(path, what string) {
	w.damage(chunk.ID{}, path, fmt.Errorf("%s: %w", what, chunk.ErrMissing))
	w.found[len(w.found)-1].Known = w.s.Repairs != nil
}

// node is whose files are at path.
func (s *Snapshot) node(path string) string {
	top, _, _ := strings.Cut(path, "/")
	for i := range s.Members {
		if s.Members[i].Name == top {
			return top
		}
	}
	return cmp.Or(s.Host, s.Name)
}

// page walks a page and what is below; true: something there is damaged, or in
// doubt.
func (w *treeChecker) page(id chunk.ID, kind tree.PageKind, level int, path string) bool {
	if w.gone || w.ctx.Err() != nil {
		return true
	}
	if got, seen := w.pages[keyOf(id)]; seen && got&pageHurt == 0 {
		return false
	}
	w.p.Pages.Add(1)
	pg, err := w.read(id, kind, level)
	if err != nil {
		w.pages[keyOf(id)] = pageHurt | pageUnread
		w.doubt(doubt{page: true, id: id, kind: kind, level: level, path: path}, err)
		return true
	}
	return w.enter(id, pg, path)
}

func (w *treeChecker) read(id chunk.ID, kind tree.PageKind, level int) (*tree.Page, error) {
	b, err := w.r.store.Page(w.ctx, id)
	if err != nil {
		return nil, err
	}
	pg, err := tree.ParsePage(b)
	if err == nil && (pg.Kind != kind || level >= 0 && pg.Level != level) {
		err = fmt.Errorf("page of another kind or level: %w", chunk.ErrCorrupt)
	}
	return pg, err
}

// enter walks what is below a page.
func (w *treeChecker) enter(id chunk.ID, pg *tree.Page, path string) bool {
	hurt := w.items(id, pg, path)
	got := w.sum(sumsOf(pg))
	if hurt {
		got |= pageHurt
	}
	w.pages[keyOf(id)] = got
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
		hurt = w.promised(e.Recipe, sums{anyItems, tree.Totals{Bytes: uint64(e.Size)}}, path) || hurt
	}
	if !e.Root.IsZero() {
		hurt = w.page(e.Root, tree.DirPage, -1, path) || hurt
		hurt = w.promised(e.Root, sums{e.Children, e.Below}, path) || hurt
	}
	if e.LostNames {
		w.lost(path, "names in it were lost")
		hurt = true
	}
	if e.LostXattrs {
		w.lost(path, "its extended attributes were lost")
		hurt = true
	}
	for _, x := range e.Extents {
		if w.extent(x, path) {
			hurt = true
		}
	}
	return hurt
}
