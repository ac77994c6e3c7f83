package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
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
// memory has of it. Where it lists a pack otherwise than memory does, memory
// is right if it is above doubt, and else until settle has asked the pack. The
// caller has buildMu.
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
		db.covered[name] = 0
	}
	db.unbuilt = 0
	for _, n := range db.covered {
		db.unbuilt += n
	}
	for _, name := range g.meta.dropped {
		db.dropped[name] = struct{}{}
	}
	db.gen, db.dead = g, nil
	for name := range db.dropped {
		if n, ok := g.find(name); ok {
			db.bury(n)
		}
	}
	mem := db.mem
	db.mem = mem.without(func(name pack.Name) bool {
		_, gone := db.dropped[name]
		n, in := g.find(name)
		if gone || !in {
			return gone
		}
		mine := &mem.packs[mem.slots[name]].info
		its, ok, err := g.pack(name)
		if err != nil || !ok || sameListing(mine, &its) || db.overrules(name, mine.Writer, its.Writer) {
			return true // a damaged record is found by who needs it, and all is read again
		}
		db.bury(n)
		return false
	})
	db.buildAt, db.rereadAt = db.opt.MemoryLimit, max(rereadBytes, g.bytes()/8)
	db.mu.Unlock()
	if old != nil {
		old.release()
	}
}

// rereadBytes is from how many bytes of segments on it is time to build: each
// process has to read anew what the generation does not cover, also if it only
// lists once more what the generation holds.
const rereadBytes = 8 << 20

// full reports whether it is time to build.
func (db *DB) full() bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.cache.dir != "" && !db.closed && (db.mem.published >= db.buildAt || db.unbuilt >= db.rereadAt)
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
		if err = db.settle(ctx); err == nil {
			var number uint64
			if number, err = db.writeNext(ctx); err == nil {
				db.cache.sweep(number)
			}
		}
	}
	if err != nil && ctx.Err() == nil {
		db.opt.Logf("index cache: %v; keeping what is new in memory", err)
	}
	if err != nil || lock == nil {
		db.mu.Lock()
		db.buildAt = db.mem.published + max(1, db.opt.MemoryLimit/4)
		db.rereadAt = db.unbuilt + rereadBytes/4
		db.mu.Unlock()
	}
}

// writeNext writes the next generation beside all others, renames it in, and
// switches to it. The caller has buildMu and the builder's lock.
func (db *DB) writeNext(ctx context.Context) (number uint64, err error) {
	db.forgetVanished(ctx)
	n, err := db.plan()
	if err != nil {
		return 0, err
	}
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

// forgetVanished makes the generation to come do without packs that are gone.
// Merged segments leave them out without a word, so a cache that knows them from
// the segments before would know them for ever. It costs a listing, and only
// after a merge.
func (db *DB) forgetVanished(ctx context.Context) {
	db.mu.RLock()
	vanished := db.vanished
	db.mu.RUnlock()
	// Where listings lag, a pack that is not listed may be new.
	if !vanished || db.lag() > 0 {
		return
	}
	known := db.names(true)
	there, err := db.listPacks(ctx, packPrefix)
	if err != nil {
		if ctx.Err() == nil {
			db.opt.Logf("index cache: %v; packs that are gone stay in it", err)
		}
		return
	}
	db.forgetGone(known, there)
}

// forgetGone forgets those of the known packs, each of which was once listed by
// a segment, that a later listing of packs does not show. They are gone for
// good; that they were dropped need not be known any more.
func (db *DB) forgetGone(known []pack.Name, there map[pack.Name]backend.Info) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, name := range known {
		if _, ok := there[name]; !ok {
			db.hide(name)
		}
	}
	maps.DeleteFunc(db.dropped, func(name pack.Name, _ struct{}) bool {
		_, ok := there[name]
		return !ok
	})
	db.vanished = false
}

// names returns the packs that are known, or only those that a segment lists.
func (db *DB) names(published bool) []pack.Name {
	db.mu.RLock()
	defer db.mu.RUnlock()
	var names []pack.Name
	if db.gen != nil {
		for i, name := range db.gen.meta.names {
			if _, dead := db.dead[uint32(i)]; !dead {
				names = append(names, name)
			}
		}
	}
	for _, p := range db.mem.packs {
		if !p.dropped && (p.published || !published) {
			names = append(names, p.name)
		}
	}
	return names
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
