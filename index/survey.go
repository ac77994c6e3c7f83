package index

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// listingKey is the hash of what a listing says of its pack, its name and chunks
// included: of two listings with one key one is enough.
type listingKey [16]byte

func keyOf(t *pack.Trailer) listingKey {
	p := infoOf(t)
	d := chunk.Digest(appendRecord(append(append(make([]byte, 0, 2048), t.Name[:]...), p.Listing[:]...), &p))
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
	if err := sleep(ctx, db.lag()); err != nil {
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
