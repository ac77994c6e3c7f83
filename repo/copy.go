package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// OriginOf names what a snapshot of this repository is in all repositories: two
// snapshots of equal origin are the same one, copied or not. So copying can go
// back and forth, and round in circles, without making anything twice. Of a writer
// who is not trusted (see Trusts) each snapshot is one of its own: one that says to
// be another's copy would keep that from being copied.
func (r *Repo) OriginOf(s *Snapshot) Origin {
	if s.Origin != nil && r.Trusts(s) {
		return *s.Origin
	}
	return Origin{r.cfg.Repo, s.ID}
}

// Origins returns snapshots of this repository by their origin. Of several with
// one origin, as two copiers at once can make them, it is always the same one.
func (r *Repo) Origins(snaps []*Snapshot) map[Origin]*Snapshot {
	m := make(map[Origin]*Snapshot, len(snaps))
	for _, s := range snaps {
		o := r.OriginOf(s)
		if was := m[o]; was == nil || bytes.Compare(s.ID[:], was.ID[:]) < 0 {
			m[o] = s
		}
	}
	return m
}

// CopyRecord returns what the record of a copy of s, a snapshot of this
// repository, shall say. All that s says of itself is kept, with the tags that it
// has now. Left to the caller are Tree, Witness and the members' trees, which are
// those of this repository, and Parent and Repairs, which are empty. Signatures
// of members are left out: they are bound to s, and stand in Copied.
//
// A snapshot that was forgotten meanwhile is fs.ErrNotExist.
func (r *Repo) CopyRecord(ctx context.Context, s *Snapshot) (*Snapshot, error) {
	c := &Snapshot{Name: s.Name, Label: s.Label, Note: s.Note, Tags: slices.Clone(s.Tags), Time: s.Time, End: s.End, Host: s.Host, Program: s.Program,
		Paths: s.Paths, Exclude: s.Exclude, Tree: s.Tree, Witness: s.Witness, Totals: s.Totals, Unread: s.Unread, Problem: s.Problem, Changed: s.Changed,
		Mode: s.Mode, Data: s.Data, System: s.System, Members: slices.Clone(s.Members), Copied: s.Copied, Origin: s.Origin, Repairs: s.Repairs, Lost: s.Lost, Extra: s.Extra}
	c.Stats = Stats{New: s.Stats.New, Modified: s.Stats.Modified, Unchanged: s.Stats.Unchanged}
	for i := range c.Members {
		c.Members[i].Signature = nil
	}
	// Read in any case: it may be gone, and then its chunks may go too.
	name := "snapshots/" + s.ID.String()
	p, err := r.b.Get(ctx, name, 0, -1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	own := Origin{r.cfg.Repo, s.ID}
	if r.OriginOf(s) != own {
		c.Seen = s.Seen
		return c, nil
	}
	if was, err := r.parseRecord(name, s.ID, p); err != nil {
		return nil, err
	} else if was == nil || was.Tree != s.Tree {
		return nil, fmt.Errorf("%s is not what it was: %w", name, chunk.ErrCorrupt)
	}
	c.Copied, c.Origin = p, &own
	if s.Writer != r.k.Owner().String() {
		c.Seen = s.ModTime
	}
	// It holds the original, and must not be what a reader refuses. What the caller
	// adds takes less than the rest.
	if body, err := json.Marshal(c); err != nil || len(body) > seal.MaxRecord-64<<10 {
		return nil, errors.Join(err, fmt.Errorf("%s: a record of %d bytes leaves no room for what its copy says besides: %w", name, len(p), chunk.ErrCorrupt))
	}
	return c, nil
}

// SameSecrets reports whether equal files have equal IDs here and there: that is
// so after `init --like`.
func (r *Repo) SameSecrets(o *Repo) bool {
	a, b := r.k.Ring(), o.k.Ring()
	return bytes.Equal(a.Chunk, b.Chunk) && bytes.Equal(a.Tree, b.Tree) && r.cfg.Splitter == o.cfg.Splitter
}

// NewBytes returns about how many bytes of chunks snapshots have that others,
// known, do not have: each chunk counted once. Pages that cannot be read are left
// out. Only when ctx ends it is an error.
func (r *Repo) NewBytes(ctx context.Context, snaps, known []*Snapshot) (uint64, error) {
	seen := newLiveSet()
	var sum uint64
	count := false
	walk := func(list []*Snapshot) error {
		for _, s := range list {
			err := r.reach(ctx, seen, []PageID{s.Tree, s.Witness}, func(kind pack.Kind, id chunk.ID) error {
				if kind != pack.Data || !seen.add(pack.Data, &id) || !count {
					return nil
				}
				var room [4]pack.Location
				locs, err := r.ix.Lookup(id, room[:0])
				if err == nil && len(locs) > 0 {
					sum += uint64(locs[0].Len)
				}
				return err
			}, nil)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				r.opt.Logf("%v", err)
			}
		}
		return nil
	}
	if err := walk(known); err != nil {
		return 0, err
	}
	count = true
	err := walk(snaps)
	return sum, err
}

// reach calls met for the pages at and below the roots that seen does not have
// yet, and for every data chunk that one of these refers to, as often as it does.
// What it calls met for is marked in seen, pages only. A page comes before what is
// below it; page, if it is not nil, is then given its bytes.
func (r *Repo) reach(ctx context.Context, seen *liveSet, roots []PageID, met func(pack.Kind, chunk.ID) error, page func(chunk.ID, []byte) error) error {
	var unwalked []chunk.ID
	var err error
	add := func(id chunk.ID) {
		if err == nil && seen.add(pack.Meta, &id) {
			if err = met(pack.Meta, id); err == nil {
				unwalked = append(unwalked, id)
			}
		}
	}
	data := func(id chunk.ID) {
		if err == nil {
			err = met(pack.Data, id)
		}
	}
	for _, root := range slices.Backward(roots) {
		if !root.IsZero() {
			add(root.ID)
		}
	}
	for len(unwalked) > 0 && err == nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		id := unwalked[len(unwalked)-1]
		unwalked = unwalked[:len(unwalked)-1]
		p, perr := r.store.Page(ctx, id)
		if perr == nil && page != nil {
			perr = page(id, p)
		}
		if perr == nil {
			perr = tree.References(p, add, data)
		}
		if perr != nil {
			return fmt.Errorf("page %s: %w", id, perr)
		}
	}
	return err
}

// Holds reports whether all that a snapshot of this repository needs lies in packs
// that the session may lean on; w then leans on them. Pages that cannot be read
// are not held.
func (r *Repo) Holds(ctx context.Context, s *Session, snap *Snapshot) (bool, error) {
	missing := fmt.Errorf("not held: %w", chunk.ErrMissing)
	err := r.reach(ctx, newLiveSet(), []PageID{snap.Tree, snap.Witness}, func(_ pack.Kind, id chunk.ID) error {
		known, err := s.Writer.Known(id)
		if err == nil && !known {
			err = missing
		}
		return err
	}, nil)
	if err != nil && ctx.Err() == nil {
		r.opt.Logf("snapshot %s: %v", snap.ID, err)
		return false, nil
	}
	return err == nil, err
}
