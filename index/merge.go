package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

const (
	// mergeBeyond is how many small segments may lie in a repository.
	mergeBeyond = 64
)

// smallObject returns up to which stored size, in bytes, a segment is small. A
// merged one of full size is not merged again.
func (db *DB) smallObject() int64 { return int64(db.segment / 4) }

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
	there, err := db.listPacks(ctx, packPrefix)
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
	return db.inGeneration(name)
}

const packPrefix = "packs/"

// listPacks lists the packs whose objects' names begin so.
func (db *DB) listPacks(ctx context.Context, prefix string) (map[pack.Name]backend.Info, error) {
	there := map[pack.Name]backend.Info{}
	for info, err := range db.backend.List(ctx, prefix) {
		if err != nil {
			return nil, fmt.Errorf("list the packs: %w", err)
		}
		if name, ok := pack.ParseObject(info.Name); ok {
			there[name] = info
		}
	}
	return there, nil
}

// Adopt makes the chunks of a pack known that no segment names, or that one
// lists falsely, by the pack's own signed trailer, and returns that. size is the
// pack's in bytes. Publish the trailer for others to know it.
func (db *DB) Adopt(ctx context.Context, name pack.Name, size int64) (*pack.Trailer, error) {
	t, err := db.readPack(ctx, name, size)
	if err != nil {
		return nil, err
	}
	return t, db.Add(t)
}

// mergeBytes bounds how many stored bytes Merge holds in memory.
const mergeBytes = 64 << 20

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
	all, err := db.segmentInfos(ctx)
	if err != nil {
		return 0, err
	}
	small := db.withoutLocked(all)
	if len(small) <= mergeBeyond {
		return 0, nil
	}
	room := int64(mergeBytes)
	for _, name := range slices.SortedFunc(maps.Keys(small), func(a, b SegmentName) int { return cmp.Compare(small[a], small[b]) }) {
		if room -= small[name]; room < 0 {
			delete(small, name)
		}
	}
	sv, err := db.survey(ctx, small, true)
	if err != nil {
		return 0, errors.Join(err, joinErrors(sv.bad))
	}
	chosen := 0
	for _, p := range sv.parts {
		if p.chosen = !p.fixed; p.chosen {
			chosen++
		}
	}
	if chosen < 2 {
		return 0, joinErrors(sv.bad)
	}
	res, err := db.rewrite(ctx, sv)
	return res.Replaced, errors.Join(err, joinErrors(sv.bad))
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
	clear(db.disputed)
	db.vanished = false
	mem := db.mem
	db.mem = mem.without(func(name pack.Name) bool { return mem.packs[mem.slots[name]].published })
	db.buildAt, db.rereadAt = db.opt.MemoryLimit, rereadBytes
	return nil
}
