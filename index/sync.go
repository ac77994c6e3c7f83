package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

const (
	// readers is how many segments are read at once.
	readers = 4
	// listings is how often Sync lists again because segments were merged
	// while it read.
	listings = 5
	// maxObject bounds a segment's stored form in bytes.
	maxObject = maxSegment + 64<<10
)

// Sync reads what has been published in the repository since the last time,
// and reports whether there was anything new. A segment that cannot be read is
// part of the error, by its name (chunk.ErrCorrupt, seal.ErrVersion,
// seal.ErrNoKey, or the backend's error); all others are read nevertheless, and
// the next Sync tries again. Segments that vanished are no error: what they
// listed is in a merged one, or stays known as it was. Where segments disagree
// about a pack the pack is asked; if it cannot be, that is part of the error, and
// what was known stays until the next Sync.
//
// One Sync runs at a time; others wait, and report what came meanwhile as new.
func (db *DB) Sync(ctx context.Context) (changed bool, err error) {
	news := db.news.Load()
	if err := db.enter(ctx); err != nil {
		return false, err
	}
	defer db.leave()
	bad, err := db.sync(ctx)
	return db.news.Load() != news, errors.Join(err, joinErrors(bad))
}

// sync is Sync for who has entered; bad are the segments that cannot be read.
func (db *DB) sync(ctx context.Context) (bad map[SegmentName]error, err error) {
	if db.refresh() {
		db.news.Add(1)
	}
	bad = map[SegmentName]error{}
	for try := 1; ; try++ {
		before, losses, err := db.coveredNow()
		if err != nil {
			return bad, err
		}
		listed, err := db.listSegments(ctx)
		if err != nil {
			return bad, err
		}
		db.noteVanished(before, listed)
		unread := maps.Clone(listed)
		maps.DeleteFunc(unread, func(name SegmentName, _ int64) bool {
			_, in := before[name]
			_, failed := bad[name]
			return in || failed
		})
		var mu sync.Mutex
		again := false
		err = db.readSegments(ctx, unread, func(name SegmentName, s *Segment, err error) error {
			lost := err == nil && !db.take(name, unread[name], s)
			mu.Lock()
			if lost || isGone(err) {
				again = true
			} else if err != nil {
				bad[name] = err
			}
			mu.Unlock()
			db.build(ctx)
			return ctx.Err()
		})
		if err != nil {
			return bad, err
		}
		if again = again || db.lostSince(losses); !again || try == listings {
			db.prune(before, listed)
			return bad, db.settle(ctx)
		}
	}
}

func joinErrors(bad map[SegmentName]error) error {
	var errs []error
	for _, name := range slices.SortedFunc(maps.Keys(bad), func(a, b SegmentName) int { return compareNames(pack.Name(a), pack.Name(b)) }) {
		errs = append(errs, bad[name])
	}
	return errors.Join(errs...)
}

// coveredNow returns the names of the segments that need not be read, and how
// often that was forgotten so far.
func (db *DB) coveredNow() (map[SegmentName]int64, int, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return nil, 0, errClosed
	}
	for name, writers := range db.partial {
		if slices.ContainsFunc(writers, db.knows) {
			db.uncover(name)
		}
	}
	return maps.Clone(db.covered), db.losses, nil
}

func (db *DB) lostSince(losses int) bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.losses != losses
}

// prune forgets the names of segments that are not there any more: they are
// used once.
func (db *DB) prune(before, listed map[SegmentName]int64) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for name := range before {
		if _, ok := listed[name]; !ok {
			db.uncover(name)
		}
	}
}

// noteVanished notes whether segments are not there any more, for the next
// generation.
func (db *DB) noteVanished(before, listed map[SegmentName]int64) {
	for name := range before {
		if _, ok := listed[name]; !ok {
			db.mu.Lock()
			db.vanished = true
			db.mu.Unlock()
			return
		}
	}
}

// listSegments returns the segments of the repository and their sizes.
func (db *DB) listSegments(ctx context.Context) (map[SegmentName]int64, error) {
	listed, err := db.segmentInfos(ctx)
	return sizesOf(listed), err
}

func (db *DB) segmentInfos(ctx context.Context) (map[SegmentName]backend.Info, error) {
	listed := map[SegmentName]backend.Info{}
	for info, err := range db.backend.List(ctx, segmentPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list the index segments: %w", err)
		}
		if name, ok := ParseSegmentName(info.Name); ok {
			listed[name] = info
		}
	}
	return listed, nil
}

// readSegments calls f for every segment, from several goroutines, with what
// was read or why it could not be. It ends early with f's first error.
func (db *DB) readSegments(ctx context.Context, names map[SegmentName]int64, f func(SegmentName, *Segment, error) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for name, size := range names {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			s, err := db.readSegment(ctx, name, size)
			if e := ctx.Err(); e != nil {
				return e
			}
			return f(name, s, err)
		})
	}
	return g.Wait()
}

func (db *DB) readSegment(ctx context.Context, name SegmentName, size int64) (*Segment, error) {
	if size > maxObject {
		return nil, fmt.Errorf("%s: %d bytes are too much for a segment: %w", name.Object(), size, chunk.ErrCorrupt)
	}
	p, err := db.backend.Get(ctx, name.Object(), 0, -1)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name.Object(), err)
	}
	o, err := db.keys.OpenAs(name.Object(), seal.KindSegment, p)
	if err != nil {
		return nil, err
	}
	if o.Sealing != seal.ForList {
		return nil, fmt.Errorf("%s: is not sealed as a segment: %w", name.Object(), chunk.ErrCorrupt)
	}
	s, err := ParseSegment(o.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name.Object(), err)
	}
	s.owned = o.Writer == db.keys.Owner()
	if !s.owned {
		// Who may only add cannot make others forget.
		s.Dropped, s.Replaced = nil, nil
	}
	proven := s.Packs[:0]
	for _, t := range s.Packs {
		// A listing that does not prove itself says nothing; the pack does, to
		// who adopts it.
		if err := t.Verify(db.keys); err != nil {
			db.opt.Logf("%s: %v", name.Object(), err)
			if errors.Is(err, seal.ErrNoKey) {
				s.unproven = append(s.unproven, t)
			}
			continue
		}
		proven = append(proven, t)
	}
	s.Packs = proven
	return s, nil
}

// take makes known what a segment of that stored size lists. It reports false
// if a generation was lost meanwhile, so that the segment has to be read again.
func (db *DB) take(name SegmentName, size int64, s *Segment) bool {
	changed := false
	db.mu.Lock()
	losses := db.losses
	known := len(s.Replaced) > 0
	for _, r := range s.Replaced {
		_, in := db.covered[r]
		_, part := db.partial[r] // what was not known of it may be by now
		known = known && in && !part
	}
	for _, d := range s.Dropped {
		changed = db.drop(d) || changed
	}
	db.mu.Unlock()
	if !known {
		// One pack at a time, so that lookups get in between.
		for _, t := range s.Packs {
			db.mu.Lock()
			changed = db.insert(t, true, false) || changed
			db.mu.Unlock()
		}
	}
	if changed {
		db.news.Add(1)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.losses != losses || db.closed {
		return false
	}
	db.cover(name, size)
	if len(s.unproven) > 0 {
		writers := map[seal.WriterID]struct{}{}
		for _, t := range s.unproven {
			writers[t.Writer] = struct{}{}
		}
		db.partial[name] = slices.Collect(maps.Keys(writers))
	}
	return true
}

// knows reports whether a writer's signatures count by now.
func (db *DB) knows(w seal.WriterID) bool {
	return !errors.Is(db.keys.Verify(w, nil, nil), seal.ErrNoKey)
}

// cover notes that what a segment lists is known. The caller has mu.
func (db *DB) cover(name SegmentName, size int64) {
	if _, ok := db.covered[name]; !ok {
		db.covered[name] = size
		db.unbuilt += size
	}
}

// uncover is the reverse of cover. The caller has mu.
func (db *DB) uncover(name SegmentName) {
	db.unbuilt -= db.covered[name]
	delete(db.covered, name)
	delete(db.partial, name)
}
