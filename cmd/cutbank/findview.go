package main

import (
	"cmp"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// viewed is what was found in views: versions by path.
type viewed map[string]map[version]held

// inViews finds in the snapshots that have a view, each a list of those with the same
// one. A view has no pages that tell what two have in common, and is made whole: so there
// is one at a time, and what fits is kept until the last was seen.
func (f *finder) inViews(lists [][]int) error {
	found := viewed{}
	for _, same := range lists {
		set := newSnapSet(len(f.snaps))
		for _, i := range same {
			set.add(i)
		}
		root, err := f.a.root(f.ctx, f.pages, f.snaps[same[0]])
		if err == nil {
			err = f.gather(found, "/", 0, root, set)
		}
		if f.ctx.Err() != nil {
			return f.ctx.Err()
		}
		if err != nil {
			for _, r := range spans(f.snaps, set) {
				f.bad.add(f.a, f.spanText(r), err)
			}
		}
	}
	byPart := func(a, b string) int { return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")) }
	for _, p := range slices.SortedFunc(maps.Keys(found), byPart) {
		versions := slices.SortedFunc(maps.Values(found[p]), func(a, b held) int {
			return cmp.Or(a.e.Mtime.Compare(b.e.Mtime), cmp.Compare(a.set.first(), b.set.first()))
		})
		if err := f.tell(p, versions); err != nil {
			return err
		}
	}
	return nil
}

// gather adds what fits of what lies below a directory of a view.
func (f *finder) gather(found viewed, dir string, depth int, n tree.Node, set snapSet) error {
	for c, err := range n.Entries(f.ctx, 0) {
		if err != nil {
			return err
		}
		e := &tree.Entry{Attr: *c.Attr()}
		if depth < len(f.w.within) && e.Name != f.w.within[depth] {
			continue
		}
		p := path.Join(dir, e.Name)
		if depth >= len(f.w.within)-1 && f.w.fits(dir, e) {
			v, err := f.versionIn(c, e)
			if err != nil {
				f.bad.add(f.a, p, err)
			}
			if found[p] == nil {
				found[p] = map[version]held{}
			}
			have, ok := found[p][v]
			if !ok {
				have = held{e, set}
			}
			found[p][v] = held{have.e, have.set.with(set)}
		}
		if e.Kind == tree.Dir {
			if err := f.gather(found, p, depth+1, c, set); err != nil {
				return err
			}
		}
	}
	return f.ctx.Err()
}

// versionIn is versionOf in a view, which knows no chunks: the file is read.
func (f *finder) versionIn(n tree.Node, e *tree.Entry) (version, error) {
	v := versionOf(e)
	if e.Kind != tree.File {
		return v, nil
	}
	digest := chunk.NewDigest()
	err := copyNode(f.ctx, n, digest.Write)
	if errors.Is(err, syscall.ENODATA) {
		return v, nil // as it was captured
	}
	digest.Sum(v.content[:0])
	return v, err
}
