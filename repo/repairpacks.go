package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// findBad learns which packs are damaged: those that the ledger says are, those
// whose length or trailer shows it, and with ReadData all.
func (p *repairer) findBad(ctx context.Context) error {
	verified, err := p.r.Verified(ctx)
	if err != nil {
		return err
	}
	p.verified = verified
	for name, info := range p.packs {
		if e, ok := verified[name]; ok && !e.OK {
			p.bad[name] = e.What
			if e.Healed {
				p.done[name] = struct{}{}
			}
		}
		known, ok, err := p.r.ix.Pack(name)
		switch {
		case err != nil:
			return err
		case ok && known.Size != info.Size:
			p.bad[name] = fmt.Sprintf("it has %d bytes, not %d", info.Size, known.Size)
		}
	}
	found := map[pack.Name]string{}
	if p.opt.ReadData {
		if found, err = p.readAll(ctx); err != nil {
			return err
		}
	}
	maps.Copy(p.bad, found)
	news := map[pack.Name]string{}
	for name, why := range p.bad {
		if e, ok := verified[name]; !ok || e.OK {
			news[name] = why
		}
	}
	return p.note(ctx, news, false)
}

// readAll reads every pack that seems whole and returns those that are not.
func (p *repairer) readAll(ctx context.Context) (map[pack.Name]string, error) {
	var names []pack.Name
	for name, info := range p.packs {
		if p.good(name) {
			names = append(names, name)
			p.p.BytesTotal.Add(uint64(info.Size))
		}
	}
	p.p.PacksTotal.Store(uint64(len(names)))
	slices.SortFunc(names, func(a, b pack.Name) int { return slices.Compare(a[:], b[:]) })
	var mu sync.Mutex
	var failed error
	found := map[pack.Name]string{}
	work := make(chan pack.Name)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for name := range work {
				err := p.r.provePack(ctx, name)
				mu.Lock()
				switch {
				case err == nil || errors.Is(err, fs.ErrNotExist):
				case gone(err):
					found[name] = err.Error()
				case failed == nil:
					failed = err
				}
				mu.Unlock()
				p.p.Packs.Add(1)
				p.p.Bytes.Add(uint64(p.packs[name].Size))
			}
		}()
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		work <- name
	}
	close(work)
	wg.Wait()
	return found, errors.Join(failed, ctx.Err())
}

// provePack reads a pack and proves all of it.
func (r *Repo) provePack(ctx context.Context, name pack.Name) error {
	b, err := r.readTorn(ctx, name.Object(), pack.MaxSize)
	if err == nil {
		_, err = r.wholePack(name, b)
	}
	return err
}

// hasher names the chunks of packs of that kind.
func (r *Repo) hasher(kind pack.Kind) *chunk.Hasher {
	if kind == pack.Meta {
		return r.k.Tree
	}
	return r.k.Data
}

// note puts into the ledger what was found of packs; empty: they are whole.
// healed: all that they held has another place.
func (p *repairer) note(ctx context.Context, found map[pack.Name]string, healed bool) error {
	if p.opt.DryRun || len(found) == 0 {
		return nil
	}
	var entries []LedgerEntry
	for _, name := range sortedNames(found) {
		what := found[name]
		e := LedgerEntry{Pack: name.String(), Time: p.r.opt.Now().UTC(), Depth: DepthChunks, OK: what == "", Healed: healed,
			What: strings.ToValidUTF8(what[:min(len(what), maxWhat)], "")}
		// Clocks disagree: what is found now counts as newer than what was found.
		if last := p.verified[name].Time; !e.Time.After(last) {
			e.Time = last.Add(1)
		}
		p.verified[name] = e
		entries = append(entries, e)
	}
	return p.r.addLedger(ctx, entries)
}

// suspect takes the packs that list a page, which could be read from none of them,
// for damaged. If nobody knew that, what comes back would not be stored, for they
// list it, and prune would leave it to them.
func (p *repairer) suspect(ctx context.Context, id chunk.ID, why error) error {
	locs, err := p.r.ix.Lookup(id, nil)
	if err != nil {
		return err
	}
	found := map[pack.Name]string{}
	for _, l := range locs {
		if _, there := p.packs[l.Pack]; there && p.good(l.Pack) {
			p.bad[l.Pack], p.stale = why.Error(), true
			found[l.Pack] = why.Error()
			p.res.Damaged++
			p.report(RepairStep{Do: RepairDamaged, Object: l.Pack.Object(), Err: why})
		}
	}
	return p.note(ctx, found, false)
}

// salvageAll gives what damaged packs still hold other places.
func (p *repairer) salvageAll(ctx context.Context) error {
	listed, _, err := p.r.listings(ctx, func(name pack.Name) bool { return !p.good(name) })
	if err != nil {
		return err
	}
	healed := map[pack.Name]string{}
	for _, name := range sortedNames(p.bad) {
		if _, done := p.done[name]; done {
			continue
		}
		whole, err := p.salvage(ctx, name, listed[name]...)
		if err != nil {
			return err
		}
		if whole {
			healed[name] = p.bad[name]
		}
		delete(listed, name)
	}
	if err := p.flush(ctx); err != nil {
		return err
	}
	return p.note(ctx, healed, true) // which it is only now
}

// salvage does that for one pack, by its parity if that covers the damage.
// listed is what segments say of the pack. It reports whether nothing
// of the pack is lost, once what was put is durable.
func (p *repairer) salvage(ctx context.Context, name pack.Name, listed ...*pack.Trailer) (whole bool, err error) {
	b, err := p.r.readTorn(ctx, name.Object(), pack.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		delete(p.packs, name)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, err := p.r.wholePack(name, b); err == nil {
		delete(p.bad, name)
		p.report(RepairStep{Do: RepairHealed, Object: name.Object()})
		return false, p.note(ctx, map[pack.Name]string{name: ""}, false)
	}
	p.res.Damaged++
	step := RepairStep{Do: RepairSalvaged, Object: name.Object(), Err: errors.New(p.bad[name])}
	put := func(kind pack.Kind, id chunk.ID, b []byte) error {
		stored, err := p.put(ctx, kind, id, b)
		if stored {
			step.Chunks++
			step.Bytes += uint64(len(b))
		}
		return err
	}
	h := healer{r: p.r}
	var of HealResult
	if b, err := h.rebuild(ctx, name, &of); err == nil {
		if x, err := p.r.wholePack(name, b); err == nil {
			step.From, step.Frames = "parity", uint64(len(x.t.Frames))
			err = x.each(func(id chunk.ID, b []byte) error { return put(x.t.Kind, id, b) })
			p.salvaged(&step)
			return err == nil, err
		}
	}
	s, err := p.r.newSalvage(name, b, listed...)
	if err != nil {
		if !gone(err) {
			return false, err
		}
		p.report(RepairStep{Do: RepairDamaged, Object: name.Object(), Err: fmt.Errorf("nothing of it can be read: %w", err)})
		return false, nil
	}
	hash := p.r.hasher(s.head.Kind)
	read, lost, err := s.frames(func(f salvagedFrame) error {
		for _, c := range f.chunks {
			if err := put(s.head.Kind, hash.Sum(c), c); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	step.Frames, step.Missing = uint64(read), uint64(lost)
	p.salvaged(&step)
	return err == nil && lost == 0 && read > 0, err
}

func (p *repairer) salvaged(step *RepairStep) {
	p.res.Salvaged += step.Chunks
	p.report(*step)
}

// sortedNames returns the packs of a map in the order of their names.
func sortedNames[T any](m map[pack.Name]T) []pack.Name {
	return slices.SortedFunc(maps.Keys(m), func(a, b pack.Name) int { return slices.Compare(a[:], b[:]) })
}
