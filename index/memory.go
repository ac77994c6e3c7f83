package index

import (
	"bytes"
	"hash/maphash"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// maxLocations bounds how many locations of one ID are kept for each writer. A
// repository has a handful at most; a hostile segment could claim millions.
const maxLocations = 16

const pageEntries = 1024

// entry is one location in memory: 64 bytes, no pointer.
type entry struct {
	id    chunk.ID
	place        // pack is a slot
	next  uint32 // entry number + 1 of the next one in the bucket; 0: none
}

// memPack is a pack whose chunks are in memory.
type memPack struct {
	name      pack.Name
	info      chunkstore.PackInfo
	entries   int
	published bool // a segment lists it
	dropped   bool // or gone, or overruled: another slot may have its name
}

// memory is what no generation holds: a hash table with chains in a slab that
// never moves. It takes 68 to 72 bytes for a location. Its user locks: writers
// exclude all others. But what was added may be read without a lock, as build
// does, through the pages that were there then: only next ever changes.
type memory struct {
	seed      maphash.Seed
	heads     []uint32 // entry number + 1
	pages     []*[pageEntries]entry
	n         int
	packs     []memPack // by slot
	slots     map[pack.Name]uint32
	published int // entries of published packs
}

func newMemory() *memory {
	return &memory{seed: maphash.MakeSeed(), heads: make([]uint32, 1024), slots: map[pack.Name]uint32{}}
}

func (m *memory) at(i uint32) *entry { return &m.pages[i/pageEntries][i%pageEntries] }

// bucket hashes with a seed of its own, for who writes segments chooses IDs.
func (m *memory) bucket(id *chunk.ID) *uint32 {
	return &m.heads[maphash.Bytes(m.seed, id[:])&uint64(len(m.heads)-1)]
}

// addPack makes room for a pack and returns its slot.
func (m *memory) addPack(p memPack) uint32 {
	p.entries = 0
	slot := uint32(len(m.packs))
	m.packs = append(m.packs, p)
	m.slots[p.name] = slot
	return slot
}

// add adds a location in the pack of that slot. One location in each pack is
// kept, and maxLocations for each writer.
func (m *memory) add(id *chunk.ID, p place) {
	if m.n >= len(m.heads) {
		m.grow()
	}
	head := m.bucket(id)
	same := 0
	for i := *head; i != 0; {
		e := m.at(i - 1)
		if e.id == *id {
			if e.pack == p.pack {
				return
			}
			if q := &m.packs[e.pack]; !q.dropped && q.info.Writer == m.packs[p.pack].info.Writer {
				same++
			}
		}
		i = e.next
	}
	if same >= maxLocations {
		return
	}
	if m.n == len(m.pages)*pageEntries {
		m.pages = append(m.pages, new([pageEntries]entry))
	}
	*m.at(uint32(m.n)) = entry{id: *id, place: p, next: *head}
	m.n++
	*head = uint32(m.n)
	q := &m.packs[p.pack]
	q.entries++
	if q.published {
		m.published++
	}
}

func (m *memory) grow() {
	m.heads = make([]uint32, 2*len(m.heads))
	for i := range uint32(m.n) {
		e := m.at(i)
		head := m.bucket(&e.id)
		e.next, *head = *head, i+1
	}
}

// publish notes that a segment lists the pack.
func (m *memory) publish(slot uint32) {
	if p := &m.packs[slot]; !p.published {
		p.published = true
		m.published += p.entries
	}
}

// hide makes the pack and its locations invisible.
func (m *memory) hide(slot uint32) {
	m.packs[slot].dropped = true
	delete(m.slots, m.packs[slot].name)
}

// lookup appends the locations of a chunk to dst.
func (m *memory) lookup(id *chunk.ID, dst []pack.Location) []pack.Location {
	for i := *m.bucket(id); i != 0; {
		e := m.at(i - 1)
		if e.id == *id {
			if p := &m.packs[e.pack]; !p.dropped {
				dst = append(dst, e.location(p.name))
			}
		}
		i = e.next
	}
	return dst
}

// without returns a memory without the packs that are dropped or that gone
// reports.
func (m *memory) without(gone func(pack.Name) bool) *memory {
	kept := newMemory()
	const none = ^uint32(0)
	slots := make([]uint32, len(m.packs))
	left := false
	for i, p := range m.packs {
		slots[i] = none
		if !p.dropped && !gone(p.name) {
			slots[i] = kept.addPack(p)
			left = true
		}
	}
	for i := 0; left && i < m.n; i++ {
		e := m.at(uint32(i))
		if s := slots[e.pack]; s != none {
			p := e.place
			p.pack = s
			kept.add(&e.id, p)
		}
	}
	return kept
}

// sorted returns the numbers of the entries that live in these slots, in the
// order of their IDs. pages and n are those of an earlier moment.
func sortedEntries(pages []*[pageEntries]entry, n int, live []bool) []uint32 {
	at := func(i uint32) *entry { return &pages[i/pageEntries][i%pageEntries] }
	order := make([]uint32, 0, n)
	for i := range uint32(n) {
		if s := at(i).pack; int(s) < len(live) && live[s] {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b uint32) int {
		x, y := at(a), at(b)
		if c := bytes.Compare(x.id[:], y.id[:]); c != 0 {
			return c
		}
		return int(a) - int(b)
	})
	return order
}
