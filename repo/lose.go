package repo

import (
	"context"
	"fmt"
	"strings"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// maxLostPaths is how many lost paths a record names.
const maxLostPaths = 100

// snapshots brings back what donors have, and then makes a new snapshot for
// each of which something stays lost.
func (p *repairer) snapshots(ctx context.Context) error {
	if err := p.records(ctx); err != nil {
		return err
	}
	all, err := p.r.Snapshots(ctx)
	if err != nil && !isDamage(err) && !unproven(err) {
		return err // damaged records were told by records
	}
	snaps := p.opt.Only
	if snaps == nil {
		snaps = all
	}
	lost, err := p.rescue(ctx, snaps)
	if err != nil {
		return err
	}
	p.res.Lost = uint64(lost.count())
	for _, s := range lost.hurt {
		if err := p.standIn(ctx, s, all); err != nil {
			return fmt.Errorf("snapshot %s: %w", s.ID, err)
		}
	}
	return nil
}

// records tells of records that cannot be read. Nothing else says what was in
// them.
func (p *repairer) records(ctx context.Context) error {
	for info, err := range p.r.b.List(ctx, "snapshots/") {
		if err != nil {
			return err
		}
		id, ok := ParseID(strings.TrimPrefix(info.Name, "snapshots/"))
		b, err := p.r.b.Get(ctx, info.Name, 0, -1)
		if err == nil && ok {
			_, err = p.r.parseRecord(info.Name, id, b)
		}
		if err != nil && gone(err) {
			p.res.Hopeless++
			p.report(RepairStep{Do: RepairHopeless, Object: info.Name, Err: err})
		} else if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// standIn makes a snapshot of what is left of s.
func (p *repairer) standIn(ctx context.Context, s *Snapshot, all []*Snapshot) error {
	w := &rewriter{p: p, snap: s, whole: map[chunk.ID]struct{}{}}
	if !p.opt.DryRun {
		var err error
		if w.s, err = p.r.begin(ctx, p.good); err != nil {
			return err
		}
		w.data, w.meta = w.s.Writer.Stream(pack.Data), w.s.Writer.Stream(pack.Meta)
	}
	rec, err := w.record(ctx)
	if w.s != nil {
		w.data.Flush()
		w.meta.Flush()
	}
	giveUp := func() {
		if w.s != nil {
			w.s.Abort(ctx)
		}
	}
	if err != nil {
		giveUp()
		if !gone(err) {
			return err
		}
		p.res.Hopeless++
		p.report(RepairStep{Do: RepairHopeless, Snapshot: s, Err: err})
		return nil
	}
	for _, o := range all {
		if o.Repairs != nil && *o.Repairs == s.ID && o.Tree == rec.Tree && o.Witness == rec.Witness {
			giveUp()
			p.report(RepairStep{Do: RepairSnapshot, Snapshot: s, New: o})
			return nil
		}
	}
	p.res.Snapshots++
	if !p.opt.DryRun {
		if err := w.s.Commit(ctx, rec); err != nil {
			return err
		}
		if err := p.marks(ctx, s, rec.ID); err != nil {
			return err
		}
	}
	p.report(RepairStep{Do: RepairSnapshot, Snapshot: s, New: rec})
	return nil
}

// marks says of the new snapshot what was said of the old one later. Its tags
// are in the record.
func (p *repairer) marks(ctx context.Context, s *Snapshot, id ID) error {
	var ms []Mark
	if s.Pinned {
		ms = append(ms, Mark{Op: "pin"})
	}
	if !s.Expires.IsZero() {
		ms = append(ms, Mark{Op: "expire", Until: s.Expires})
	}
	for _, m := range ms {
		if err := p.r.AddMark(ctx, id, m); err != nil {
			return err
		}
	}
	return nil
}

// rewriter carries the tree of a snapshot over, without what is lost. It leans
// on nothing but what its session may lean on: that the old snapshot refers to a
// chunk does not keep it, for the old one may be forgotten meanwhile.
type rewriter struct {
	p          *repairer
	snap       *Snapshot
	s          *Session // nil in a dry run
	data, meta stream
	whole      map[chunk.ID]struct{} // pages of which all is carried over, unchanged
	names      bool                  // names are lost, so hard links may lead nowhere
	scopes     []scope
	lost       Lost
	n          uint64 // how often something was lost
}

// stream is a chunkstore.Stream.
type stream interface {
	Put(id chunk.ID, p []byte) (bool, error)
	Flush()
}

// scope is a directory that the paths of hard links below count from.
type scope struct {
	path  string
	root  chunk.ID          // of its pages, as they were
	first map[string]string // names that are lost -> the first that is left of the same file
}

// record makes the new record. What is left out is reported on the way.
func (w *rewriter) record(ctx context.Context) (*Snapshot, error) {
	pg, _, err := w.p.page(ctx, w.snap.Tree.ID, tree.DirPage)
	if err == nil && (pg.Level != 0 || len(pg.Entries) != 1 || pg.Entries[0].Kind != tree.Dir) {
		err = fmt.Errorf("page %s is no root: %w", w.snap.Tree.ID, chunk.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("the root of its tree: %w", err)
	}
	root := pg.Entries[0]
	if w.names, err = w.losesNames(ctx, root.Root, map[chunk.ID]struct{}{}); err != nil {
		return nil, err
	}
	w.scopes = append(w.scopes, scope{".", root.Root, map[string]string{}})
	if err := w.entry(ctx, &root, "."); err != nil {
		return nil, err
	}
	dw := tree.NewDirWriter(w.put)
	if err := dw.Add(&root); err != nil {
		return nil, err
	}
	var page tree.Entry
	if err := dw.Finish(&page); err != nil {
		return nil, err
	}
	witness, err := w.witness(ctx)
	if err != nil {
		return nil, err
	}
	old := w.snap
	c := *old
	rec := &c
	rec.ID, rec.Dir = ID{}, ""
	rec.Label = "" // which is the old one's alone
	rec.Tree, rec.Witness, rec.Totals, rec.Stats = PageID{page.Root}, witness, root.Below, Stats{}
	rec.Repairs, rec.Lost = &old.ID, &w.lost
	rec.Note, rec.Members = "repair of "+old.ID.String(), nil
	if old.Note != "" {
		rec.Note += ": " + old.Note
	}
	for _, m := range old.Members {
		// The signature was over the old snapshot.
		m.Signature, m.Tree = nil, PageID{}
		rec.Members = append(rec.Members, m)
	}
	return rec, nil
}
