package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// resolve finds out what became of the writers that the condemned records wait
// for, and declares dead those that have been silent for too long. Records of
// which all writers are resolved are ready.
func (p *pruner) resolve(ctx context.Context) error {
	for {
		left, err := p.judgeAll(ctx)
		if err != nil {
			return err
		}
		p.ready = map[string]bool{}
		p.res.Left = PackSums{}
		for id, rec := range p.records {
			waits := slices.ContainsFunc(rec.wait, func(w ID) bool { _, ok := left[w]; return ok })
			p.ready[id] = !waits
			for _, name := range rec.packs {
				if waits {
					p.leave(name)
				}
			}
		}
		p.p.Waiting.Store(uint64(len(left)))
		p.res.Waiting = p.waiting(ctx, left)
		if len(left) == 0 || !p.opt.Wait {
			maps.DeleteFunc(p.ready, func(_ string, ready bool) bool { return !ready })
			return nil
		}
		t := time.NewTimer(p.opt.Poll)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// judgeAll returns the writers that have to be waited for.
func (p *pruner) judgeAll(ctx context.Context) (map[ID]intentState, error) {
	waits := map[ID]struct{}{}
	for _, rec := range p.records {
		for _, id := range rec.wait {
			waits[id] = struct{}{}
		}
	}
	if len(waits) == 0 {
		return nil, nil
	}
	intents, err := p.r.intents(ctx)
	if err != nil {
		return nil, err
	}
	left := map[ID]intentState{}
	var clock time.Time
	for _, id := range slices.SortedFunc(maps.Keys(waits), func(a, b ID) int { return slices.Compare(a[:], b[:]) }) {
		in, at := intents[id]
		state, err := p.r.stateOf(ctx, id)
		if err != nil {
			return nil, err
		}
		v := judge(at, state, false)
		if v == alive {
			if clock.IsZero() {
				if clock, err = p.clock(ctx, id); err != nil {
					return nil, err
				}
			}
			// A sign of life from the future is none: the clock was set back, or
			// somebody has made up its time to be waited for until then.
			v = judge(at, state, overdue(clock.Sub(in.last).Abs(), p.opt.Grace, !p.r.cfg.NoFencing))
		}
		if v == silent {
			if v, err = p.declareDead(ctx, id); err != nil {
				return nil, err
			}
		}
		switch {
		case v == declared:
			if err := p.r.removeIntentOf(ctx, id, in); err != nil {
				return nil, err
			}
		case !v.resolved():
			left[id] = in
		}
	}
	return left, nil
}

// stateOf looks at snapshots/<id>. What is there and is no tombstone takes the
// name, whatever it is.
func (r *Repo) stateOf(ctx context.Context, id ID) (recordState, error) {
	name := "snapshots/" + id.String()
	b, err := r.b.Get(ctx, name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return noRecord, nil
	}
	if err != nil {
		return noRecord, err
	}
	if rec, err := r.parseRecord(name, id, b); err == nil && rec == nil {
		return aTombstone, nil
	}
	return aRecord, nil
}

// declareDead puts a tombstone where the writer would put its record; whoever is
// first has won.
func (p *pruner) declareDead(ctx context.Context, id ID) (verdict, error) {
	t := Tombstone{V: 1, ID: id, Time: p.r.opt.Now().UTC(), Why: fmt.Sprintf("silent for more than %s", p.opt.Grace)}
	err := p.r.putJSON(ctx, "snapshots/"+id.String(), seal.KindTombstone, seal.ForList, t)
	state, serr := p.r.stateOf(ctx, id)
	if serr != nil {
		return alive, errors.Join(err, serr)
	}
	if state == noRecord {
		return alive, err
	}
	if err == nil {
		p.res.Dead = append(p.res.Dead, id)
	}
	return judge(true, state, true), nil
}

// clock asks for the backend's time by putting something new: what a record
// still waits for, which is known better now.
func (p *pruner) clock(ctx context.Context, for_ ID) (time.Time, error) {
	for _, id := range slices.Sorted(maps.Keys(p.records)) {
		rec := p.records[id]
		if !slices.Contains(rec.wait, for_) {
			continue
		}
		if err := p.putPart(ctx, id, rec, rec.wait); err != nil {
			return time.Time{}, err
		}
		for info, err := range p.r.b.List(ctx, rec.parts[0]) {
			if err != nil {
				return time.Time{}, err
			}
			if info.Name == rec.parts[0] {
				return info.ModTime, nil
			}
		}
		return time.Time{}, fmt.Errorf("%s was put, but is not listed; run prune again", rec.parts[0])
	}
	return time.Time{}, fmt.Errorf("no record waits for writer %s", for_) // never happens
}

// waiting reads who the writers are, for people.
func (p *pruner) waiting(ctx context.Context, left map[ID]intentState) []Waiting {
	var all []Waiting
	for _, id := range slices.SortedFunc(maps.Keys(left), func(a, b ID) int { return slices.Compare(a[:], b[:]) }) {
		all = append(all, p.r.waitingFor(ctx, id, left[id]))
	}
	return all
}

// atWork lists the sessions that may still be writing. Those that have been silent
// for longer than the grace are none, by this machine's clock, which is good enough
// for choosing: what they stored is condemned, and waits for them to be judged.
func (p *pruner) atWork(ctx context.Context) (map[[16]byte]bool, error) {
	intents, err := p.r.intents(ctx)
	if err != nil {
		return nil, err
	}
	sessions := map[[16]byte]bool{}
	for id, in := range intents {
		state, err := p.r.stateOf(ctx, id)
		if err != nil {
			return nil, err
		}
		sessions[id] = state == noRecord && p.r.opt.Now().Sub(in.last).Abs() <= p.opt.Grace
	}
	return sessions, nil
}
