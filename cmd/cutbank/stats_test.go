package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

func TestRefSetIsLikeAMap(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	ids := make([]chunk.ID, 5000)
	for i := range ids {
		ids[i] = chunk.Digest([]byte{byte(i), byte(i >> 8)})
	}
	s, want := newRefSet(), map[chunk.ID]uint16{}
	for range 40000 {
		id, group := ids[rnd.IntN(len(ids))], uint16(rnd.IntN(3))
		change, was := s.refer(id, group)
		g, known := want[id]
		switch {
		case !known:
			want[id] = group
			if change != refNew {
				t.Fatalf("%s is new, but %d", id.Short(), change)
			}
		case g == group || g == sharedGroup:
			if change != refKnown {
				t.Fatalf("%s is known, but %d", id.Short(), change)
			}
		default:
			want[id] = sharedGroup
			if change != refShared || was != g {
				t.Fatalf("%s was of group %d, but %d of %d", id.Short(), g, change, was)
			}
		}
	}
	if s.n != len(want) {
		t.Errorf("%d keys, want %d", s.n, len(want))
	}
}

func TestShareOf(t *testing.T) {
	for _, c := range []struct {
		length, stored, plain uint32
		want                  uint64
	}{{100, 50, 200, 25}, {0, 50, 200, 0}, {1, 1, 0, 0}, {1 << 31, 1 << 31, 1<<32 - 1, 1 << 30}, {3, 1, 2, 2}} {
		if got := shareOf(c.length, c.stored, c.plain); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// reached collects all pages and chunks of a snapshot, by plain recursion.
func (f *forest) reached(id chunk.ID, all map[chunk.ID]use, meta map[chunk.ID]bool) {
	p, ok := f.pages[id]
	if !ok {
		f.t.Fatalf("page %s is not there", id)
	}
	pg, err := tree.ParsePage(p)
	must(f.t, err)
	all[id] = use{1, uint64(len(p)), shareOf(uint32(len(p)), uint32(len(p)), uint32(2*len(p)))}
	meta[id] = true
	data := func(xs []tree.Extent) {
		for _, x := range xs {
			all[x.ID] = use{1, leafChunk, leafChunk / 2}
		}
	}
	data(pg.Extents)
	for _, r := range pg.Refs {
		f.reached(r.ID, all, meta)
	}
	for _, e := range pg.Entries {
		data(e.Extents)
		for _, next := range []chunk.ID{e.Root, e.Recipe} {
			if !next.IsZero() {
				f.reached(next, all, meta)
			}
		}
	}
}

func TestMarkerCountsWhatGroupsHaveAlone(t *testing.T) {
	for seed := range uint64(6) {
		f := newForest(t)
		f.grow(seed, 8)
		rnd := rand.New(rand.NewPCG(seed, 1))
		groups := make([]uint16, len(f.snaps))
		m := &marker{page: f.get, lookup: f.lookup, refs: newRefSet(), alone: make([]uses, 3)}
		holders, sizes, meta := map[chunk.ID]map[uint16]bool{}, map[chunk.ID]use{}, map[chunk.ID]bool{}
		for i, s := range f.snaps {
			groups[i] = uint16(rnd.IntN(3))
			must(t, m.snapshot(context.Background(), s, groups[i]))
			mine := map[chunk.ID]use{}
			f.reached(s.Tree.ID, mine, meta)
			for id, u := range mine {
				if sizes[id] = u; holders[id] == nil {
					holders[id] = map[uint16]bool{}
				}
				holders[id][groups[i]] = true
			}
		}
		var all uses
		alone := make([]uses, 3)
		add := func(u *uses, id chunk.ID) {
			if meta[id] {
				u.Meta.add(sizes[id])
			} else {
				u.Data.add(sizes[id])
			}
		}
		for id, by := range holders {
			add(&all, id)
			for g := range by {
				if len(by) == 1 {
					add(&alone[g], id)
				}
			}
		}
		if m.all != all {
			t.Errorf("all: %+v, want %+v", m.all, all)
		}
		for g := range alone {
			if m.alone[g] != alone[g] {
				t.Errorf("groups %v, group %d: %+v, want %+v", groups, g, m.alone[g], alone[g])
			}
		}
		for id, n := range f.reads {
			if n > 2 {
				t.Errorf("page %s was read %d times", id.Short(), n)
			}
		}
	}
}

func TestMarkerNamesTheSnapshotThatIsDamaged(t *testing.T) {
	f := newForest(t)
	f.add("web", map[string]leaf{"d/x": {1, nil}})
	delete(f.pages, f.dir("d", map[string]leaf{"x": {1, nil}}).Root)
	m := &marker{page: f.get, lookup: f.lookup, refs: newRefSet(), alone: make([]uses, 1)}
	err := m.snapshot(context.Background(), f.snaps[0], 0)
	if !errors.Is(err, chunk.ErrMissing) || exitCode(err) != 3 {
		t.Errorf("%v", err)
	}
}

func TestPacksCountEachChunkOnce(t *testing.T) {
	id := func(n byte) chunk.ID { return chunk.Digest([]byte{n}) }
	trailer := func(kind pack.Kind, ids ...byte) *pack.Trailer {
		f := pack.Frame{Stored: 500, Plain: uint32(1000 * len(ids))}
		for _, n := range ids {
			f.Chunks = append(f.Chunks, pack.Chunk{ID: id(n), Len: 1000})
		}
		return &pack.Trailer{Header: pack.Header{Kind: kind}, Frames: []pack.Frame{f}}
	}
	var s repoSums
	refs := newRefSet()
	for _, tr := range []*pack.Trailer{trailer(pack.Data, 1, 2), trailer(pack.Data, 2, 3, 4, 5), trailer(pack.Meta, 6)} {
		s.countPack(tr, refs)
	}
	if want := (use{5, 5000, 250 + 250 + 3*125}); s.unique.Data != want || s.copies != 125 || s.unique.Meta != (use{1, 1000, 500}) {
		t.Errorf("%+v, %d bytes of copies", s.unique, s.copies)
	}
}
