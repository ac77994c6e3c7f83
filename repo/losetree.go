package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// put stores a page, unless it is known.
func (w *rewriter) put(b []byte) (chunk.ID, error) {
	id := w.p.r.k.Tree.Sum(b)
	if w.s == nil {
		return id, nil
	}
	_, err := w.meta.Put(id, b)
	return id, err
}

// lose notes that part of a path is lost.
func (w *rewriter) lose(path string, bytes uint64, what string) {
	w.n++
	text := fmt.Sprintf("%q: %s", path, what)
	if len(w.lost.Paths) < maxLostPaths {
		w.lost.Paths = append(w.lost.Paths, text)
	}
	w.p.report(RepairStep{Do: RepairLost, Snapshot: w.snap, Path: path, Bytes: bytes, Err: errors.New(what)})
}

// entry carries over what an entry refers to.
func (w *rewriter) entry(ctx context.Context, e *tree.Entry, path string) error {
	if !e.XattrPage.IsZero() {
		_, b, err := w.p.page(ctx, e.XattrPage, tree.XattrPage)
		if err == nil {
			_, err = w.put(b)
		} else if gone(err) {
			e.XattrPage, e.LostXattrs, err = chunk.ID{}, true, nil
			w.lost.Xattrs++
			w.lose(path, 0, "extended attributes")
		}
		if err != nil {
			return err
		}
	}
	switch e.Kind {
	case tree.Dir:
		return w.dir(ctx, e, path)
	case tree.File:
		return w.file(ctx, e, path)
	}
	return nil
}

// dir carries a directory over.
func (w *rewriter) dir(ctx context.Context, e *tree.Entry, path string) error {
	if e.Root.IsZero() {
		return nil
	}
	// With names lost, a hard link in here may lead to one of them.
	if _, ok := w.whole[e.Root]; ok && !w.names {
		return nil
	}
	if e.Scope && path != "." {
		w.scopes = append(w.scopes, scope{path, e.Root, map[string]string{}})
		defer func() { w.scopes = w.scopes[:len(w.scopes)-1] }()
	}
	old, before := *e, w.n
	dw := tree.NewDirWriter(w.put)
	names := uint64(0)
	err := w.leaves(ctx, e.Root, tree.DirPage, -1, func(pg *tree.Page) error {
		for i := range pg.Entries {
			c := pg.Entries[i]
			if err := w.entry(ctx, &c, join(path, &c)); err != nil {
				return err
			}
			if err := w.link(ctx, &c, join(path, &c)); err != nil {
				return err
			}
			if err := dw.Add(&c); err != nil {
				return err
			}
		}
		return ctx.Err()
	}, func(r *tree.Ref) error {
		n, below := e.Children, e.Below
		if r != nil {
			n, below = r.Items, r.Below
		}
		names += n
		w.lose(path, below.Bytes, fmt.Sprintf("%d names, with all that is below them: %d files of %d bytes", n, below.Files, below.Bytes))
		return nil
	})
	if err != nil {
		return err
	}
	if err := dw.Finish(e); err != nil {
		return err
	}
	if names > 0 {
		e.LostNames = true
		w.lost.Dirs++
		w.lost.Names += names
	}
	if w.n == before && e.Root == old.Root {
		w.whole[old.Root] = struct{}{}
	}
	return nil
}

// leaves calls do for the leaves of a list, in order, and lost for what of it
// cannot be read: a reference, or nil for the list's root.
func (w *rewriter) leaves(ctx context.Context, id chunk.ID, kind tree.PageKind, level int, do func(*tree.Page) error, lost func(*tree.Ref) error) error {
	pg, _, err := w.p.page(ctx, id, kind)
	if err == nil && level >= 0 && pg.Level != level {
		err = fmt.Errorf("page %s is of level %d, not %d: %w", id, pg.Level, level, chunk.ErrCorrupt)
	}
	if err != nil {
		if level < 0 && gone(err) {
			return lost(nil)
		}
		return err
	}
	if pg.Level == 0 {
		return do(pg)
	}
	for i := range pg.Refs {
		// What do and lost say is not the page's damage.
		var inner error
		err := w.leaves(ctx, pg.Refs[i].ID, kind, pg.Level-1,
			func(pg *tree.Page) error { inner = do(pg); return inner },
			func(r *tree.Ref) error { inner = lost(r); return inner })
		switch {
		case inner != nil:
			return inner
		case err != nil && gone(err):
			err = lost(&pg.Refs[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// file carries the contents of a file over.
func (w *rewriter) file(ctx context.Context, e *tree.Entry, path string) error {
	if _, ok := w.whole[e.Recipe]; ok {
		return nil
	}
	recipe, before := e.Recipe, w.n
	rw := tree.NewRecipeWriter(w.put)
	bytes := uint64(0)
	gap := func(off, n int64, end tree.End) error {
		bytes += uint64(n)
		w.lose(path, uint64(n), fmt.Sprintf("%d bytes at %d", n, off))
		return rw.Add(tree.Extent{Len: n, Kind: tree.Lost, End: end})
	}
	add := func(xs []tree.Extent) error {
		for _, x := range xs {
			ok, err := w.chunk(ctx, x)
			if err != nil {
				return err
			}
			if !ok {
				err = gap(rw.Size(), x.Len, x.End)
			} else {
				err = rw.Add(x)
			}
			if err != nil {
				return err
			}
		}
		return ctx.Err()
	}
	var err error
	if recipe.IsZero() {
		err = add(e.Extents)
	} else {
		err = w.leaves(ctx, recipe, tree.RecipePage, -1, func(pg *tree.Page) error { return add(pg.Extents) }, func(r *tree.Ref) error {
			if r == nil {
				return gap(0, e.Size, tree.EndFile)
			}
			return gap(rw.Size(), int64(r.Below.Bytes), tree.EndSource)
		})
	}
	if err != nil {
		return err
	}
	if bytes > 0 {
		w.lost.Files++
		w.lost.Bytes += bytes
	}
	if err := rw.Finish(e); err != nil {
		return err
	}
	if w.n == before && !recipe.IsZero() && e.Recipe == recipe {
		w.whole[recipe] = struct{}{}
	}
	return nil
}

// chunk makes sure that a chunk has a place to lean on; false: it is lost.
func (w *rewriter) chunk(ctx context.Context, x tree.Extent) (bool, error) {
	if x.Kind != tree.Data {
		return true, nil
	}
	if w.s == nil {
		if _, back := w.p.back[x.ID]; back || w.p.held(x.ID) {
			return true, nil
		}
		return w.p.readable(ctx, x.ID)
	}
	if known, err := w.s.Writer.Known(x.ID); known || err != nil {
		return known, err
	}
	b, err := w.p.r.store.Data(ctx, x.ID)
	if err != nil {
		if gone(err) {
			return false, nil
		}
		return false, err
	}
	_, err = w.data.Put(x.ID, b)
	return true, err
}

// link sees that a hard link does not lead to a name that is lost: the first
// name that is left takes its place.
func (w *rewriter) link(ctx context.Context, e *tree.Entry, path string) error {
	if e.Link == "" || !w.names {
		return nil
	}
	sc := &w.scopes[len(w.scopes)-1]
	dir, there := sc.root, true
	for name := range strings.SplitSeq(e.Link, "/") {
		next, err := w.lookup(ctx, dir, name)
		if err != nil {
			return err
		}
		if there = next != nil; !there {
			break
		}
		dir = next.Root
	}
	if there {
		return nil
	}
	first, ok := sc.first[e.Link]
	if !ok {
		sc.first[e.Link] = strings.TrimPrefix(path, sc.path+"/")
	}
	e.Link = first
	return nil
}

// lookup finds a name in a stored directory; nil if it is not there, or lost.
func (w *rewriter) lookup(ctx context.Context, dir chunk.ID, name string) (*tree.Entry, error) {
	for !dir.IsZero() {
		pg, _, err := w.p.page(ctx, dir, tree.DirPage)
		if err != nil {
			if gone(err) {
				err = nil
			}
			return nil, err
		}
		dir = chunk.ID{}
		if i, ok := slices.BinarySearchFunc(pg.Entries, name, func(e tree.Entry, name string) int { return strings.Compare(e.Name, name) }); ok {
			return &pg.Entries[i], nil
		}
		if i, _ := slices.BinarySearchFunc(pg.Refs, name, func(r tree.Ref, name string) int { return strings.Compare(r.Last, name) }); i < len(pg.Refs) {
			dir = pg.Refs[i].ID
		}
	}
	return nil, nil
}

// losesNames reports whether pages of directories are lost.
func (w *rewriter) losesNames(ctx context.Context, id chunk.ID, seen map[chunk.ID]struct{}) (bool, error) {
	if _, ok := seen[id]; ok || id.IsZero() {
		return false, nil
	}
	seen[id] = struct{}{}
	pg, _, err := w.p.page(ctx, id, tree.DirPage)
	if err != nil {
		if gone(err) {
			return true, nil
		}
		return false, err
	}
	for i := range pg.Refs {
		if lost, err := w.losesNames(ctx, pg.Refs[i].ID, seen); lost || err != nil {
			return lost, err
		}
	}
	for i := range pg.Entries {
		if lost, err := w.losesNames(ctx, pg.Entries[i].Root, seen); lost || err != nil {
			return lost, err
		}
	}
	return false, ctx.Err()
}

// witness carries the witness over, if it is whole: the next snapshot does
// without, and reads more.
func (w *rewriter) witness(ctx context.Context) (PageID, error) {
	if w.snap.Witness.IsZero() {
		return PageID{}, nil
	}
	err := w.witnessPage(ctx, w.snap.Witness.ID)
	if err == nil {
		return w.snap.Witness, nil
	}
	if gone(err) {
		err = nil
	}
	return PageID{}, err
}

func (w *rewriter) witnessPage(ctx context.Context, id chunk.ID) error {
	if _, ok := w.whole[id]; ok || id.IsZero() {
		return nil
	}
	pg, b, err := w.p.page(ctx, id, tree.WitnessPage)
	if err != nil {
		return err
	}
	for i := range pg.Refs {
		if err := w.witnessPage(ctx, pg.Refs[i].ID); err != nil {
			return err
		}
	}
	for i := range pg.Witness {
		if err := w.witnessPage(ctx, pg.Witness[i].Root); err != nil {
			return err
		}
	}
	if _, err := w.put(b); err != nil {
		return err
	}
	w.whole[id] = struct{}{}
	return nil
}
