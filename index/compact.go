package index

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// CompactResult is what Compact did.
type CompactResult struct {
	Replaced int   // segments that were rewritten and removed
	Written  int   // segments that were written for them
	Listings int   // listings left out: of packs that are gone or dropped, false ones, second ones
	Drops    int   // names of dropped packs that need not be remembered any more
	Before   int64 // stored bytes of the segments replaced
	After    int64 // stored bytes of those written for them
}

// Compact rewrites the segments that are worth it, for who has removed packs:
// small ones with anything in them that is not needed any more, and large ones
// of which that is more than a quarter. Not needed are listings of packs that
// are gone or were dropped, false and second listings, and the names of dropped
// packs that are gone and that no segment lists. Afterwards the index has
// forgotten what it knew of packs that are gone.
//
// Any number of processes may do it at any time, beside others that publish and
// Merge: segments are read, then the packs are listed, what is left is stored
// under new names, and only then is removed what was read. At any time every
// pack that is there and was listed is listed. It reads all segments, and holds
// a few of them in memory at once, and some hundred bytes for each pack.
//
// Segments that cannot be read stay where they are and are part of the error.
// After any error nothing that was listed is lost, and the next Compact goes on.
// Who is not the owner leaves alone the segments that name dropped packs.
func (db *DB) Compact(ctx context.Context) (CompactResult, error) {
	if err := db.enter(ctx); err != nil {
		return CompactResult{}, err
	}
	defer db.leave()
	all, err := db.segmentInfos(ctx)
	if err != nil {
		return CompactResult{}, err
	}
	sv, err := db.survey(ctx, sizesOf(all), false)
	if err != nil {
		return CompactResult{}, errors.Join(err, joinErrors(sv.bad))
	}
	if db.opt.Locked != nil {
		sv.chooseUnlocked(db.unlocked(all))
	}
	sv.choose()
	res, err := db.rewrite(ctx, sv)
	if err == nil {
		db.forgetGone(sv.known, sv.there)
	}
	db.buildInBackground()
	return res, errors.Join(err, joinErrors(sv.bad))
}

// rewrite stores what is still needed of the chosen segments in new ones, and
// then removes them.
func (db *DB) rewrite(ctx context.Context, sv *survey) (res CompactResult, err error) {
	w := &rewriter{db: db, sv: sv, seen: map[listingKey]struct{}{}, drops: map[pack.Name]struct{}{}}
	for _, p := range sv.parts {
		if p.chosen {
			w.replaced = append(w.replaced, p.name)
		}
	}
	sv.gone = sv.forgettable()
	var done []*part
	for _, p := range sv.parts {
		if !p.chosen {
			continue
		}
		s := p.content
		if s == nil {
			if s, err = db.readSegment(ctx, p.name, p.size); isGone(err) {
				continue // who removed it has stored what it listed
			}
		}
		if err != nil {
			return w.res, err
		}
		if err := w.take(ctx, s); err != nil {
			return w.res, err
		}
		p.content = nil
		done = append(done, p)
	}
	if err := w.flush(ctx); err != nil {
		return w.res, err
	}
	for _, p := range done {
		err := db.backend.Remove(ctx, p.name.Object())
		if errors.Is(err, backend.ErrLocked) {
			db.opt.Logf("%v", err) // by somebody else: it says nothing wrong
			continue
		}
		if err != nil {
			return w.res, fmt.Errorf("remove the merged segment %s: %w", p.name.Object(), err)
		}
		w.res.Replaced++
		w.res.Before += p.size
	}
	return w.res, nil
}

// rewriter fills new segments.
type rewriter struct {
	db       *DB
	sv       *survey
	replaced []SegmentName
	seen     map[listingKey]struct{}
	drops    map[pack.Name]struct{}
	out      *Segment
	room     int
	res      CompactResult
}

// take takes over what is still needed of s.
func (w *rewriter) take(ctx context.Context, s *Segment) error {
	for _, t := range s.Packs {
		if err := w.list(ctx, t, true); err != nil {
			return err
		}
	}
	for _, t := range s.unproven {
		if err := w.list(ctx, t, false); err != nil {
			return err
		}
	}
	for _, d := range s.Dropped {
		if _, gone := w.sv.gone[d]; gone {
			w.res.Drops++
			continue
		}
		if _, ok := w.drops[d]; ok {
			continue
		}
		w.drops[d] = struct{}{}
		if err := w.reserve(ctx, dropBytes); err != nil {
			return err
		}
		w.out.Dropped = append(w.out.Dropped, d)
	}
	if len(s.Extra) > 0 {
		if err := w.reserve(ctx, len(s.Extra)); err != nil {
			return err
		}
		w.out.Extra = append(w.out.Extra, s.Extra...)
	}
	return nil
}

// list takes over a listing, or in the place of a false one the true one.
func (w *rewriter) list(ctx context.Context, t *pack.Trailer, proven bool) error {
	if w.sv.dead(t.Name) {
		w.res.Listings++
		return nil
	}
	if truth := w.sv.truth[t.Name]; truth != nil {
		t, proven = truth, true
	}
	key := keyOf(t)
	if _, ok := w.seen[key]; ok {
		w.res.Listings++
		return nil
	}
	w.seen[key] = struct{}{}
	if err := w.reserve(ctx, trailerBytes(t)); err != nil {
		return err
	}
	if proven {
		w.out.Packs = append(w.out.Packs, t)
	} else {
		w.out.unproven = append(w.out.unproven, t)
	}
	return nil
}

// reserve makes sure that there is an open segment with room for n bytes.
func (w *rewriter) reserve(ctx context.Context, n int) error {
	if w.out != nil && n > w.room {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	if w.out == nil {
		w.out, w.room = &Segment{Replaced: w.replaced}, w.db.segment
	}
	w.room -= n
	return nil
}

// flush stores the open segment.
func (w *rewriter) flush(ctx context.Context) error {
	if w.out == nil {
		return nil
	}
	s := w.out
	slices.SortFunc(s.Packs, func(a, b *pack.Trailer) int { return compareNames(a.Name, b.Name) })
	slices.SortFunc(s.Dropped, compareNames)
	name, size, err := w.db.putSegment(ctx, s)
	if err != nil {
		return err
	}
	w.db.take(name, size, s)
	w.res.Written++
	w.res.After += size
	w.out = nil
	return nil
}
