package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// manySmall is how many packs may be smaller than an eighth of a full one before
// they are put together. Each is then copied once for every manySmall that came
// after it.
const manySmall = 64

// candidate is a pack that may go.
type candidate struct {
	name   pack.Name
	size   int64
	kind   pack.Kind
	needed int64 // stored bytes that are needed
	cut    bool  // it has not the length that it was stored with
	why    reason
}

type reason int

const (
	keep     reason = iota
	small           // it is only small: kept unless there are many
	unneeded        // nothing of it is needed
	repack          // some frame is less than half needed, or the pack is damaged or to be rewritten
)

// planner looks at every pack once and chooses those that may go.
type planner struct {
	*pruner
	packs   map[pack.Name]backend.Info
	taken   map[pack.Name]bool // condemned already
	atWork  map[[16]byte]bool  // sessions
	trusted func(pack.Name) bool
	damaged func(pack.Name) bool
	last    map[pack.Name]bool // looked at last: what others hold too is not needed of them
	seen    map[pack.Name]struct{}
	all     []candidate
	smalls  map[pack.Kind]int
	uses    map[pack.Name]bool // of which something is needed, or nobody knows
}

// plan marks what is needed, and chooses the packs to condemn. It decides
// nothing that has to be right: what it chooses is looked at again after it is
// condemned.
func (p *pruner) plan(ctx context.Context) error {
	var err error
	if p.records, err = p.r.condemnedRecords(ctx, p.opt.DiscardDamaged); err != nil {
		return err
	}
	if p.opt.DiscardDamaged && !p.opt.DryRun {
		if err := p.discard(ctx); err != nil {
			return err
		}
	}
	pl := &planner{pruner: p, taken: map[pack.Name]bool{}}
	for _, rec := range p.records {
		for _, name := range rec.packs {
			pl.taken[name] = true
		}
	}
	if pl.packs, err = p.r.listPacks(ctx); err != nil {
		return err
	}
	p.see.packs = pl.packs
	for _, info := range pl.packs {
		p.res.Total.add(info.Size)
	}
	if err := pl.sync(ctx); err != nil {
		return err
	}
	for n := range lookAgain {
		p.live, p.marked = newLiveSet(), map[ID]struct{}{}
		err := pl.weighAll(ctx)
		if _, _, homeless := p.live.count(); n == 0 && p.r.lag() > 0 && (homeless > 0 || errors.Is(err, chunk.ErrMissing)) {
			// A listing may show a snapshot, and others not yet what it needs.
			if err := pl.catchUp(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if _, _, homeless := p.live.count(); homeless == 0 {
			break
		}
		// Another prune may have moved chunks between two of these looks, or
		// removed those of a snapshot that was forgotten since it was marked.
	}
	pl.choose()
	pl.pruner.needed = pl.uses
	return nil
}

// lookAgain is how often a plan is made before chunks are said to be lost.
const lookAgain = 4

// catchUp lists the packs and segments as they are now, where listings lag.
func (pl *planner) catchUp(ctx context.Context) (err error) {
	if err := pl.r.wait(ctx, pl.r.lag()); err != nil {
		return err
	}
	if pl.packs, err = pl.r.listPacks(ctx); err != nil {
		return err
	}
	pl.see.packs = pl.packs
	pl.res.Total = PackSums{}
	for _, info := range pl.packs {
		pl.res.Total.add(info.Size)
	}
	return pl.sync(ctx)
}

// sync makes the index complete. Where segments are damaged, what they listed
// is published again: only what is listed counts as a place of a chunk. Where there
// are locks segments may be gone without a trace, for small ones are not locked for
// ever: so there what no segment lists is looked at always.
func (pl *planner) sync(ctx context.Context) error {
	err := pl.r.Sync(ctx)
	if err == nil && pl.r.vault == nil || err != nil && !unproven(err) {
		return err
	}
	if err != nil {
		pl.opt.Warnf("%v; the packs are read instead", err)
		if pl.opt.DryRun {
			return nil
		}
	}
	sizes := map[pack.Name]int64{}
	for name, info := range pl.packs {
		if !pl.taken[name] {
			sizes[name] = info.Size
		}
	}
	if pl.opt.DryRun {
		return pl.r.learn(ctx, sizes, func(*pack.Trailer) error { return nil })
	}
	return pl.r.adopt(ctx, sizes)
}

// discard removes condemned records that cannot be read.
func (p *pruner) discard(ctx context.Context) error {
	infos, err := p.r.names(ctx, "condemned/")
	if err != nil {
		return err
	}
	for name := range infos {
		_, err := p.r.ownersObject(ctx, "condemned/"+name, kinds["condemned"])
		if !errors.Is(err, chunk.ErrCorrupt) {
			continue
		}
		if _, err := p.r.remove(ctx, "condemned/"+name); err != nil {
			return err
		}
		p.opt.Warnf("removed condemned/%s, which could not be read", name)
	}
	return nil
}

// weighAll marks what is needed and then looks at all listed packs; at those that are condemned or not to be
// trusted last, so that of what others hold too nothing is needed of them. Then
// at those that no segment lists.
func (pl *planner) weighAll(ctx context.Context) error {
	err := pl.mark(ctx)
	if err != nil {
		return err
	}
	if pl.packs, err = pl.r.listPacks(ctx); err != nil {
		return err
	}
	if pl.atWork, err = pl.pruner.atWork(ctx); err != nil {
		return err
	}
	pl.live.release()
	pl.last, pl.seen, pl.smalls, pl.all = map[pack.Name]bool{}, map[pack.Name]struct{}{}, map[pack.Kind]int{}, nil
	pl.uses = map[pack.Name]bool{}
	pl.res.AtWork = PackSums{}
	trusted, err := pl.r.trust(ctx)
	if err != nil {
		return err
	}
	verified, err := pl.r.Verified(ctx)
	if err != nil {
		return err
	}
	pl.trusted = trusted
	pl.damaged = func(n pack.Name) bool { e, ok := verified[n]; return ok && !e.OK }
	if err := pl.r.ix.EachPack(ctx, func(t *pack.Trailer) error {
		info, there := pl.packs[t.Name]
		if !there {
			return ctx.Err()
		}
		if trusted(t.Name) && !pl.taken[t.Name] && info.Size == t.Size {
			pl.weigh(t)
		} else {
			pl.last[t.Name] = true
		}
		return ctx.Err()
	}); err != nil && !unproven(err) {
		return err
	}
	if len(pl.last) > 0 {
		if err := pl.r.ix.EachPack(ctx, func(t *pack.Trailer) error {
			if pl.last[t.Name] {
				pl.weigh(t)
			}
			return ctx.Err()
		}); err != nil && !unproven(err) {
			return err
		}
	}
	_, _, homeless := pl.live.count()
	return pl.weighUnlisted(ctx, homeless)
}

// weigh looks at one pack.
func (pl *planner) weigh(t *pack.Trailer) {
	info, there := pl.packs[t.Name]
	if _, again := pl.seen[t.Name]; !there || again {
		return
	}
	pl.seen[t.Name] = struct{}{}
	c := candidate{name: t.Name, size: info.Size, kind: t.Kind, cut: info.Size != t.Size, why: keep}
	for i := range t.Frames {
		f := &t.Frames[i]
		var needed, all uint64
		for j := range f.Chunks {
			ch := &f.Chunks[j]
			all += uint64(ch.Len)
			if pl.live.hold(t.Kind, &ch.ID) {
				needed += uint64(ch.Len)
			}
			if ch.Kind != pack.Plain {
				c.why = -1 // of a newer program: it knows what it is
			}
		}
		if all > 0 {
			c.needed += int64(uint64(f.Stored) * needed / all)
		}
		if 2*needed < all && c.why == keep {
			c.why = repack
		}
	}
	if c.needed > 0 || c.why < 0 {
		pl.uses[t.Name] = true
	}
	pl.consider(c, t.Header)
}

func (pl *planner) consider(c candidate, h pack.Header) {
	switch {
	case pl.taken[c.name] || c.why < 0:
		return
	case pl.atWork[h.Session]:
		pl.res.AtWork.add(c.size)
		return
	case c.needed == 0:
		c.why = unneeded
	case c.why == repack:
	case c.cut || pl.damaged(c.name) || pl.opt.Rewrite != nil && pl.opt.Rewrite(chunkstore.PackInfo{Header: h, Size: c.size}):
		c.why = repack
	case c.size < int64(pl.r.store.PackSize(c.kind))/8:
		c.why = small
		pl.smalls[c.kind]++
	default:
		return
	}
	pl.all = append(pl.all, c)
}

// weighUnlisted looks at packs that no segment lists. No snapshot needs them
// yet; their writer, if it lives, is waited for. One that does not prove itself
// is left alone as long as anything is missed.
func (pl *planner) weighUnlisted(ctx context.Context, homeless uint64) error {
	for name, info := range pl.packs {
		if _, ok := pl.seen[name]; ok || pl.taken[name] {
			continue
		}
		t, err := pack.ReadTrailer(pl.r.k, name, info.Size, func(off, n int64) ([]byte, error) { return pl.r.b.Get(ctx, name.Object(), off, n) })
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil:
			pl.weigh(t)
		case ctx.Err() != nil:
			return err
		case !unproven(err):
			return err
		case homeless > 0:
			pl.stay[name] = fmt.Errorf("pack %s: %w", name, err)
			pl.uses[name] = true
		default:
			pl.all = append(pl.all, candidate{name: name, size: info.Size, why: unneeded})
		}
	}
	return nil
}

// choose takes the packs to condemn: all of which nothing is needed, and of the
// others those that give most for what has to be copied.
func (pl *planner) choose() {
	slices.SortFunc(pl.all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.why, b.why)*-1, cmp.Compare(a.needed*b.size, b.needed*a.size), slices.Compare(a.name[:], b.name[:]))
	})
	room := pl.opt.MaxRepack
	for _, c := range pl.all {
		switch {
		case c.why == small && pl.smalls[c.kind] < manySmall:
			continue
		case c.why == unneeded:
			pl.res.Unneeded.add(c.size)
		case pl.opt.MaxRepack >= 0 && c.needed > room:
			pl.res.Skipped.add(c.size)
			continue
		default:
			room -= c.needed
			pl.res.Repack.add(c.size)
			pl.res.Needed += uint64(c.needed)
		}
		pl.doomed = append(pl.doomed, c.name)
	}
	pl.res.Chunks, pl.res.Pages, pl.res.Homeless = pl.live.count()
	for name := range pl.taken {
		pl.leave(name)
	}
}
