package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// segmentBytes is about how large a plain segment is written at most; a single
// pack's trailer may be larger.
const segmentBytes = 16 << 20

// Publish stores segments that list these packs, one where they fit. The packs
// must be durable. They become known here if they were not yet. After an error
// some may be published: publish all of them again, that does no harm.
func (db *DB) Publish(ctx context.Context, packs []*pack.Trailer) error {
	for _, s := range split(&Segment{Packs: packs}) {
		name, err := db.putSegment(ctx, s)
		if err != nil {
			return err
		}
		db.mu.Lock()
		if db.closed {
			db.mu.Unlock()
			return errClosed
		}
		for _, t := range s.Packs {
			db.insert(t, true)
		}
		db.covered[name] = struct{}{}
		db.mu.Unlock()
	}
	db.buildInBackground()
	return nil
}

// Drop publishes that these packs are gone, and forgets them.
func (db *DB) Drop(ctx context.Context, names []pack.Name) error {
	for len(names) > 0 {
		s := &Segment{Dropped: names[:min(len(names), segmentBytes/32)]}
		names = names[len(s.Dropped):]
		name, err := db.putSegment(ctx, s)
		if err != nil {
			return err
		}
		db.mu.Lock()
		for _, n := range s.Dropped {
			db.drop(n)
		}
		db.covered[name] = struct{}{}
		db.mu.Unlock()
	}
	return nil
}

// split divides a segment's packs among as many segments as their size asks
// for. Each of them replaces the same segments; the first takes all the rest.
func split(s *Segment) []*Segment {
	var all []*Segment
	room := 0
	for _, t := range s.Packs {
		n := trailerBytes(t)
		if len(all) == 0 || n > room {
			all = append(all, &Segment{Replaced: s.Replaced})
			room = segmentBytes
		}
		room -= n
		last := all[len(all)-1]
		last.Packs = append(last.Packs, t)
	}
	if len(all) == 0 && len(s.Replaced)+len(s.Dropped)+len(s.Extra) > 0 {
		all = append(all, &Segment{Replaced: s.Replaced})
	}
	if len(all) > 0 {
		all[0].Dropped, all[0].Extra = s.Dropped, s.Extra
	}
	return all
}

// trailerBytes is not less than what t takes in a segment.
func trailerBytes(t *pack.Trailer) int {
	n := 128 + len(t.Wrapped) + len(t.Extra)
	for i := range t.Frames {
		n += 40 + len(t.Frames[i].Extra)
		for j := range t.Frames[i].Chunks {
			n += 5 + 32
			if t.Frames[i].Chunks[j].Kind == pack.Delta {
				n += 32
			}
		}
	}
	return n
}

// putSegment stores a segment under a new name.
func (db *DB) putSegment(ctx context.Context, s *Segment) (SegmentName, error) {
	body := AppendSegment(nil, s)
	if len(body) > maxSegment {
		return SegmentName{}, fmt.Errorf("index segment of %d bytes, at most %d are possible: write smaller packs", len(body), maxSegment)
	}
	var name SegmentName
	for {
		if err := db.random(name[:]); err != nil {
			return name, err
		}
		p, err := db.keys.Seal(name.Object(), seal.KindSegment, seal.ForList, body, sharedRandom{db})
		if err != nil {
			return name, err
		}
		err = db.backend.Put(ctx, name.Object(), p)
		if errors.Is(err, fs.ErrExist) {
			// A Put below was repeated after its answer was lost, or, less
			// likely than anything, the name was taken.
			there, e := db.backend.Get(ctx, name.Object(), 0, -1)
			if e == nil && !bytes.Equal(there, p) {
				continue
			}
			err = e
		}
		if err != nil {
			return name, fmt.Errorf("publish %s: %w", name.Object(), err)
		}
		return name, nil
	}
}
