package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// RepairOptions say what to repair, and how.
type RepairOptions struct {
	Notes     bool // remove damaged marks, ledgers and forgotten records
	Index     bool // list packs again that no readable segment lists
	Packs     bool // store anew what damaged packs still hold
	Snapshots bool // look for what is lost, and make snapshots that do without it

	ReadData bool        // read every pack to find damage, not only those that are known to have some
	DryRun   bool        // change nothing
	Only     []*Snapshot // whose trees to look at; nil: all
	Donors   []Donor     // who may still have what is lost
	Progress *RepairProgress
}

// RepairProgress counts while a repair goes on; it may be read at any time.
type RepairProgress struct {
	Packs, PacksTotal, Bytes, BytesTotal, Snapshots, SnapshotsTotal atomic.Uint64
}

// What a RepairStep can be. In a dry run it is what would be done.
const (
	RepairListed   = "listed"   // a pack is listed by the index again
	RepairDropped  = "dropped"  // a damaged object that said something of others is gone
	RepairRemoved  = "removed"  // a damaged segment of the index is of no use any more
	RepairDamaged  = "damaged"  // an object is damaged, and stays as it is
	RepairSalvaged = "salvaged" // what a damaged pack still holds has other places now
	RepairHealed   = "healed"   // a pack is whole, against what was known
	RepairFound    = "found"    // a lost chunk is back
	RepairLost     = "lost"     // part of a path of a snapshot stays lost
	RepairSnapshot = "snapshot" // a new snapshot stands in for a damaged one
	RepairHopeless = "hopeless" // of a snapshot nothing can be read
)

// RepairStep is one thing that a repair found or did. What does not apply is
// empty.
type RepairStep struct {
	Do       string
	Object   string
	Snapshot *Snapshot // the damaged one
	New      *Snapshot // that stands in for it
	Path     string
	Chunk    chunk.ID
	From     string // the donor's name
	Frames   uint64 // of a pack: that could be read
	Missing  uint64 // of a pack: that could not
	Chunks   uint64 // that got another place
	Bytes    uint64 // of those; of a file: that are lost
	Err      error
}

// RepairResult sums up a repair. In a dry run it is what would be done.
type RepairResult struct {
	Notes             uint64 // damaged marks, ledgers and forgotten records removed
	Listed, Segments  uint64 // packs listed again; damaged segments removed
	Damaged, Salvaged uint64 // packs that are damaged; chunks stored anew out of them
	Found             uint64 // lost chunks and pages that came from donors
	Lost              uint64 // chunks and pages that stay lost
	Snapshots         uint64 // that stand in for damaged ones
	Hopeless          uint64 // snapshots, or records, of which nothing can be read
}

// repairer is one repair.
type repairer struct {
	r      *Repo
	opt    RepairOptions
	p      *RepairProgress
	res    RepairResult
	report func(RepairStep)

	packs    map[pack.Name]backend.Info // that exist
	bad      map[pack.Name]string       // the damaged ones among them, and why
	verified map[pack.Name]LedgerEntry  // what the ledger says
	done     map[pack.Name]struct{}     // those of which all that they held has another place
	away     map[pack.Name]struct{}     // that the index knows, and that do not exist

	s          *Session // where chunks go; nil until there is one
	stale      bool     // it may lean on a pack that was found damaged since it began
	data, meta *chunkstore.Stream
	pages      map[chunk.ID][]byte   // pages that came back, and that the store may not have yet
	back       map[chunk.ID]struct{} // chunks of which that is so
}

// Repair brings back what can be brought back, in this order: the index, what
// damaged packs still hold, what others still have, and snapshots that do
// without the rest. It reports each step as it is done, one at a time.
//
// It adds packs, segments, ledgers and snapshots. It removes nothing but damaged
// notes, if asked to, and segments of the index that are damaged, once every pack
// that exists is listed by others; all else that is damaged stays until prune or a person removes it.
// It may be interrupted at any time, and run beside everything else; run again,
// it goes on. Only the owner may repair; who can read may try a dry run.
//
// The error is of what kept it from working, not of what stays lost.
func (r *Repo) Repair(ctx context.Context, opt RepairOptions, report func(RepairStep)) (RepairResult, error) {
	p := &repairer{r: r, opt: opt, p: opt.Progress, report: report, bad: map[pack.Name]string{}, done: map[pack.Name]struct{}{}, away: map[pack.Name]struct{}{}, pages: map[chunk.ID][]byte{}, back: map[chunk.ID]struct{}{}}
	if p.p == nil {
		p.p = &RepairProgress{}
	}
	if !opt.DryRun {
		if err := r.ownerOnly("repair"); err != nil {
			return p.res, err
		}
	}
	err := p.run(ctx)
	if cerr := p.flush(ctx); err == nil {
		err = cerr
	}
	return p.res, err
}

func (p *repairer) run(ctx context.Context) error {
	if p.opt.Notes {
		if err := p.notes(ctx); err != nil {
			return err
		}
	}
	if err := p.index(ctx); err != nil {
		return err
	}
	if !p.opt.Packs && !p.opt.Snapshots {
		return nil
	}
	if err := p.findBad(ctx); err != nil {
		return err
	}
	if p.opt.Packs {
		if err := p.salvageAll(ctx); err != nil {
			return err
		}
	}
	if p.opt.Snapshots {
		return p.snapshots(ctx)
	}
	return nil
}

func countChunks(t *pack.Trailer) (n uint64) {
	for i := range t.Frames {
		n += uint64(len(t.Frames[i].Chunks))
	}
	return n
}

// publishBatch is how many trailers are collected for a segment.
const publishBatch = 256

// index reads all segments anew, and lists the packs that none of them lists.
// Without that being asked for, it makes them known to this process only.
func (p *repairer) index(ctx context.Context) error {
	r := p.r
	if err := r.ix.Rebuild(ctx, false); err != nil && !unproven(err) {
		return err
	}
	listed := map[pack.Name]struct{}{}
	_, damaged, err := r.listings(ctx, func(name pack.Name) bool { listed[name] = struct{}{}; return false })
	if err != nil {
		return err
	}
	if err := r.wait(ctx, r.lag()); err != nil {
		return err
	}
	// After the segments: what one of those lists was there before it.
	if p.packs, err = r.listPacks(ctx); err != nil {
		return err
	}
	unlisted, err := r.ix.Orphans(ctx)
	if err != nil && !unproven(err) {
		return err
	}
	names := map[pack.Name]int64{}
	for _, o := range unlisted {
		names[o.Name] = o.Size
	}
	for name, info := range p.packs {
		// What a damaged segment listed may be known to this process already, and
		// a segment that could be read a moment ago may be damaged now.
		_, still := listed[name]
		if known, ok, err := r.ix.Pack(name); err != nil {
			return err
		} else if ok && (!r.ix.Listed(name) || len(damaged) > 0 && !still) && known.Size == info.Size {
			names[name] = info.Size
		}
	}
	failed, err := p.list(ctx, names)
	if err != nil {
		return err
	}
	return p.segments(ctx, damaged, failed)
}

// list lists packs by their own trailers, and returns how many have none that
// can be read.
func (p *repairer) list(ctx context.Context, names map[pack.Name]int64) (failed int, err error) {
	r := p.r
	var batch []*pack.Trailer
	publish := func() error {
		if len(batch) == 0 || p.opt.DryRun || !p.opt.Index {
			return nil
		}
		ts := batch
		batch = nil
		return r.ix.Publish(ctx, ts)
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), func(a, b pack.Name) int { return slices.Compare(a[:], b[:]) }) {
		t, err := r.readTrailer(ctx, name, names[name])
		if ctx.Err() != nil {
			return failed, ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			if !gone(err) && !unproven(err) && !errors.Is(err, ErrFormat) {
				return failed, err
			}
			failed++
			if gone(err) {
				p.bad[name] = fmt.Sprintf("what it holds cannot be listed: %v", err)
			}
			if p.opt.Index {
				p.report(RepairStep{Do: RepairDamaged, Object: name.Object(), Err: fmt.Errorf("what it holds cannot be listed: %w", err)})
			}
			continue
		}
		if err := r.ix.Add(t); err != nil {
			return failed, err
		}
		if p.opt.Index {
			p.res.Listed++
			p.report(RepairStep{Do: RepairListed, Object: name.Object(), Chunks: countChunks(t)})
		}
		if batch = append(batch, t); len(batch) >= publishBatch {
			if err := publish(); err != nil {
				return failed, err
			}
		}
	}
	return failed, publish()
}

// readTrailer reads what a pack lists, also if its header is damaged.
func (r *Repo) readTrailer(ctx context.Context, name pack.Name, size int64) (*pack.Trailer, error) {
	t, err := pack.ReadTrailer(r.k, name, size, func(off, n int64) ([]byte, error) { return r.b.Get(ctx, name.Object(), off, n) })
	if err == nil || !isDamage(err) || size > pack.MaxSize {
		return t, formatError(err)
	}
	p, gerr := r.b.Get(ctx, name.Object(), 0, -1)
	if gerr != nil {
		return nil, gerr
	}
	if t := looseTrailer(r.k, name, p); t != nil && t.Size == int64(len(p)) {
		return t, nil
	}
	return nil, err
}

// segments removes damaged segments, if all packs that exist are listed by
// others. failed is how many are not.
func (p *repairer) segments(ctx context.Context, damaged map[string]error, failed int) error {
	if !p.opt.Index {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(damaged)) {
		err := damaged[name]
		switch {
		case !errors.Is(err, chunk.ErrCorrupt):
			p.report(RepairStep{Do: RepairDamaged, Object: name, Err: err})
			continue
		case failed > 0:
			p.report(RepairStep{Do: RepairDamaged, Object: name, Err: fmt.Errorf("it stays, for %d packs that exist are listed by no other: %w", failed, err)})
			continue
		}
		if !p.opt.DryRun {
			if until, rerr := p.r.remove(ctx, name); rerr != nil {
				return rerr
			} else if !until.IsZero() {
				p.report(RepairStep{Do: RepairDamaged, Object: name, Err: fmt.Errorf("%w; %w", err, &backend.LockedError{Name: name, Until: until})})
				continue
			}
		}
		p.report(RepairStep{Do: RepairRemoved, Object: name, Err: err})
		p.res.Segments++
	}
	return nil
}

// put gives a chunk a place, if it has none that may be relied on, and reports
// whether that was so.
func (p *repairer) put(ctx context.Context, kind pack.Kind, id chunk.ID, b []byte) (bool, error) {
	if p.opt.DryRun {
		return p.pretend(kind, id, b), nil
	}
	if p.stale {
		if err := p.flush(ctx); err != nil {
			return false, err
		}
	}
	if p.s == nil {
		p.stale = false
		s, err := p.r.begin(ctx, p.good)
		if err != nil {
			return false, err
		}
		p.s, p.data, p.meta = s, s.Writer.Stream(pack.Data), s.Writer.Stream(pack.Meta)
	}
	if kind == pack.Meta {
		return p.meta.Put(id, b)
	}
	return p.data.Put(id, b)
}

// pretend is put in a dry run: what follows sees the chunk as stored.
func (p *repairer) pretend(kind pack.Kind, id chunk.ID, b []byte) bool {
	_, chunk := p.back[id]
	_, page := p.pages[id]
	if chunk || page || p.held(id) {
		return false
	}
	if kind == pack.Meta {
		p.pages[id] = slices.Clone(b)
	} else {
		p.back[id] = struct{}{}
	}
	return true
}

// flush makes what was put durable and known.
func (p *repairer) flush(ctx context.Context) error {
	if p.s == nil {
		return nil
	}
	s := p.s
	p.s = nil
	p.data.Flush()
	p.meta.Flush()
	err := s.Writer.Close()
	s.end(ctx)
	return err
}

// good reports whether a pack is not known as damaged.
func (p *repairer) good(name pack.Name) bool { _, bad := p.bad[name]; return !bad }

// held reports whether a pack that exists, and is not known as damaged, lists a
// chunk.
func (p *repairer) held(id chunk.ID) bool {
	var room [4]pack.Location
	locs, err := p.r.ix.Lookup(id, room[:0])
	if err != nil {
		return false
	}
	for _, l := range locs {
		if info, ok := p.packs[l.Pack]; ok && p.good(l.Pack) && int64(l.Off)+int64(l.Stored) <= info.Size {
			return true
		}
		if _, ok := p.packs[l.Pack]; !ok && p.stored(l.Pack) {
			return true
		}
	}
	return false
}

// stored reports whether a pack came since packs were listed.
func (p *repairer) stored(name pack.Name) bool {
	if _, away := p.away[name]; away {
		return false
	}
	info, ok, err := p.r.ix.Pack(name)
	if err == nil && ok {
		_, err = p.r.b.Get(context.Background(), name.Object(), info.Size-1, 1)
	}
	if err != nil || !ok {
		p.away[name] = struct{}{}
		return false
	}
	p.packs[name] = backend.Info{Name: name.Object(), Size: info.Size}
	return true
}

// gone reports whether an error means that stored bytes are lost, and not that
// they cannot be had just now.
func gone(err error) bool {
	return errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrMissing) || errors.Is(err, syscall.EIO)
}
