package repo

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// liveSet remembers which chunks and pages live snapshots need, and of each
// whether a place was found that will hold it.
//
// Of a data chunk 62 bits of the ID are kept: two chunks that are taken for one
// cost space, as the dead one stays. Of a page 126 bits are kept: taken for one
// that has been walked, what is below it would be lost. IDs are hashes under a
// secret key; who holds that key can make two equal ones of his own, but not one
// equal to a given one. A chunk takes 12 to 24 bytes, a page twice that.
//
// A page may refer to any ID, to such as nothing hashes to, too. So where an ID
// stands in the table depends on a seed that nobody knows, or a hostile page could
// make all that it names stand in one row, and a search take hours. And a page's
// ID that is like another's in those bits has no bytes: marking it is an error.
type liveSet struct {
	chunks [markShards]idSet
	pages  [markShards]idSet
}

const markShards = 64

// idSet is a hash table with open addressing. A key is one or two words; in the
// first, bit 0 says that the slot is taken, and bit 1 that a place was found.
type idSet struct {
	mu    sync.Mutex
	words int // of a key
	seed  [2]uint64
	slots []uint64
	n     int
	held  int
}

func newLiveSet() *liveSet {
	m := &liveSet{}
	seed := maphash.MakeSeed()
	secret := [2]uint64{maphash.String(seed, "0"), maphash.String(seed, "1")}
	for i := range m.chunks {
		m.chunks[i].words, m.pages[i].words = 1, 2
		m.chunks[i].seed, m.pages[i].seed = secret, secret
	}
	return m
}

// set returns where an ID of that kind of pack is kept.
func (m *liveSet) set(kind pack.Kind, id *chunk.ID) *idSet {
	if kind == pack.Meta {
		return &m.pages[id[31]%markShards]
	}
	return &m.chunks[id[31]%markShards]
}

// add marks a chunk, and reports whether it was not marked before.
func (m *liveSet) add(kind pack.Kind, id *chunk.ID) bool {
	s := m.set(kind, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n*10 >= len(s.slots)/s.words*7 {
		s.grow()
	}
	lo, hi := key(id)
	i := s.find(lo, hi)
	if s.slots[i] != 0 {
		return false
	}
	s.slots[i] = lo
	if s.words == 2 {
		s.slots[i+1] = hi
	}
	s.n++
	return true
}

// live reports whether a chunk is marked.
func (m *liveSet) live(kind pack.Kind, id *chunk.ID) bool {
	s := m.set(kind, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n > 0 && s.slots[s.find(key(id))] != 0
}

// hold notes that a place was found for a chunk, and reports whether it is
// marked and had none before.
func (m *liveSet) hold(kind pack.Kind, id *chunk.ID) bool {
	s := m.set(kind, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return false
	}
	i := s.find(key(id))
	if s.slots[i] == 0 || s.slots[i]&2 != 0 {
		return false
	}
	s.slots[i] |= 2
	s.held++
	return true
}

// release forgets all places.
func (m *liveSet) release() {
	for i := range m.chunks {
		for _, s := range []*idSet{&m.chunks[i], &m.pages[i]} {
			for at := 0; at < len(s.slots); at += s.words {
				s.slots[at] &^= 2
			}
			s.held = 0
		}
	}
}

// count returns how many chunks and pages are marked, and for how many of them
// no place was found.
func (m *liveSet) count() (chunks, pages, homeless uint64) {
	for i := range m.chunks {
		c, p := &m.chunks[i], &m.pages[i]
		chunks += uint64(c.n)
		pages += uint64(p.n)
		homeless += uint64(c.n - c.held + p.n - p.held)
	}
	return chunks, pages, homeless
}

func key(id *chunk.ID) (lo, hi uint64) {
	return binary.LittleEndian.Uint64(id[:])&^3 | 1, binary.LittleEndian.Uint64(id[8:])
}

// find returns the slot of a key, or the free one where it would be.
func (s *idSet) find(lo, hi uint64) int {
	n := uint64(len(s.slots) / s.words)
	if s.words == 1 {
		hi = 0
	}
	a, b := bits.Mul64(lo^s.seed[0], hi^s.seed[1])
	for i := (a ^ b) & (n - 1); ; i = (i + 1) & (n - 1) {
		at := int(i) * s.words
		if s.slots[at] == 0 || s.slots[at]&^2 == lo && (s.words == 1 || s.slots[at+1] == hi) {
			return at
		}
	}
}

func (s *idSet) grow() {
	old := s.slots
	s.slots = make([]uint64, max(64*s.words, 2*len(old)))
	for i := 0; i < len(old); i += s.words {
		if old[i] == 0 {
			continue
		}
		var hi uint64
		if s.words == 2 {
			hi = old[i+1]
		}
		at := s.find(old[i]&^2, hi)
		copy(s.slots[at:at+s.words], old[i:])
	}
}

// MarkProgress counts while snapshots are marked; it may be read at any time.
type MarkProgress struct{ Snapshots, SnapshotsTotal, Pages atomic.Uint64 }

// marker walks trees with all cores. A page is walked once.
type marker struct {
	r        *Repo
	m        *liveSet
	p        *MarkProgress
	mu       sync.Mutex
	more     sync.Cond
	unwalked []chunk.ID // pages marked, but not walked yet
	busy     int
	err      error
}

// markBatch is how many pages a worker takes at once.
const markBatch = 16

// markLive marks all that these snapshots need. A page that cannot be read is an
// error: nobody knows what is below it.
func (r *Repo) markLive(ctx context.Context, m *liveSet, snaps []*Snapshot, p *MarkProgress) error {
	w := &marker{r: r, m: m, p: p}
	w.more.L = &w.mu
	p.SnapshotsTotal.Add(uint64(len(snaps)))
	// In order of time: neighbours share most of their pages, so that a page's
	// frame is still in the cache when the rest of it is wanted.
	for _, s := range snaps {
		for _, root := range []chunk.ID{s.Tree.ID, s.Witness.ID} {
			if !root.IsZero() && m.add(pack.Meta, &root) {
				w.unwalked = append(w.unwalked, root)
			}
		}
		if err := w.run(ctx); err != nil {
			return fmt.Errorf("snapshot %s of %s or one that shares its pages: %w; `cutbank verify` tells more", s.ID, s.Name, err)
		}
		p.Snapshots.Add(1)
	}
	return nil
}

// run walks until nothing is left to do.
func (w *marker) run(ctx context.Context) error {
	if len(w.unwalked) == 0 {
		return ctx.Err()
	}
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w.worker(ctx)
		}()
	}
	wg.Wait()
	return w.err
}

func (w *marker) worker(ctx context.Context) {
	var batch, found []chunk.ID
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.unwalked) == 0 && w.busy > 0 && w.err == nil {
			w.more.Wait()
		}
		if len(w.unwalked) == 0 || w.err != nil {
			w.more.Broadcast()
			return
		}
		n := len(w.unwalked) - min(markBatch, len(w.unwalked))
		batch = append(batch[:0], w.unwalked[n:]...)
		w.unwalked = w.unwalked[:n]
		w.busy++
		w.mu.Unlock()
		var err error
		found, err = w.walk(ctx, batch, found[:0])
		w.mu.Lock()
		w.busy--
		w.unwalked = append(w.unwalked, found...)
		if err != nil && w.err == nil {
			w.err = err
		}
		w.more.Broadcast()
	}
}

// walk marks what pages refer to, and appends to found the pages among that
// which are new.
func (w *marker) walk(ctx context.Context, batch, found []chunk.ID) ([]chunk.ID, error) {
	data := func(id chunk.ID) { w.m.add(pack.Data, &id) }
	page := func(id chunk.ID) {
		if w.m.add(pack.Meta, &id) {
			found = append(found, id)
		}
	}
	for _, id := range batch {
		if err := ctx.Err(); err != nil {
			return found, err
		}
		p, err := w.r.store.Page(ctx, id)
		if err == nil {
			err = tree.References(p, page, data)
		}
		if err != nil {
			return found, fmt.Errorf("page %s: %w", id, err)
		}
		w.p.Pages.Add(1)
	}
	return found, nil
}
