package index

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// refresh takes over the newest generation of the cache if it is another one
// than ours, and reports whether it did. While this process builds there is
// none to take over.
func (db *DB) refresh() bool {
	if db.cache.dir == "" || !db.buildMu.TryLock() {
		return false
	}
	defer db.buildMu.Unlock()
	if !db.takeOver() {
		return false
	}
	db.removeOld() // perhaps nobody but us had the one before
	return true
}

// removeOld removes the generations before the newest one that nobody holds.
func (db *DB) removeOld() {
	if ns, _ := db.cache.numbers(); len(ns) > 1 {
		db.cache.removeOld(ns[0])
	}
}

// takeOver is refresh for who has buildMu.
func (db *DB) takeOver() bool {
	db.mu.RLock()
	have := db.gen
	if have != nil {
		have.hold()
	}
	db.mu.RUnlock()
	if have != nil {
		defer have.release()
	}
	g := db.cache.newest(db.repo, have, db.opt.Logf)
	if g == nil || g == have {
		return false
	}
	db.use(g)
	return true
}

// use switches to a generation, which the caller holds, and forgets what
// memory has of it. The caller has buildMu.
func (db *DB) use(g *generation) {
	db.mu.Lock()
	old := db.gen
	if db.closed {
		db.mu.Unlock()
		g.release()
		return
	}
	if old != nil && (old.meta.lineage != g.meta.lineage || old.number > g.number) {
		db.forget() // the new one need not hold what ours holds
	}
	for _, name := range g.meta.covered {
		db.covered[name] = struct{}{}
	}
	for _, name := range g.meta.dropped {
		db.dropped[name] = struct{}{}
	}
	db.gen, db.dead = g, nil
	for name := range db.dropped {
		if n, ok := g.find(name); ok {
			if db.dead == nil {
				db.dead = map[uint32]struct{}{}
			}
			db.dead[n] = struct{}{}
		}
	}
	db.mem = db.mem.without(func(name pack.Name) bool {
		_, gone := db.dropped[name]
		_, in := g.find(name)
		return gone || in
	})
	db.buildAt = db.opt.MemoryLimit
	db.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// full reports whether it is time to build.
func (db *DB) full() bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.cache.dir != "" && !db.closed && db.mem.published >= db.buildAt
}

// buildInBackground builds if it is time and nobody does.
func (db *DB) buildInBackground() {
	if !db.full() {
		return
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.building || db.closed {
		return
	}
	db.building = true
	db.background.Go(func() {
		db.build(db.stop)
		db.mu.Lock()
		db.building = false
		db.mu.Unlock()
	})
}

// build writes the next generation and switches to it, if it is time and the
// builder's lock is free. Whatever goes wrong is logged: memory still holds
// all, and the next attempt comes when it has grown by another quarter of the
// limit.
func (db *DB) build(ctx context.Context) {
	if !db.full() {
		return
	}
	db.buildMu.Lock()
	defer db.buildMu.Unlock()
	if !db.full() {
		return
	}
	lock, err := db.cache.lockBuilder()
	if lock != nil {
		defer lock.Close()
		// Another process may just have built.
		if db.takeOver(); !db.full() {
			return
		}
		var number uint64
		if number, err = db.writeNext(ctx); err == nil {
			db.cache.sweep(number)
		}
	}
	if err != nil && ctx.Err() == nil {
		db.opt.Logf("index cache: %v; keeping what is new in memory", err)
	}
	if err != nil || lock == nil {
		db.mu.Lock()
		db.buildAt = db.mem.published + max(1, db.opt.MemoryLimit/4)
		db.mu.Unlock()
	}
}

// writeNext writes the next generation beside all others, renames it in, and
// switches to it. The caller has buildMu and the builder's lock.
func (db *DB) writeNext(ctx context.Context) (number uint64, err error) {
	n := db.plan()
	if n.base != nil {
		defer n.base.release()
	}
	newest, err := db.cache.numbers()
	if err != nil {
		return 0, err
	}
	number = 1
	if len(newest) > 0 {
		number = newest[0] + 1
	}
	// Only the successor of the newest one holds all that others may have
	// open: the builder's lock has kept everybody from adding another.
	if n.base != nil && len(newest) > 0 && n.base.number == newest[0] && n.base.inPlace() {
		n.meta.lineage = n.base.meta.lineage
	} else if err := db.random(n.meta.lineage[:]); err != nil {
		return 0, err
	}
	db.cache.sweep(number - 1)
	room, err := db.room(n.largest)
	if err != nil {
		return 0, err
	}
	tmp, err := os.MkdirTemp(db.cache.dir, tempPrefix)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(tmp)
	if err := n.write(ctx, tmp, room); err != nil {
		if n.base != nil && errors.Is(err, chunk.ErrCorrupt) {
			db.lose(n.base, err)
		}
		return 0, err
	}
	path := db.cache.path(number)
	if err := os.Rename(tmp, path); err != nil {
		return 0, err
	}
	if err := syncDir(db.cache.dir); err != nil {
		return 0, err
	}
	g, err := openGeneration(path, number, db.repo)
	if err != nil {
		return 0, err
	}
	db.use(g)
	return number, nil
}

// room returns how many bytes the cache may grow by, or errNoRoom if that is
// less than a generation of that size needs.
func (db *DB) room(want int64) (int64, error) {
	if db.opt.MaxBytes == 0 {
		return math.MaxInt64, nil
	}
	used, err := size(db.cache.dir)
	if err != nil {
		return 0, err
	}
	if room := db.opt.MaxBytes - used; room >= want {
		return room, nil
	}
	return 0, fmt.Errorf("a generation of %d bytes beside %d bytes in use, the limit is %d: %w", want, used, db.opt.MaxBytes, errNoRoom)
}
