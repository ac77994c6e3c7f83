package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// next is what a new generation is made of, as it was at one moment.
type next struct {
	base    *generation // held; nil: none
	remap   []uint32    // number in base -> new number, or dropped
	pages   []*[pageEntries]entry
	order   []uint32 // entries of memory to take over, sorted
	packs   []memPack
	slots   []uint32       // slot -> new number
	recent  map[uint32]int // new number -> slot, of the packs to take over
	meta    meta
	largest int64 // estimate of its size in bytes
}

const none = math.MaxUint32

// plan collects what the next generation is made of.
func (db *DB) plan() (*next, error) {
	db.mu.RLock()
	if len(db.disputed) > 0 {
		db.mu.RUnlock()
		return nil, fmt.Errorf("%d packs are listed in two ways, and it is not decided yet which is true", len(db.disputed))
	}
	n := &next{base: db.gen, pages: slices.Clone(db.mem.pages), packs: slices.Clone(db.mem.packs)}
	entries := db.mem.n
	if n.base != nil {
		n.base.hold()
	}
	dead := maps.Clone(db.dead)
	n.meta = meta{repo: db.repo, dropped: slices.Collect(maps.Keys(db.dropped))}
	for name := range db.covered {
		if _, partial := db.partial[name]; !partial { // the next process may know more writers
			n.meta.covered = append(n.meta.covered, name)
		}
	}
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
	for i, name := range old {
		if _, gone := dead[uint32(i)]; !gone {
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
	for i, name := range old {
		to := number(name)
		if _, gone := dead[uint32(i)]; gone {
			to = none // though memory may know another pack of that name
		}
		n.remap = append(n.remap, to)
	}
	n.recent = map[uint32]int{}
	for i, p := range n.packs {
		n.slots = append(n.slots, number(p.name))
		if live[i] {
			n.recent[n.slots[i]] = i
		}
	}
	n.order = sortedEntries(n.pages, entries, live)
	n.largest += int64(len(n.order))*80 + int64(len(n.packs))*1500
	return n, nil
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
			p.pack = n.slots[p.pack]
			value = appendPlace(value, &p)
		}
		if len(value) > maxLocations*locationSize {
			value = n.limit(value)
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

// limit leaves maxLocations places of each writer in v.
func (n *next) limit(v []byte) []byte {
	count := map[[16]byte]int{}
	kept := v[:0]
	for ; len(v) >= locationSize; v = v[locationSize:] {
		number := getPlace(v).pack
		var w [16]byte
		if i, ok := n.recent[number]; ok {
			w = n.packs[i].info.Writer
		} else if n.base != nil {
			w, _ = n.base.writer(n.meta.names[number]) // mergePacks will find the damage
		}
		if count[w]++; count[w] <= maxLocations {
			kept = append(kept, v[:locationSize]...)
		}
	}
	return kept
}

// mergePacks writes the records of all packs in order.
func (n *next) mergePacks(ctx context.Context, w *tableWriter) error {
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
		var listing [16]byte
		switch i, ok := n.recent[uint32(num)]; {
		case ok:
			value, listing = appendRecord(value[:0], &n.packs[i].info), n.packs[i].info.Listing
		case more && bytes.Equal(old.key, name[:]):
			value = append(value[:0], old.value...)
			if at, ok := n.base.find(name); ok {
				listing = n.base.meta.listing(at)
			}
		default:
			return fmt.Errorf("%s: pack %s has no record: %w", n.base.path, name, errors.Join(old.err, chunk.ErrCorrupt))
		}
		n.meta.listings = append(n.meta.listings, listing)
		if err := w.add(name[:], value); err != nil {
			return err
		}
	}
	return w.flush()
}
