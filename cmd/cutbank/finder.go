package main

import (
	"context"
	"fmt"
	"iter"
	"math/bits"
	"path"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// finder walks the trees of many snapshots as one: at each path it goes once
// through each distinct directory, told by the ID of its pages, however many
// snapshots have it. It holds the directories on its way and nothing of what it
// found; see inViews for what it finds in views.
type finder struct {
	a     *app
	ctx   context.Context
	get   func(context.Context, chunk.ID) ([]byte, error)
	pages *snapfs.Cache // for what has a view
	w     *wanted
	snaps []*repo.Snapshot
	bad   failures

	paths, versions int
}

// snapSet is a set of snapshots, by their places in the list.
type snapSet []uint64

func newSnapSet(n int) snapSet { return make(snapSet, (n+63)/64) }

func (s snapSet) add(i int)      { s[i/64] |= 1 << (i % 64) }
func (s snapSet) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }

// with returns the union. Sets that entries have are shared, and not changed.
func (s snapSet) with(t snapSet) snapSet {
	u := slices.Clone(s)
	for i := range u {
		u[i] |= t[i]
	}
	return u
}

// first returns the first snapshot in a set that is not empty.
func (s snapSet) first() int {
	i := slices.IndexFunc(s, func(w uint64) bool { return w != 0 })
	return i*64 + bits.TrailingZeros64(s[i])
}

func (s snapSet) count() int {
	n := 0
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// held is an entry, and the snapshots that have it.
type held struct {
	e   *tree.Entry
	set snapSet
}

func (f *finder) run() error {
	var roots []held
	byPage := map[chunk.ID]int{}
	var views [][]int
	byView := map[string]int{}
	for i, s := range f.snaps {
		k, _, err := f.a.viewOf(s)
		if err != nil {
			f.bad.add(f.a, snapshotName(s), err)
			continue
		}
		if k != nil {
			same := s.Tree.ID.String() + string(s.System)
			at, ok := byView[same]
			if !ok {
				at, views = len(views), append(views, nil)
				byView[same] = at
			}
			views[at] = append(views[at], i)
			continue
		}
		at, ok := byPage[s.Tree.ID]
		if !ok {
			e, err := f.root(s)
			if f.ctx.Err() != nil {
				return f.ctx.Err()
			}
			if err != nil {
				f.bad.add(f.a, snapshotName(s), err)
			}
			at = len(roots)
			roots = append(roots, held{e, newSnapSet(len(f.snaps))})
			byPage[s.Tree.ID] = at
		}
		roots[at].set.add(i)
	}
	roots = slices.DeleteFunc(roots, func(h held) bool { return h.e == nil })
	if err := f.below("/", 0, roots); err != nil {
		return err
	}
	return f.inViews(views)
}

func (f *finder) root(s *repo.Snapshot) (*tree.Entry, error) {
	for e, err := range f.entries(s.Tree.ID, -1) {
		if err == nil && e.Kind != tree.Dir {
			err = fmt.Errorf("page %s is no root of a tree: %w", s.Tree.ID, chunk.ErrCorrupt)
		}
		return e, err
	}
	return nil, fmt.Errorf("the record names no tree: %w", chunk.ErrCorrupt)
}

// list yields what a directory holds, as entries does.
func (f *finder) list(dir held) iter.Seq2[held, error] {
	return func(yield func(held, error) bool) {
		for e, err := range f.entries(dir.e.Root, -1) {
			if !yield(held{e, dir.set}, err) {
				return
			}
		}
	}
}

// entries yields a directory's entries. A page that cannot be read is an error
// in their midst, and what stands behind it comes all the same. Level -1 is any.
func (f *finder) entries(id chunk.ID, level int) iter.Seq2[*tree.Entry, error] {
	return func(yield func(*tree.Entry, error) bool) { f.page(id, level, yield) }
}

func (f *finder) page(id chunk.ID, level int, yield func(*tree.Entry, error) bool) bool {
	b, err := f.get(f.ctx, id)
	var pg *tree.Page
	if err == nil {
		pg, err = tree.ParsePage(b)
	}
	if err == nil && (pg.Kind != tree.DirPage || level >= 0 && pg.Level != level) {
		err = fmt.Errorf("page %s is of another kind or level: %w", id, chunk.ErrCorrupt)
	}
	if err != nil {
		return yield(nil, err) && f.ctx.Err() == nil
	}
	for i := range pg.Entries {
		if !yield(&pg.Entries[i], nil) {
			return false
		}
	}
	for i := range pg.Refs {
		if !f.page(pg.Refs[i].ID, pg.Level-1, yield) {
			return false
		}
	}
	return true
}

// below goes through what lies in the directories at one path, depth levels
// down.
func (f *finder) below(dir string, depth int, at []held) error {
	dirs := distinct(at)
	if len(dirs) == 1 { // as nearly everywhere
		for h, err := range f.list(dirs[0]) {
			if err != nil {
				if err = f.failed(dir, dirs[0], err); err != nil {
					return err
				}
				continue
			}
			if err := f.name(dir, depth, []held{h}); err != nil {
				return err
			}
		}
		return nil
	}
	return f.merged(dir, depth, dirs)
}

func (f *finder) failed(dir string, d held, err error) error {
	if f.ctx.Err() != nil {
		return f.ctx.Err()
	}
	for _, r := range spans(f.snaps, d.set) {
		f.bad.add(f.a, dir, fmt.Errorf("in %s: %w", f.spanText(r), err))
	}
	return nil
}

// distinct joins directories with the same pages; empty ones are left out.
func distinct(at []held) []held {
	var dirs []held
	byRoot := map[chunk.ID]int{}
	for _, h := range at {
		if h.e.Kind != tree.Dir || h.e.Root.IsZero() {
			continue
		}
		if i, ok := byRoot[h.e.Root]; ok {
			dirs[i].set = dirs[i].set.with(h.set)
			continue
		}
		byRoot[h.e.Root] = len(dirs)
		dirs = append(dirs, h)
	}
	return dirs
}

// merged goes through several directories side by side, name by name.
func (f *finder) merged(dir string, depth int, dirs []held) error {
	type side struct {
		next func() (held, error, bool)
		h    held // none: no entry
	}
	sides := make([]side, len(dirs))
	advance := func(i int) error {
		for {
			h, err, ok := sides[i].next()
			if sides[i].h = h; err == nil || !ok {
				return f.ctx.Err()
			}
			if err := f.failed(dir, dirs[i], err); err != nil {
				return err
			}
		}
	}
	for i := range dirs {
		next, stop := iter.Pull2(f.list(dirs[i]))
		defer stop()
		sides[i].next = next
		if err := advance(i); err != nil {
			return err
		}
	}
	for {
		name := "" // no entry has an empty one
		for _, s := range sides {
			if s.h.e != nil && (name == "" || s.h.e.Name < name) {
				name = s.h.e.Name
			}
		}
		if name == "" {
			return nil
		}
		var same []held
		for i := range sides {
			if h := sides[i].h; h.e != nil && h.e.Name == name {
				same = append(same, h)
				if err := advance(i); err != nil {
					return err
				}
			}
		}
		if err := f.name(dir, depth, same); err != nil {
			return err
		}
	}
}

// name looks at one path, as the snapshots have it, and at what is below.
func (f *finder) name(dir string, depth int, at []held) error {
	if depth < len(f.w.within) && at[0].e.Name != f.w.within[depth] {
		return nil
	}
	if depth >= len(f.w.within)-1 { // a path is within itself
		if err := f.match(dir, at); err != nil {
			return err
		}
	}
	for _, h := range at {
		if h.e.Kind == tree.Dir && !h.e.Root.IsZero() {
			return f.below(path.Join(dir, at[0].e.Name), depth+1, at)
		}
	}
	return nil
}

// version tells when two entries of one path are the same version.
type version struct {
	kind    tree.Kind
	mtime   tree.Time
	size    int64
	rdev    uint64
	target  string
	content chunk.ID
}

func versionOf(e *tree.Entry) version {
	return version{e.Kind, e.Mtime, e.Size, e.Rdev, e.Target, contentID(e)}
}

// contentID is equal for files of equal contents, as far as they were cut
// equally: the root of the recipe, or the hash of a short one.
func contentID(e *tree.Entry) chunk.ID {
	if len(e.Extents) == 0 {
		return e.Recipe
	}
	var b []byte
	for _, x := range e.Extents {
		b = fmt.Appendf(b, "%d %d ", x.Kind, x.Len)
		b = append(b, x.ID[:]...)
	}
	return chunk.Digest(b)
}

// match prints the versions of a path that are wanted.
func (f *finder) match(dir string, at []held) error {
	var found []held
	byVersion := map[version]int{}
	for _, h := range at {
		if !f.w.fits(dir, h.e) {
			continue
		}
		v := versionOf(h.e)
		if i, ok := byVersion[v]; ok {
			found[i].set = found[i].set.with(h.set)
			continue
		}
		byVersion[v] = len(found)
		found = append(found, h)
	}
	if len(found) == 0 {
		return nil
	}
	slices.SortStableFunc(found, func(a, b held) int { return a.e.Mtime.Compare(b.e.Mtime) })
	return f.tell(path.Join(dir, found[0].e.Name), found)
}

// tell prints the versions of a path.
func (f *finder) tell(p string, versions []held) error {
	f.paths++
	f.versions += len(versions)
	f.a.printf("%s\n", quote(p))
	for _, h := range versions {
		if err := f.print(p, h); err != nil {
			return err
		}
	}
	return nil
}

// span is snapshots of one name that follow each other.
type span struct{ first, last, count int }

func spans(snaps []*repo.Snapshot, set snapSet) []span {
	var list []span
	for i := range snaps {
		if !set.has(i) {
			continue
		}
		if n := len(list); n > 0 && list[n-1].last == i-1 && snaps[i-1].Name == snaps[i].Name {
			list[n-1].last = i
			list[n-1].count++
			continue
		}
		list = append(list, span{i, i, 1})
	}
	return list
}

func (f *finder) spanText(r span) string {
	text := snapshotName(f.snaps[r.first])
	if r.count > 1 {
		text += fmt.Sprintf(" .. %s (%d)", f.snaps[r.last].Dir, r.count)
	}
	return text
}

func (f *finder) print(p string, h held) error {
	ranges := spans(f.snaps, h.set)
	if f.a.json {
		var list []object
		for _, r := range ranges {
			list = append(list, object{"name": f.snaps[r.first].Name, "first": f.snaps[r.first].ID.String(), "first_dir": f.snaps[r.first].Dir,
				"last": f.snaps[r.last].ID.String(), "last_dir": f.snaps[r.last].Dir, "count": r.count})
		}
		o := nodeObject(p, &h.e.Attr)
		o["snapshots"], o["count"] = list, h.set.count()
		return f.a.emit("match", o)
	}
	size := ""
	if h.e.Kind == tree.File {
		size = bytesText(uint64(h.e.Size))
	}
	f.a.printf("    %s %10s  %s", modeText(&h.e.Attr), size, timeText(h.e.Mtime))
	for i, r := range ranges {
		if i > 0 {
			f.a.printf(",")
		}
		f.a.printf("  %s", f.spanText(r))
	}
	f.a.printf("\n")
	return nil
}
