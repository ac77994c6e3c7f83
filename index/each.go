package index

import (
	"context"
	"errors"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// segmentsAhead is how many segments are read ahead of the one in use.
const segmentsAhead = 2

// EachPack calls f with the trailer of every known pack, once, in no order, but
// those that were dropped: also with those that were added or adopted here and
// not published yet, and with some that are gone. Where listings of a pack
// disagree it is the one that the pack itself confirms. It syncs first.
//
// f is called from this goroutine, and may use the index. It may keep a trailer,
// but that keeps the whole segment in memory; without that there are three of
// them at any time. f's first error ends it and is returned.
//
// What cannot be read is part of the error after all else was passed to f, by
// its name: segments (of their packs f has seen those that the cache knows, or
// another segment lists) and packs. Any other error comes early, and f has
// not seen all.
func (db *DB) EachPack(ctx context.Context, f func(*pack.Trailer) error) error {
	if err := db.enter(ctx); err != nil {
		return err
	}
	bad, err := db.sync(ctx)
	db.leave()
	if err != nil {
		return err
	}
	known := db.names(false) // what becomes known later may stay out
	e := &each{db: db, f: f, read: map[SegmentName]int64{}, bad: bad, seen: map[pack.Name]struct{}{}}
	// Segments are merged by others meanwhile: what one listed that is gone is
	// listed again in the merged one.
	for {
		again, err := e.segments(ctx)
		if err != nil {
			return err
		}
		if !again {
			break
		}
		if err := sleep(ctx, db.lag()); err != nil {
			return err
		}
	}
	lost, err := e.rest(ctx, known)
	if err != nil {
		return err
	}
	return errors.Join(joinErrors(e.bad), lost)
}

// each is one run of EachPack.
type each struct {
	db   *DB
	f    func(*pack.Trailer) error
	read map[SegmentName]int64
	bad  map[SegmentName]error
	seen map[pack.Name]struct{}
}

func (e *each) pass(t *pack.Trailer) error {
	if _, ok := e.seen[t.Name]; ok {
		return nil
	}
	e.seen[t.Name] = struct{}{}
	return e.f(t)
}

// segments passes on what the segments list that were not read yet, and reports
// whether one of them was gone.
func (e *each) segments(ctx context.Context) (gone bool, err error) {
	unread, err := e.db.listSegments(ctx)
	if err != nil {
		return false, err
	}
	maps.DeleteFunc(unread, func(name SegmentName, _ int64) bool {
		_, read := e.read[name]
		_, bad := e.bad[name]
		return read || bad
	})
	names := slices.Collect(maps.Keys(unread))
	read := func(ctx context.Context, name SegmentName) (*Segment, error) {
		return e.db.readSegment(ctx, name, unread[name])
	}
	err = ahead(ctx, segmentsAhead, names, read, func(name SegmentName, s *Segment, err error) error {
		switch {
		case isGone(err):
			gone = true
			return nil
		case err != nil:
			e.bad[name] = err
			return nil
		}
		e.read[name] = 0
		if err := e.db.learn(ctx, name, unread[name], s); err != nil {
			return err
		}
		for _, t := range s.Packs {
			if !e.db.believes(t) {
				continue
			}
			if err := e.pass(t); err != nil {
				return err
			}
		}
		return nil
	})
	return gone, err
}

// learn takes what a segment lists that came after the last Sync.
func (db *DB) learn(ctx context.Context, name SegmentName, size int64, s *Segment) error {
	db.mu.RLock()
	_, known := db.covered[name]
	db.mu.RUnlock()
	if known {
		return nil
	}
	db.take(name, size, s)
	return db.settle(ctx)
}

// believes reports whether nothing that is known contradicts the listing. A
// pack that is not known at all is believed: the cache may just have been lost.
func (db *DB) believes(t *pack.Trailer) bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if _, dropped := db.dropped[t.Name]; dropped {
		return false
	}
	known, ok, err := db.info(t.Name)
	p := infoOf(t)
	return !ok || err != nil || sameListing(&known, &p)
}

// rest passes on the packs that are known and that no readable segment lists
// as they are: their own trailers. lost are those that cannot be read.
func (e *each) rest(ctx context.Context, known []pack.Name) (lost, err error) {
	e.db.mu.RLock()
	names := slices.DeleteFunc(known, func(name pack.Name) bool {
		_, seen := e.seen[name]
		_, dropped := e.db.dropped[name]
		return seen || dropped
	})
	e.db.mu.RUnlock()
	if len(names) == 0 {
		return nil, nil
	}
	there, err := e.db.find(ctx, names)
	if err != nil {
		return nil, err
	}
	read := func(ctx context.Context, name pack.Name) (*pack.Trailer, error) {
		return e.db.readPack(ctx, name, there[name])
	}
	var errs []error
	err = ahead(ctx, readers, slices.Collect(maps.Keys(there)), read, func(_ pack.Name, t *pack.Trailer, err error) error {
		switch {
		case isGone(err):
			return nil
		case err != nil:
			errs = append(errs, err)
			return nil
		}
		return e.pass(t)
	})
	return errors.Join(errs...), err
}

// ahead calls f from this goroutine for every key with what load gave for it,
// in no order, while up to n more are loaded. f's first error ends it.
func ahead[K, V any](ctx context.Context, n int, keys []K, load func(context.Context, K) (V, error), f func(K, V, error) error) error {
	type result struct {
		key K
		v   V
		err error
	}
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result)
	go func() {
		defer close(results)
		var g errgroup.Group
		g.SetLimit(n)
		for _, key := range keys {
			if ctx.Err() != nil {
				break
			}
			g.Go(func() error {
				v, err := load(ctx, key)
				select {
				case results <- result{key, v, err}:
				case <-ctx.Done():
				}
				return nil
			})
		}
		g.Wait()
	}()
	var first error
	for r := range results {
		if first == nil {
			if first = outer.Err(); first == nil {
				first = f(r.key, r.v, r.err)
			}
			if first != nil {
				cancel()
			}
		}
	}
	if first == nil {
		first = outer.Err()
	}
	return first
}
