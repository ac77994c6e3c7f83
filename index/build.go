package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"

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

// next is what a new generation is made of, as it was at one moment.
type next struct {
	base    *generation // held; nil: none
	remap   []uint32    // number in base -> new number, or dropped
	pages   []*[pageEntries]entry
	order   []uint32 // entries of memory to take over, sorted
	packs   []memPack
	slots   []uint32 // slot -> new number
	meta    meta
	largest int64 // estimate of its size in bytes
}

const none = math.MaxUint32

// plan collects what the next generation is made of.
func (db *DB) plan() *next {
	db.mu.RLock()
	n := &next{base: db.gen, pages: slices.Clone(db.mem.pages), packs: slices.Clone(db.mem.packs)}
	entries := db.mem.n
	if n.base != nil {
		n.base.hold()
	}
	dropped := maps.Clone(db.dropped)
	n.meta = meta{repo: db.repo, covered: slices.Collect(maps.Keys(db.covered)), dropped: slices.Collect(maps.Keys(db.dropped))}
	db.mu.RUnlock()

	live := make([]bool, len(n.packs))
	for i, p := range n.packs {
		if live[i] = p.published && !p.dropped; live[i] {
			n.meta.names = append(n.meta.names, p.name)
		}
	}
	var old []pack.Name
	if n.base != nil {
		old = n.base.meta.names
		n.largest = n.base.bytes()
	}
	for _, name := range old {
		if _, gone := dropped[name]; !gone {
			n.meta.names = append(n.meta.names, name)
		}
	}
	slices.SortFunc(n.meta.names, compareNames)
	n.meta.names = slices.Compact(n.meta.names)
	number := func(name pack.Name) uint32 {
		if i, ok := slices.BinarySearchFunc(n.meta.names, name, compareNames); ok {
			return uint32(i)
		}
		return none
	}
	for _, name := range old {
		n.remap = append(n.remap, number(name))
	}
	for _, p := range n.packs {
		n.slots = append(n.slots, number(p.name))
	}
	n.order = sortedEntries(n.pages, entries, live)
	n.largest += int64(len(n.order))*80 + int64(len(n.packs))*1500
	return n
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

// write writes the generation's files into dir.
func (n *next) write(ctx context.Context, dir string, room int64) error {
	chunks := &tableWriter{dir: dir, prefix: "c", room: &room}
	defer chunks.abandon()
	if err := n.mergeChunks(ctx, chunks); err != nil {
		return err
	}
	packs := &tableWriter{dir: dir, prefix: "p", room: &room}
	defer packs.abandon()
	if err := n.mergePacks(ctx, packs); err != nil {
		return err
	}
	n.meta.chunks, n.meta.packs = chunks.written, packs.written
	p := appendMeta(nil, &n.meta)
	if room -= int64(len(p)); room < 0 {
		return errNoRoom
	}
	if err := writeFile(filepath.Join(dir, metaName), p); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, lockName), nil); err != nil {
		return err
	}
	return syncDir(dir)
}

// mergeChunks writes the chunks of base and memory in order.
func (n *next) mergeChunks(ctx context.Context, w *tableWriter) error {
	old := &cursor{ts: &tables{}}
	if n.base != nil {
		old = n.base.chunks.scan()
	}
	var key chunk.ID
	var value []byte
	more, i := old.next(), 0
	for more || i < len(n.order) {
		if n.meta.keys%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		// The smaller one of both heads; equal ones become one key.
		c := 1
		if i == len(n.order) {
			c = -1
		} else if more {
			c = bytes.Compare(old.key, n.at(i).id[:])
		}
		value = value[:0]
		if c <= 0 {
			if len(old.key) != len(key) {
				return fmt.Errorf("%s: a key of %d bytes: %w", n.base.path, len(old.key), chunk.ErrCorrupt)
			}
			copy(key[:], old.key)
			value = n.renumber(value, old.value)
			more = old.next()
		} else {
			key = n.at(i).id
		}
		for ; c >= 0 && i < len(n.order) && n.at(i).id == key; i++ {
			p := n.at(i).place
			if p.pack = n.slots[p.pack]; len(value) < maxLocations*locationSize {
				value = appendPlace(value, &p)
			}
		}
		if len(value) == 0 {
			continue
		}
		if err := w.add(key[:], value); err != nil {
			return err
		}
		n.meta.keys++
	}
	if old.err != nil {
		return fmt.Errorf("%s: %w", n.base.path, old.err)
	}
	return w.flush()
}

func (n *next) at(i int) *entry {
	e := n.order[i]
	return &n.pages[e/pageEntries][e%pageEntries]
}

// renumber appends the places in v that are not in dropped packs.
func (n *next) renumber(dst, v []byte) []byte {
	for ; len(v) >= locationSize; v = v[locationSize:] {
		p := getPlace(v)
		if int64(p.pack) >= int64(len(n.remap)) || n.remap[p.pack] == none {
			continue
		}
		p.pack = n.remap[p.pack]
		dst = appendPlace(dst, &p)
	}
	return dst
}

// mergePacks writes the records of all packs in order.
func (n *next) mergePacks(ctx context.Context, w *tableWriter) error {
	slot := map[uint32]int{}
	for i, num := range n.slots {
		if p := &n.packs[i]; p.published && !p.dropped {
			slot[num] = i
		}
	}
	old := &cursor{ts: &tables{}}
	if n.base != nil {
		old = n.base.packs.scan()
	}
	var value []byte
	more := old.next()
	for num, name := range n.meta.names {
		if num%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		for more && bytes.Compare(old.key, name[:]) < 0 { // dropped
			more = old.next()
		}
		switch i, ok := slot[uint32(num)]; {
		case ok:
			value = appendRecord(value[:0], &n.packs[i].info)
		case more && bytes.Equal(old.key, name[:]):
			value = append(value[:0], old.value...)
		default:
			return fmt.Errorf("%s: pack %s has no record: %w", n.base.path, name, errors.Join(old.err, chunk.ErrCorrupt))
		}
		if err := w.add(name[:], value); err != nil {
			return err
		}
	}
	return w.flush()
}
