package main

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// use is what chunks take.
type use struct {
	Chunks uint64 // how many, each counted once
	Plain  uint64 // their bytes
	Stored uint64 // what they take in packs, as their share of their frames
}

func (u *use) add(v use) { u.Chunks += v.Chunks; u.Plain += v.Plain; u.Stored += v.Stored }
func (u *use) sub(v use) { u.Chunks -= v.Chunks; u.Plain -= v.Plain; u.Stored -= v.Stored }

func (u use) object() object {
	return object{"chunks": u.Chunks, "plain": u.Plain, "stored": u.Stored}
}

// uses sets files' data apart from the pages of trees.
type uses struct{ Data, Meta use }

func (u uses) total() use {
	t := u.Data
	t.add(u.Meta)
	return t
}

// shareOf is a chunk's part of what its frame takes in the pack.
func shareOf(length, stored, plain uint32) uint64 {
	if plain == 0 {
		return 0
	}
	return (uint64(stored)*uint64(length) + uint64(plain)/2) / uint64(plain)
}

// marker walks the trees of snapshots, in groups, and sums up what each group
// has for itself. What a group has seen it does not walk again: a page is read
// once for the first group that has it, and once more for the second, and never
// for a third.
type marker struct {
	page   func(context.Context, chunk.ID) ([]byte, error)
	lookup func(chunk.ID, []pack.Location) ([]pack.Location, error)
	refs   *refSet
	all    uses   // of all groups, each chunk counted once
	alone  []uses // of each group: what no other refers to

	plain, pages atomic.Uint64 // progress
}

func newMarker(r *repo.Repo, groups int) *marker {
	return &marker{page: r.Store().Page, lookup: r.Index().Lookup, refs: newRefSet(), alone: make([]uses, groups)}
}

// snapshot marks all that a snapshot refers to as its group's.
func (m *marker) snapshot(ctx context.Context, s *repo.Snapshot, group uint16) error {
	err := m.tree(ctx, s.Tree.ID, group)
	if err == nil && !s.Witness.IsZero() {
		err = m.tree(ctx, s.Witness.ID, group)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("snapshot %s: %w; `cutbank verify` tells more", snapshotName(s), err)
	}
	return err
}

// tree marks a page and what is below it.
func (m *marker) tree(ctx context.Context, id chunk.ID, group uint16) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if known, err := m.refer(id, group, true); known || err != nil {
		return err
	}
	b, err := m.page(ctx, id)
	if err != nil {
		return err
	}
	m.pages.Add(1)
	var pages []chunk.ID
	var bad error
	err = tree.References(b, func(id chunk.ID) { pages = append(pages, id) }, func(id chunk.ID) {
		if _, e := m.refer(id, group, false); bad == nil {
			bad = e
		}
	})
	if err != nil {
		return fmt.Errorf("page %s: %w", id, err)
	}
	if bad != nil {
		return bad
	}
	for _, id := range pages {
		if err := m.tree(ctx, id, group); err != nil {
			return err
		}
	}
	return nil
}

// refer marks one chunk or page and reports whether that changed nothing.
func (m *marker) refer(id chunk.ID, group uint16, meta bool) (known bool, err error) {
	change, was := m.refs.refer(id, group)
	if change == refKnown {
		return true, nil
	}
	u, err := m.use(id)
	if err != nil {
		return false, err
	}
	kind := func(u *uses) *use {
		if meta {
			return &u.Meta
		}
		return &u.Data
	}
	if change == refShared {
		kind(&m.alone[was]).sub(u)
		return false, nil
	}
	kind(&m.alone[group]).add(u)
	kind(&m.all).add(u)
	m.plain.Add(u.Plain)
	return false, nil
}

// use tells what a chunk takes. Copies of it, where there are some, do not
// count.
func (m *marker) use(id chunk.ID) (use, error) {
	var room [4]pack.Location
	locs, err := m.lookup(id, room[:0])
	if err != nil {
		return use{}, err
	}
	if len(locs) == 0 {
		return use{}, fmt.Errorf("chunk %s is in no pack: %w", id, chunk.ErrMissing)
	}
	l := locs[0]
	return use{1, uint64(l.Len), shareOf(l.Len, l.Stored, l.Plain)}, nil
}
