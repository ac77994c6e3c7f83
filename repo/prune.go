package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// DefaultGrace is how long a writer may be silent before it is declared dead:
// a dozen heartbeats.
const DefaultGrace = time.Hour

// PruneOptions say what to remove, and for whom to wait.
type PruneOptions struct {
	DryRun bool // only tell; nothing is written

	// Grace is how long a writer may give no sign of life, by the backend's
	// clock, before it is declared dead; 0: DefaultGrace. Where the config says
	// that there is no fencing none is, ever: its intent has to go, or Unlock
	// must be called.
	Grace time.Duration

	// Wait waits for writers that live. Otherwise what waits for them is left
	// to the next run.
	Wait bool
	Poll time.Duration // how often to look for them; 0: five seconds

	// MaxRepack bounds the stored bytes that are copied out of packs that are
	// needed in part. 0 removes only packs of which nothing is needed; negative
	// means no bound.
	MaxRepack int64

	// Rewrite says which packs to copy although all of them is needed; may be
	// nil.
	Rewrite func(chunkstore.PackInfo) bool

	// DiscardDamaged removes condemned records that cannot be read. No other
	// prune may be running anywhere.
	DiscardDamaged bool

	Progress *PruneProgress                   // may be nil
	Warnf    func(format string, args ...any) // what somebody should look at; may be nil
}

// PruneProgress counts while a prune goes on; it may be read at any time.
type PruneProgress struct {
	Mark              MarkProgress
	Packs, PacksTotal atomic.Uint64 // condemned packs that were looked through
	Copied, Removed   atomic.Uint64 // stored bytes
	Waiting           atomic.Uint64 // writers
}

// PackSums counts packs and their bytes.
type PackSums struct{ Packs, Bytes uint64 }

func (s *PackSums) add(size int64) { s.Packs++; s.Bytes += uint64(size) }

// PruneResult tells what was found and done. Of a dry run, what would be.
type PruneResult struct {
	Snapshots     int
	Chunks, Pages uint64 // that live snapshots need

	Total    PackSums // what was there at the beginning
	AtWork   PackSums // of it, packs of writers at work
	Unneeded PackSums // of it, packs of which nothing is needed
	Repack   PackSums // of it, packs to be copied in part or whole
	Skipped  PackSums // of it, packs beyond MaxRepack
	Needed   uint64   // stored bytes of Repack that are needed: to be copied

	Copied  uint64   // stored bytes written
	Removed PackSums // packs removed
	Left    PackSums // packs condemned, which wait for a writer
	Locked  PackSums // packs condemned, which wait until their locks have passed
	Parity  PackSums // packs that got parity, and its bytes

	LockedUntil time.Time  // when the last of those locks ends; zero if there is none
	Locks       LockResult // what was done about the locks of what is needed

	Waiting []Waiting        // the writers that Left waits for; of a dry run all that are at work or silent
	Dead    []ID             // writers that were declared dead
	Stay    map[string]error // packs that cannot go, because what is needed of them cannot be copied

	// Homeless is how many chunks and pages live snapshots need that no pack
	// lists: they are lost already, and nothing unreadable was removed.
	Homeless uint64
}

// Waiting is a writer at work that prune has to wait for.
type Waiting struct {
	Intent Intent    // zero but for the ID if it cannot be read
	Last   time.Time // its last sign of life, by the backend's clock
}

// pruner is one run of Prune.
type pruner struct {
	r   *Repo
	opt PruneOptions
	p   *PruneProgress
	res PruneResult

	live   *liveSet
	marked map[ID]struct{} // snapshots that are in live
	doomed []pack.Name     // to be condemned by this run

	records map[string]*condemnedRecord // of this run, and those taken up
	ready   map[string]bool             // whose writers are all resolved
	see     view
	stay    map[pack.Name]error
	locked  map[pack.Name]bool // condemned packs whose locks have not passed
	needed  map[pack.Name]bool // packs of which live snapshots need something; nil: nobody knows
}

// Prune removes what no snapshot needs. It may run beside anything, and any
// number of times at once; it needs no lock and trusts no writer's clock. It may
// be interrupted at any point: the next run goes on. Only the owner may.
//
// A record or page that cannot be read is an error, and nothing is removed then:
// nobody knows what it needs. A chunk that cannot be copied keeps its pack, which
// PruneResult.Stay names; the error is then chunk.ErrCorrupt or chunk.ErrMissing,
// and all else was done.
func (r *Repo) Prune(ctx context.Context, opt PruneOptions) (PruneResult, error) {
	if opt.Grace <= 0 {
		opt.Grace = DefaultGrace
	}
	if opt.Poll <= 0 {
		opt.Poll = 5 * time.Second
	}
	if opt.Progress == nil {
		opt.Progress = &PruneProgress{}
	}
	if opt.Warnf == nil {
		opt.Warnf = r.opt.Logf
	}
	p := &pruner{r: r, opt: opt, p: opt.Progress, see: view{r: r, discard: opt.DiscardDamaged}, stay: map[pack.Name]error{}}
	if err := r.ownerOnly("prune"); err != nil {
		return p.res, err
	}
	guessed := p.plan(ctx)
	err := guessed
	if err == nil && opt.DryRun {
		return p.res, p.foresee(ctx)
	}
	if err == nil {
		err = p.run(ctx)
	}
	if r.vault != nil && !opt.DryRun && ctx.Err() == nil {
		// Also where prune cannot decide: what is damaged must not lose its lock.
		var lerr error
		p.res.Locks, lerr = r.keepLocks(ctx, p, guessed, LockOptions{})
		err = errors.Join(err, lerr)
	}
	if err != nil {
		return p.res, err
	}
	if err := r.tidy(ctx); err != nil {
		return p.res, err
	}
	r.reserve()
	if _, err := r.ix.Compact(ctx); err != nil {
		return p.res, err
	}
	// Packs written before parity was switched on get theirs here.
	added, err := r.AddParity(ctx, ParityOptions{})
	p.res.Parity = PackSums{added.Packs, added.Bytes}
	if err != nil {
		return p.res, err
	}
	return p.res, p.damage()
}

// foresee tells a dry run for whom a run would have to wait now.
func (p *pruner) foresee(ctx context.Context) error {
	intents, err := p.r.intents(ctx)
	if err != nil {
		return err
	}
	for id := range intents {
		state, err := p.r.stateOf(ctx, id)
		if err != nil {
			return err
		}
		if state != noRecord {
			delete(intents, id)
		}
	}
	p.res.Waiting = p.waiting(ctx, intents)
	return nil
}

// run goes through the steps. Where the source of a chunk is gone, another
// pruner has copied it, or its snapshot was forgotten: then the marking and all
// behind it is done again.
func (p *pruner) run(ctx context.Context) error {
	for i, again := 0, false; i < len(pruneOrder); i++ {
		err := p.do(ctx, pruneOrder[i])
		if isFull(err) && p.r.release() {
			err = p.do(ctx, pruneOrder[i]) // what removes most has to write a little first
		}
		if err != nil {
			return err
		}
		if pruneOrder[i] == doCopyOut && p.gone() && !again {
			again = true
			i = slices.Index(pruneOrder, doListRecords) - 1
			p.live, p.marked = newLiveSet(), map[ID]struct{}{}
			clear(p.stay)
		}
	}
	return nil
}

func (p *pruner) do(ctx context.Context, st step) error {
	switch st {
	case doCondemn:
		return p.condemn(ctx)
	case doListWriters:
		return p.listWriters(ctx)
	case doResolve:
		return p.resolve(ctx)
	case doListRecords:
		return p.markRecords(ctx)
	case doCatchUp:
		if len(p.records) == 0 || p.ready != nil && len(p.ready) == 0 {
			return nil // nothing will come of what is listed
		}
		return p.see.do(ctx, st)
	case doListCondemned:
		return p.see.do(ctx, st)
	case doListPacks:
		if err := p.see.do(ctx, st); err != nil {
			return err
		}
		if err := p.r.Sync(ctx); err != nil && !unproven(err) {
			return err
		}
		return nil
	case doCopyOut:
		return p.copyOut(ctx)
	case doRemovePacks:
		return p.removePacks(ctx)
	case doEndCondemned:
		return p.endCondemned(ctx)
	}
	return fmt.Errorf("%q is no step of prune", st) // never happens
}

// gone reports whether a chunk was found nowhere.
func (p *pruner) gone() bool {
	for _, err := range p.stay {
		if errors.Is(err, chunk.ErrMissing) {
			return true
		}
	}
	return false
}

func (p *pruner) damage() error {
	var errs []error
	if len(p.stay) > 0 {
		p.res.Stay = map[string]error{}
		names := slices.SortedFunc(maps.Keys(p.stay), func(a, b pack.Name) int { return slices.Compare(a[:], b[:]) })
		for _, name := range names {
			p.res.Stay[name.String()] = p.stay[name]
		}
		if full := p.stay[names[0]]; isFull(full) {
			return fmt.Errorf("%d packs stay, for there was no space to copy what is needed of them; what was removed made some: run prune again, or with --max-repack 0: %w", len(names), full)
		}
		errs = append(errs, fmt.Errorf("%d packs stay, as what is needed of them cannot be read (the first: %w); `cutbank repair` may bring it back", len(names), p.stay[names[0]]))
	}
	if p.res.Homeless > 0 {
		errs = append(errs, fmt.Errorf("%d chunks that snapshots need are in no pack: %w; `cutbank verify` names the files, `cutbank repair` may bring them back", p.res.Homeless, chunk.ErrMissing))
	}
	return errors.Join(errs...)
}

// condemn puts the record that names the packs which this run has chosen: no
// writer that begins from now on leans on them.
func (p *pruner) condemn(ctx context.Context) error {
	if len(p.doomed) == 0 {
		return nil
	}
	id, err := p.r.newID()
	if err != nil {
		return err
	}
	c := Condemned{V: 1, ID: id, Time: p.r.opt.Now().UTC()}
	for _, name := range p.doomed {
		c.Packs = append(c.Packs, name.String())
	}
	if err := p.r.putJSON(ctx, "condemned/"+id.String(), seal.KindCondemned, seal.ForList, c); err != nil {
		return err
	}
	p.records[id.String()] = &condemnedRecord{packs: p.doomed}
	return nil
}

// listWriters stores beside each record which writers were at work after it was
// put: any of them may lean on a condemned pack.
func (p *pruner) listWriters(ctx context.Context) error {
	if len(p.records) == 0 {
		return nil
	}
	intents, err := p.r.intents(ctx)
	if err != nil {
		return err
	}
	at := slices.SortedFunc(maps.Keys(intents), func(a, b ID) int { return slices.Compare(a[:], b[:]) })
	for _, id := range slices.Sorted(maps.Keys(p.records)) {
		rec := p.records[id]
		if rec.waits {
			continue // who put it first, or took it up, stored what it waits for
		}
		if err := p.putPart(ctx, id, rec, at); err != nil {
			return err
		}
	}
	return nil
}

// putPart stores what a condemned record still waits for, in place of what was
// stored before.
func (p *pruner) putPart(ctx context.Context, id string, rec *condemnedRecord, wait []ID) error {
	cid, ok := ParseID(id)
	if !ok {
		return fmt.Errorf("condemned/%s: not an ID: %w", id, chunk.ErrCorrupt)
	}
	for range 100 {
		rec.n++
		name := fmt.Sprintf("condemned/%s.%d", id, rec.n)
		err := p.r.putJSON(ctx, name, seal.KindCondemned, seal.ForList, Condemned{V: 1, ID: cid, Time: p.r.opt.Now().UTC(), Wait: wait})
		if errors.Is(err, fs.ErrExist) {
			continue // another pruner has taken it up too
		}
		if err != nil {
			return err
		}
		old := rec.parts
		rec.parts, rec.waits, rec.wait = []string{name}, true, wait
		for _, part := range old {
			if _, err := p.r.remove(ctx, part); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("condemned/%s: a hundred names for its next part are taken", id)
}

// markRecords marks what snapshots need that came after the plan was made. What
// was forgotten since stays marked: the next run frees it.
func (p *pruner) markRecords(ctx context.Context) error {
	if len(p.ready) == 0 {
		return nil
	}
	return p.mark(ctx)
}

// mark lists the live snapshots and marks what those need that are not marked
// yet. A snapshot may be forgotten, and its pages removed by another prune, while
// they are walked; then all is marked anew, for what was marked below a page that
// could not be read may never have been walked.
func (p *pruner) mark(ctx context.Context) error {
	for {
		snaps, err := p.snapshots(ctx)
		if err != nil {
			return err
		}
		p.res.Snapshots = len(snaps)
		fresh := slices.DeleteFunc(slices.Clone(snaps), func(s *Snapshot) bool { _, ok := p.marked[s.ID]; return ok })
		err = p.r.markLive(ctx, p.live, fresh, &p.p.Mark)
		if err == nil {
			for _, s := range fresh {
				p.marked[s.ID] = struct{}{}
			}
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		now, lerr := p.snapshots(ctx)
		if lerr != nil {
			return errors.Join(err, lerr)
		}
		gone := slices.ContainsFunc(fresh, func(s *Snapshot) bool {
			return !slices.ContainsFunc(now, func(n *Snapshot) bool { return n.ID == s.ID })
		})
		if !gone {
			return err
		}
		p.live, p.marked = newLiveSet(), map[ID]struct{}{}
	}
}

// snapshots lists the live snapshots, all of them or none.
func (p *pruner) snapshots(ctx context.Context) ([]*Snapshot, error) {
	p.r.mu.Lock()
	snaps, damage, err := p.r.liveRecords(ctx)
	p.r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	// After the listing: what is hidden before it is seen here, and what is hidden
	// afterwards was in it.
	if err := p.r.hiddenRecord(ctx); errors.Is(err, chunk.ErrCorrupt) {
		damage = errors.Join(damage, err)
	} else if err != nil {
		return nil, err
	}
	if damage != nil {
		return nil, fmt.Errorf("nobody knows what these snapshots need, so nothing is removed: %w; what no copy brings back, `cutbank forget --damaged` gives up", damage)
	}
	sortSnapshots(snaps)
	return snaps, nil
}

// removePacks removes condemned packs whose needed chunks lie elsewhere, and
// tells all indexes. Those of an earlier run's record are there if they came back.
func (p *pruner) removePacks(ctx context.Context) error {
	parity, err := p.r.names(ctx, "parity/")
	if err != nil {
		return err
	}
	var gone []pack.Name
	p.locked, p.res.Locked, p.res.LockedUntil = map[pack.Name]bool{}, PackSums{}, time.Time{}
	err = p.eachReady(func(_ string, rec *condemnedRecord) error {
		old := backend.Late(p.r.b) > 0 && p.r.settled(rec.info, p.see.latest)
		for _, name := range rec.packs {
			if _, listed := p.see.packs[name]; p.stay[name] != nil || old && !listed {
				continue
			}
			until, err := p.removePack(ctx, name)
			if err != nil {
				return err
			}
			if !until.IsZero() {
				p.waitForLock(name, until)
				continue
			}
			if info, ok := parity[name.String()]; ok {
				if _, err := p.r.removeInfo(ctx, info); err != nil { // tidy removes what is locked
					return err
				}
			}
			if info, ok := p.see.packs[name]; ok {
				p.res.Removed.add(info.Size)
				p.p.Removed.Add(uint64(info.Size))
			}
			gone = append(gone, name)
		}
		return nil
	})
	if len(gone) > 0 {
		err = errors.Join(err, p.r.ix.Drop(context.WithoutCancel(ctx), gone))
	}
	return err
}

// removePack removes a pack unless it is locked.
func (p *pruner) removePack(ctx context.Context, name pack.Name) (time.Time, error) {
	if info, ok := p.see.packs[name]; ok {
		return p.r.removeInfo(ctx, info)
	}
	return p.r.remove(ctx, name.Object())
}

// waitForLock notes that a pack stays condemned until its lock has passed.
func (p *pruner) waitForLock(name pack.Name, until time.Time) {
	if info, ok := p.see.packs[name]; ok {
		p.res.Locked.add(info.Size)
	}
	p.locked[name] = true
	if until.After(p.res.LockedUntil) {
		p.res.LockedUntil = until
	}
}

// eachReady calls f for every record whose writers are resolved, in order.
func (p *pruner) eachReady(f func(id string, rec *condemnedRecord) error) error {
	for _, id := range slices.Sorted(maps.Keys(p.records)) {
		if p.ready[id] {
			if err := f(id, p.records[id]); err != nil {
				return err
			}
		}
	}
	return nil
}

// endCondemned removes the records whose packs are all gone, for good. A young
// one of which one may come back is left to the next run.
func (p *pruner) endCondemned(ctx context.Context) error {
	return p.eachReady(func(id string, rec *condemnedRecord) error {
		if !mayEndCondemned(p.r.settled(rec.info, p.see.latest)) {
			return nil
		}
		for _, name := range rec.packs {
			if p.stay[name] != nil || p.locked[name] {
				return nil
			}
		}
		for _, name := range append(slices.Clone(rec.parts), "condemned/"+id) {
			if _, err := p.r.remove(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
}

// leave counts a condemned pack that waits, unless it is gone.
func (p *pruner) leave(name pack.Name) {
	if info, ok := p.see.packs[name]; ok {
		p.res.Left.add(info.Size)
	}
}
