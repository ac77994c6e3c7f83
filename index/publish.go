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
// must be durable, and say of themselves what is listed. They become known here if they were not yet. After an error
// some may be published: publish all of them again, that does no harm.
func (db *DB) Publish(ctx context.Context, packs []*pack.Trailer) error {
	for _, s := range split(packs, db.segment) {
		name, size, err := db.putSegment(ctx, s)
		if err != nil {
			return err
		}
		db.mu.Lock()
		if db.closed {
			db.mu.Unlock()
			return errClosed
		}
		for _, t := range s.Packs {
			db.insert(t, true, true)
		}
		db.cover(name, size)
		db.mu.Unlock()
	}
	db.buildInBackground()
	return nil
}

// Drop publishes that these packs are gone, and forgets them.
func (db *DB) Drop(ctx context.Context, names []pack.Name) error {
	for len(names) > 0 {
		s := &Segment{Dropped: names[:min(len(names), db.segment/32)]}
		names = names[len(s.Dropped):]
		name, size, err := db.putSegment(ctx, s)
		if err != nil {
			return err
		}
		db.mu.Lock()
		for _, n := range s.Dropped {
			db.drop(n)
		}
		db.cover(name, size)
		db.mu.Unlock()
	}
	return nil
}

// split divides packs among as many segments of that size as it takes.
func split(packs []*pack.Trailer, size int) []*Segment {
	var all []*Segment
	room := 0
	for _, t := range packs {
		n := trailerBytes(t)
		if len(all) == 0 || n > room {
			all = append(all, &Segment{})
			room = size
		}
		room -= n
		last := all[len(all)-1]
		last.Packs = append(last.Packs, t)
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

// putSegment stores a segment under a new name and returns its stored size.
func (db *DB) putSegment(ctx context.Context, s *Segment) (name SegmentName, size int64, err error) {
	body := AppendSegment(nil, s)
	if len(body) > maxSegment {
		return name, 0, fmt.Errorf("index segment of %d bytes, at most %d are possible: write smaller packs", len(body), maxSegment)
	}
	for {
		if err := db.random(name[:]); err != nil {
			return name, 0, err
		}
		p, err := db.keys.Seal(name.Object(), seal.KindSegment, seal.ForList, body, sharedRandom{db})
		if err != nil {
			return name, 0, err
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
			return name, 0, fmt.Errorf("publish %s: %w", name.Object(), err)
		}
		return name, int64(len(p)), nil
	}
}
