package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

const (
	// mergeBeyond is how many small segments may lie in a repository.
	mergeBeyond = 64
	// smallObject is up to which stored size, in bytes, a segment is small. A
	// merged one of full size is not merged again.
	smallObject = segmentBytes / 4
)

// Orphan is a pack that no segment names.
type Orphan struct {
	Name    pack.Name
	Size    int64
	ModTime time.Time // by the backend's clock
}

// Orphans returns the packs that are in the repository, but not known even
// after a Sync, and not dropped. A writer that was killed leaves such packs;
// one that is at work has some too. Segments that cannot be read make their
// packs orphans: that error comes beside the result.
func (db *DB) Orphans(ctx context.Context) ([]Orphan, error) {
	// In this order: a pack that comes and is published meanwhile is none.
	there, err := db.listPacks(ctx)
	if err != nil {
		return nil, err
	}
	_, syncErr := db.Sync(ctx)
	if syncErr != nil && ctx.Err() != nil {
		return nil, syncErr
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	var orphans []Orphan
	for name, info := range there {
		if !db.known(name) {
			orphans = append(orphans, Orphan{name, info.Size, info.ModTime})
		}
	}
	slices.SortFunc(orphans, func(a, b Orphan) int { return compareNames(a.Name, b.Name) })
	return orphans, syncErr
}

// known reports whether a pack is known or was dropped. The caller has mu.
func (db *DB) known(name pack.Name) bool {
	if _, ok := db.dropped[name]; ok {
		return true
	}
	if _, ok := db.mem.slots[name]; ok {
		return true
	}
	if db.gen == nil {
		return false
	}
	_, ok := db.gen.find(name)
	return ok
}

func (db *DB) listPacks(ctx context.Context) (map[pack.Name]backend.Info, error) {
	there := map[pack.Name]backend.Info{}
	for info, err := range db.backend.List(ctx, "packs/") {
		if err != nil {
			return nil, fmt.Errorf("list the packs: %w", err)
		}
		if name, ok := pack.ParseObject(info.Name); ok {
			there[name] = info
		}
	}
	return there, nil
}

// Adopt makes the chunks of a pack known that no segment names, by the pack's
// own signed trailer, and returns that. size is the pack's in bytes. Publish
// the trailer for others to know it.
func (db *DB) Adopt(ctx context.Context, name pack.Name, size int64) (*pack.Trailer, error) {
	t, err := pack.ReadTrailer(db.keys, name, size, func(off, n int64) ([]byte, error) {
		return db.backend.Get(ctx, name.Object(), off, n)
	})
	if err != nil {
		return nil, err
	}
	return t, db.Add(t)
}

// Merge puts small segments together if there are more than 64 of them, and
// returns how many it replaced. Any number of processes may do it at any time:
// the worst that comes of it is that packs are listed twice. Segments that
// cannot be read stay where they are and are part of the error. After any other
// error nothing that was listed is lost.
func (db *DB) Merge(ctx context.Context) (merged int, err error) {
	if err := db.enter(ctx); err != nil {
		return 0, err
	}
	defer db.leave()
	small, err := db.listSegments(ctx)
	if err != nil {
		return 0, err
	}
	maps.DeleteFunc(small, func(_ SegmentName, size int64) bool { return size > smallObject })
	if len(small) <= mergeBeyond {
		return 0, nil
	}
	all, bad, err := db.readAll(ctx, small)
	if db.keys.Self() != db.keys.Owner() {
		// What the owner says of dropped packs would count for nothing in a
		// segment of another's.
		maps.DeleteFunc(all, func(_ SegmentName, s *Segment) bool { return s.owned && len(s.Dropped)+len(s.Replaced) > 0 })
	}
	if err != nil || len(all) < 2 {
		return 0, errors.Join(err, joinErrors(bad))
	}
	// Packs are listed after the segments are read, so that each pack that a
	// segment lists and that is missing here is gone for good. Where listings
	// lag, that takes as long.
	if err := sleep(ctx, db.backend.Lag()); err != nil {
		return 0, err
	}
	there, err := db.listPacks(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range split(join(all, there)) {
		name, err := db.putSegment(ctx, s)
		if err != nil {
			return 0, err
		}
		db.take(name, s)
	}
	for name := range all {
		if err := db.backend.Remove(ctx, name.Object()); err != nil {
			return merged, fmt.Errorf("remove the merged segment %s: %w", name.Object(), err)
		}
		merged++
	}
	return merged, joinErrors(bad)
}

// readAll reads segments into memory; those that are gone are left out.
func (db *DB) readAll(ctx context.Context, names map[SegmentName]int64) (all map[SegmentName]*Segment, bad map[SegmentName]error, err error) {
	all, bad = map[SegmentName]*Segment{}, map[SegmentName]error{}
	var mu sync.Mutex
	err = db.readSegments(ctx, names, func(name SegmentName, s *Segment, err error) error {
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			all[name] = s
		} else if !isGone(err) {
			bad[name] = err
		}
		return nil
	})
	return all, bad, err
}

// join makes one segment of many, without the packs that are not there. That a
// pack was dropped is kept unless its listing was among these segments too:
// then neither is needed any more.
func join(all map[SegmentName]*Segment, there map[pack.Name]backend.Info) *Segment {
	m := &Segment{}
	packs := map[pack.Name]*pack.Trailer{}
	dropped := map[pack.Name]struct{}{}
	for _, name := range slices.SortedFunc(maps.Keys(all), func(a, b SegmentName) int { return compareNames(pack.Name(a), pack.Name(b)) }) {
		s := all[name]
		m.Replaced = append(m.Replaced, name)
		m.Extra = append(m.Extra, s.Extra...)
		for _, t := range s.Packs {
			packs[t.Name] = t
		}
		for _, d := range s.Dropped {
			dropped[d] = struct{}{}
		}
	}
	for name, t := range packs {
		_, gone := dropped[name]
		if _, ok := there[name]; ok && !gone {
			m.Packs = append(m.Packs, t)
		}
	}
	for name := range dropped {
		if _, here := packs[name]; !here {
			m.Dropped = append(m.Dropped, name)
		}
	}
	slices.SortFunc(m.Packs, func(a, b *pack.Trailer) int { return compareNames(a.Name, b.Name) })
	slices.SortFunc(m.Dropped, compareNames)
	return m
}

func sleep(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Rebuild forgets the cache, on disk too, and reads all segments again. With
// packs it then adopts every pack that no readable segment names, from the
// pack's own trailer; those stay in memory unless they are published. What this process added and did not publish stays known.
// Errors are those of Sync and Adopt, joined; what could be read is known.
func (db *DB) Rebuild(ctx context.Context, packs bool) error {
	if err := db.reset(ctx); err != nil {
		return err
	}
	if !packs {
		_, err := db.Sync(ctx)
		return err
	}
	orphans, err := db.Orphans(ctx)
	errs := []error{err}
	for _, o := range orphans {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := db.Adopt(ctx, o.Name, o.Size); err != nil && !isGone(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// reset forgets all that can be read again.
func (db *DB) reset(ctx context.Context) error {
	if err := db.enter(ctx); err != nil {
		return err
	}
	defer db.leave()
	db.buildMu.Lock()
	defer db.buildMu.Unlock()
	numbers, err := db.cache.numbers()
	if err != nil {
		db.opt.Logf("index cache: %v; going on without what it holds", err)
	}
	for _, n := range numbers {
		db.cache.discard(db.cache.path(n))
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return errClosed
	}
	if db.gen != nil {
		db.gen.release()
	}
	db.gen, db.dead = nil, nil
	db.forget()
	clear(db.dropped)
	mem := db.mem
	db.mem = mem.without(func(name pack.Name) bool { return mem.packs[mem.slots[name]].published })
	db.buildAt = db.opt.MemoryLimit
	return nil
}
