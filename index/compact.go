package index

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
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
	all, err := db.listSegments(ctx)
	if err != nil {
		return CompactResult{}, err
	}
	sv, err := db.survey(ctx, all, false)
	if err != nil {
		return CompactResult{}, errors.Join(err, joinErrors(sv.bad))
	}
	sv.choose()
	res, err := db.rewrite(ctx, sv)
	if err == nil {
		db.forgetGone(sv.known, sv.there)
	}
	db.buildInBackground()
	return res, errors.Join(err, joinErrors(sv.bad))
}

// listingKey is the hash of what a listing says of its pack as a whole, its
// name included: of two listings with one key one is enough.
type listingKey [16]byte

func keyOf(t *pack.Trailer) listingKey {
	p := infoOf(t)
	d := chunk.Digest(appendRecord(append(make([]byte, 0, 2048), t.Name[:]...), &p))
	return listingKey(d[:16])
}

// listing is what a survey keeps of a trailer in a segment.
type listing struct {
	name  pack.Name
	key   listingKey
	bytes int32
}

// dropBytes is what the name of a dropped pack takes in a segment.
const dropBytes = 18

// part is one segment in a survey.
type part struct {
	name     SegmentName
	size     int64
	listings []listing
	dropped  []pack.Name
	fixed    bool     // it has to stay as it is
	chosen   bool     // it is to be rewritten
	content  *Segment // nil: read it again
}

func (p *part) bytes() (n int) {
	for i := range p.listings {
		n += int(p.listings[i].bytes)
	}
	return n + dropBytes*len(p.dropped)
}

// worth reports whether it is worth while to rewrite a segment to save so many
// bytes.
func (sv *survey) worth(p *part, waste int) bool {
	return waste > 0 && !p.fixed && (p.size <= sv.small || waste > p.bytes()/4)
}

// survey is what some segments list, and which of that is still true.
type survey struct {
	parts   []*part // by name
	small   int64   // up to which size a segment is small
	whole   bool    // they are all the segments that there are
	bad     map[SegmentName]error
	known   []pack.Name // what was known before the packs were listed
	there   map[pack.Name]backend.Info
	dropped map[pack.Name]struct{}
	truth   map[pack.Name]*pack.Trailer // of packs that are listed in several ways
	gone    map[pack.Name]struct{}      // dropped packs that nobody has to remember
}

// survey reads segments, and then lists the packs. With keep it keeps the
// segments.
func (db *DB) survey(ctx context.Context, names map[SegmentName]int64, keep bool) (*survey, error) {
	sv := &survey{small: db.smallObject(), whole: !keep, bad: map[SegmentName]error{}, dropped: map[pack.Name]struct{}{}, truth: map[pack.Name]*pack.Trailer{}}
	owner := db.keys.Self() == db.keys.Owner()
	var mu sync.Mutex
	err := db.readSegments(ctx, names, func(name SegmentName, s *Segment, err error) error {
		p := &part{name: name, size: names[name]}
		if err == nil {
			p.summarize(s, owner)
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case isGone(err): // others merge, too
		case err != nil:
			sv.bad[name] = err
		default:
			if keep {
				p.content = s
			}
			sv.parts = append(sv.parts, p)
			for _, d := range s.Dropped {
				sv.dropped[d] = struct{}{}
			}
		}
		return nil
	})
	if err != nil {
		return sv, err
	}
	slices.SortFunc(sv.parts, func(a, b *part) int { return compareNames(pack.Name(a.name), pack.Name(b.name)) })
	db.mu.RLock()
	for d := range db.dropped {
		sv.dropped[d] = struct{}{}
	}
	db.mu.RUnlock()
	sv.known = db.names(true)
	// Packs are listed after the segments are read, so that each pack that a
	// segment lists and that is missing here is gone for good. Where listings
	// lag, that takes as long.
	if err := sleep(ctx, db.backend.Lag()); err != nil {
		return sv, err
	}
	if sv.there, err = db.listPacks(ctx, packPrefix); err != nil {
		return sv, err
	}
	return sv, db.askDisputed(ctx, sv)
}

// summarize notes what s lists.
func (p *part) summarize(s *Segment, owner bool) {
	for _, packs := range [][]*pack.Trailer{s.Packs, s.unproven} {
		for _, t := range packs {
			n := trailerBytes(t)
			p.listings = append(p.listings, listing{t.Name, keyOf(t), int32(n)})
			// What no honest writer writes might not fit beside other things.
			p.fixed = p.fixed || n > segmentBytes
		}
	}
	p.dropped = s.Dropped
	p.fixed = p.fixed || len(s.Extra) > segmentBytes
	// What the owner says of dropped packs would count for nothing in a
	// segment of another's.
	p.fixed = p.fixed || !owner && s.owned && len(s.Dropped)+len(s.Replaced) > 0
}

// askDisputed reads the packs that are there and listed in several ways. Those
// that do not prove themselves keep all their listings.
func (db *DB) askDisputed(ctx context.Context, sv *survey) error {
	first := map[pack.Name]listingKey{}
	var disputed []pack.Name
	for _, p := range sv.parts {
		for _, l := range p.listings {
			if key, ok := first[l.name]; !ok {
				first[l.name] = l.key
			} else if key != l.key && !sv.dead(l.name) {
				disputed = append(disputed, l.name)
			}
		}
	}
	slices.SortFunc(disputed, compareNames)
	for _, name := range slices.Compact(disputed) {
		t, err := db.readPack(ctx, name, sv.there[name].Size)
		switch {
		case err == nil:
			sv.truth[name] = t
		case isGone(err), undecidable(err):
		default:
			return fmt.Errorf("pack %s is listed in several ways: %w", name, err)
		}
	}
	return nil
}

// dead reports whether a pack need not be listed any more.
func (sv *survey) dead(name pack.Name) bool {
	if _, ok := sv.dropped[name]; ok {
		return true
	}
	_, ok := sv.there[name]
	return !ok
}

// isFalse reports whether the pack itself contradicts a listing.
func (sv *survey) isFalse(name pack.Name, key listingKey) bool {
	t := sv.truth[name]
	return t != nil && keyOf(t) != key
}

// choose decides which segments to rewrite.
func (sv *survey) choose() {
	first := map[listingKey]int{}
	twice := make([]int, len(sv.parts)) // bytes that another part lists, too
	partners := map[int]map[int]struct{}{}
	pair := func(i, j int) {
		if partners[i] == nil {
			partners[i] = map[int]struct{}{}
		}
		partners[i][j] = struct{}{}
	}
	for i, p := range sv.parts {
		waste := 0
		for _, l := range p.listings {
			if sv.isFalse(l.name, l.key) {
				p.chosen = !p.fixed // each reader pays for it
			}
			if sv.dead(l.name) {
				waste += int(l.bytes)
				continue
			}
			switch j, ok := first[l.key]; {
			case !ok:
				first[l.key] = i
			case j == i:
				waste += int(l.bytes)
			case !p.fixed && !sv.parts[j].fixed:
				twice[i] += int(l.bytes)
				twice[j] += int(l.bytes)
				pair(i, j)
				pair(j, i)
			}
		}
		p.chosen = p.chosen || sv.worth(p, waste)
	}
	// A second listing may only be left out where the first one is written
	// anew, too: another process may just be leaving out that one.
	for i, p := range sv.parts {
		if sv.worth(p, twice[i]) {
			p.chosen = true
			for j := range partners[i] {
				sv.parts[j].chosen = true
			}
		}
	}
	gone := sv.forgettable()
	for _, p := range sv.parts {
		n := 0
		for _, d := range p.dropped {
			if _, ok := gone[d]; ok {
				n++
			}
		}
		p.chosen = p.chosen || sv.worth(p, n*dropBytes)
	}
}

// forgettable returns the dropped packs that nobody has to remember any more:
// they are gone, so that nobody can adopt them, and no segment lists them that
// stays as it is. A survey of some segments knows that only of the packs that
// these list.
func (sv *survey) forgettable() map[pack.Name]struct{} {
	gone := map[pack.Name]struct{}{}
	if sv.whole {
		if len(sv.bad) > 0 {
			return gone
		}
		for d := range sv.dropped {
			gone[d] = struct{}{}
		}
	}
	for _, p := range sv.parts {
		for _, l := range p.listings {
			if _, ok := sv.dropped[l.name]; ok && p.chosen {
				gone[l.name] = struct{}{}
			}
		}
	}
	for _, p := range sv.parts {
		for _, l := range p.listings {
			if !p.chosen {
				delete(gone, l.name)
			}
		}
	}
	for d := range gone {
		if _, ok := sv.there[d]; ok {
			delete(gone, d)
		}
	}
	return gone
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
		if err := db.backend.Remove(ctx, p.name.Object()); err != nil {
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
