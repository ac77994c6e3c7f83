package chunkstore

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// Across a network a request costs as much time as some megabytes do. So what
// will be wanted is fetched in pieces of packs, ahead of who wants it, and kept
// as it is stored until it is.
const (
	// maxPiece is the most that one request fetches in bytes for a reader that reads
	// on, unless a single frame has more; maxAnnounced of what was announced.
	maxPiece     = 4 << 20
	maxAnnounced = 8 << 20
	// maxGap is how many bytes that nobody asked for are fetched rather than to
	// make two requests: a frame or two, for those of files that were stored at the
	// same time alternate.
	maxGap = 512 << 10
	// near is how far behind the last piece a reader still counts as reading on.
	near = 1 << 20
	// piecesAhead is how many pieces a reader that reads on is kept ahead of.
	piecesAhead = 2
	// firstMeta is the first piece of a pack with pages, and all of it soon is
	// here: who looks at one page looks at others.
	firstMeta = 512 << 10
	// growth is from piece to piece.
	growth = 4
	// lanes is how many pieces of what was announced are under way at once, small
	// ones (below half of maxAnnounced) only if there are fewer than smallLanes: what
	// is announced meanwhile goes along with its neighbours.
	lanes      = 6
	smallLanes = 2
	// frameHead is what stands in front of each frame in a pack.
	frameHead = 4
	// defaultAhead is how many bytes of pieces are kept, those under way included.
	defaultAhead = 96 << 20
	// heads is how many readers of one pack are told apart.
	heads = 4
	// maxPending is how many frames may be announced that are not under way yet.
	maxPending = 1 << 14
	// maxNearby is of how many packs is remembered how they are read.
	maxNearby = 1024
)

// piece is a part of a pack that is here or under way.
type piece struct {
	pack      pack.Name
	off, end  int64
	wanted    int64 // bytes that nobody has taken yet; what is not known to be a frame counts, too
	taken     bool  // somebody has taken a frame
	announced bool
	used      uint64        // when it was touched last, by fetcher.clock
	by        *head         // the reader that it was fetched for; nil: it was announced
	done      chan struct{} // closed when p or err is set
	p         []byte
	err       error
}

// spent reports whether nobody is known to want more of it.
func (pc *piece) spent() bool {
	if pc.announced {
		return pc.wanted <= 0
	}
	return pc.taken
}

// head is where a reader of a pack is expected next.
type head struct {
	next  int64 // behind the last piece
	size  int64 // of the last piece
	steps int   // how often it came as expected
}

// nearby is what is known of the reading in one pack.
type nearby struct {
	pieces  []*piece // by off; none overlaps another
	pending []place  // announced and not under way, by off
	heads   [heads]*head
	turn    int
	grown   int64 // of a pack with pages: the last piece
}

// fetcher reads stored frames from a backend across a network. It holds at most
// limit bytes of pieces, beside what single frames have that were asked for when
// all of that was under way. It is safe for concurrent use.
type fetcher struct {
	b     backend.Backend
	limit int64
	life  context.Context
	end   context.CancelFunc

	mu     sync.Mutex
	packs  map[pack.Name]*nearby
	bytes  int64
	clock  uint64
	order  []place // what was announced, oldest first; some is not pending any more
	flying int     // pieces that were announced and are under way
}

func newFetcher(b backend.Backend, limit int64) *fetcher {
	f := &fetcher{b: b, limit: limit, packs: map[pack.Name]*nearby{}}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// place is where a stored frame lies.
type place struct {
	pack   pack.Name
	kind   pack.Kind
	size   int64 // of the pack, as its listing says
	off, n int64
}

// held returns a stored frame that is here, under way or announced; ok false if it
// is none of these, or failed. The bytes are the caller's.
func (f *fetcher) held(ctx context.Context, at place) (p []byte, ok bool) {
	f.mu.Lock()
	parts, whole := f.cover(at)
	var ahead []*piece
	if !whole {
		nb := f.packs[at.pack]
		if nb == nil {
			f.mu.Unlock()
			return nil, false
		}
		i, found := nb.find(at)
		if !found {
			f.mu.Unlock()
			return nil, false
		}
		ahead = f.launch(nb, i, false)
		parts, whole = f.cover(at)
	} else {
		ahead = f.readOn(at, parts[len(parts)-1])
	}
	f.mu.Unlock()
	f.start(ahead)
	if !whole {
		return nil, false
	}
	p, err := f.take(ctx, at, parts)
	return p, err == nil
}

// fetch gets a stored frame that is not held, and what will be wanted with it. The
// bytes are the caller's.
func (f *fetcher) fetch(ctx context.Context, at place) ([]byte, error) {
	f.mu.Lock()
	parts, whole := f.cover(at)
	var due []*piece
	if !whole {
		from, to, by := f.window(at)
		from, to = f.gap(at, from, to)
		if f.makeRoom(to-from, false) < to-from {
			from, to, by = at.off, at.off+at.n, nil
		}
		// Making room may have dropped a piece that the gap ended at.
		due = f.add(at, min(from, at.off), max(to, at.off+at.n), by)
		parts, _ = f.cover(at)
	}
	f.mu.Unlock()
	f.start(due)
	p, err := f.take(ctx, at, parts)
	if err == nil || ctx.Err() != nil || f.life.Err() != nil {
		return p, err
	}
	if len(due) == 1 && due[0].off == at.off && due[0].end == at.off+at.n {
		return nil, err
	}
	// What failed may be what lies beside it, where a listing lies.
	return f.b.Get(ctx, at.pack.Object(), at.off, at.n)
}

// near returns what is known of a pack's reading. The caller has mu.
func (f *fetcher) near(name pack.Name) *nearby {
	nb := f.packs[name]
	if nb == nil {
		if len(f.packs) >= maxNearby {
			for name, old := range f.packs {
				if len(old.pieces)+len(old.pending) == 0 {
					delete(f.packs, name)
				}
			}
		}
		nb = &nearby{}
		f.packs[name] = nb
	}
	return nb
}

// cover returns the pieces that a frame lies in, whole false if there is a gap.
// The caller has mu.
func (f *fetcher) cover(at place) (parts []*piece, whole bool) {
	nb := f.packs[at.pack]
	if nb == nil {
		return nil, false
	}
	pos := at.off
	i, _ := slices.BinarySearchFunc(nb.pieces, pos, func(pc *piece, pos int64) int { return cmp.Compare(pc.end, pos+1) })
	for ; i < len(nb.pieces) && nb.pieces[i].off <= pos; i++ {
		parts = append(parts, nb.pieces[i])
		if pos = nb.pieces[i].end; pos >= at.off+at.n {
			break
		}
	}
	for _, pc := range parts {
		f.clock++
		pc.used = f.clock
	}
	return parts, pos >= at.off+at.n
}

// window decides how much to fetch with a frame that is not here. The caller has
// mu.
func (f *fetcher) window(at place) (from, to int64, by *head) {
	nb, end := f.near(at.pack), at.off+at.n
	if at.kind == pack.Meta {
		// A tree's pages lie behind those of what is in it: so to both sides.
		nb.grown = min(max(firstMeta, nb.grown*growth), 2*maxPiece)
		from = at.off / nb.grown * nb.grown
		return from, max(end, min(from+nb.grown, at.size)), nil
	}
	for _, h := range nb.heads {
		if h != nil && at.off >= h.next-maxGap && at.off <= h.next+near {
			h.steps++
			h.size = min(max(at.n, h.size)*growth, maxPiece)
			h.next = max(end, min(at.off+h.size, at.size))
			return at.off, h.next, h
		}
	}
	h := &head{next: end, size: at.n}
	nb.heads[nb.turn%heads] = h
	nb.turn++
	return at.off, end, h
}

// gap narrows a window to what is missing around a frame. The caller has mu.
func (f *fetcher) gap(at place, from, to int64) (int64, int64) {
	for _, pc := range f.near(at.pack).pieces {
		if pc.end < at.off+at.n {
			from = max(from, pc.end)
		}
		if pc.off > at.off {
			to = min(to, pc.off)
		}
	}
	return from, to
}

// readOn returns what to fetch ahead of a reader who has come as far as a frame
// that is in a piece. The caller has mu.
func (f *fetcher) readOn(at place, pc *piece) (due []*piece) {
	h := pc.by
	if h == nil || h.steps == 0 {
		return nil
	}
	for h.next < at.size && h.next-at.off < piecesAhead*h.size {
		h.size = min(h.size*growth, maxPiece)
		to := min(h.next+h.size, at.size)
		if f.makeRoom(to-h.next, true) < to-h.next {
			break
		}
		due = append(due, f.add(at, h.next, to, h)...)
		h.next = to
	}
	return due
}

// add makes pieces of what is not here of a part of a pack. The caller has mu.
func (f *fetcher) add(at place, from, to int64, by *head) (due []*piece) {
	nb := f.near(at.pack)
	for from < to {
		i, _ := slices.BinarySearchFunc(nb.pieces, from, func(pc *piece, pos int64) int { return cmp.Compare(pc.end, pos+1) })
		if i < len(nb.pieces) && nb.pieces[i].off <= from {
			from = nb.pieces[i].end
			continue
		}
		end := to
		if i < len(nb.pieces) {
			end = min(end, nb.pieces[i].off)
		}
		f.clock++
		pc := &piece{pack: at.pack, off: from, end: end, wanted: end - from, by: by, used: f.clock, done: make(chan struct{})}
		nb.pieces = slices.Insert(nb.pieces, i, pc)
		f.bytes += end - from
		due = append(due, pc)
		from = end
	}
	return due
}

// drop forgets a piece. The caller has mu.
func (f *fetcher) drop(pc *piece) {
	nb := f.packs[pc.pack]
	if i := slices.Index(nb.pieces, pc); i >= 0 {
		nb.pieces = slices.Delete(nb.pieces, i, i+1)
		f.bytes -= pc.end - pc.off
	}
}

// distrust forgets what is here of a frame that has turned out to be none.
func (f *fetcher) distrust(at place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	parts, _ := f.cover(at)
	for _, pc := range parts {
		if pc.p != nil { // else it is fetched anew already
			f.drop(pc)
		}
	}
}

// makeRoom drops what was not touched for the longest time until n more bytes
// may be fetched, and returns how many may: first what nobody is known to want any
// more. What is only hoped for pushes out nothing else. The caller has mu.
func (f *fetcher) makeRoom(n int64, hope bool) int64 {
	for f.bytes+n > f.limit {
		var oldest *piece
		for _, nb := range f.packs {
			for _, pc := range nb.pieces {
				if pc.p == nil || hope && !pc.spent() {
					continue
				}
				if oldest == nil || pc.spent() && !oldest.spent() || pc.spent() == oldest.spent() && pc.used < oldest.used {
					oldest = pc
				}
			}
		}
		if oldest == nil {
			break // all is under way
		}
		f.drop(oldest)
	}
	return f.limit - f.bytes
}

// start fetches pieces in the background.
func (f *fetcher) start(due []*piece) {
	for _, pc := range due {
		go func() {
			f.get(pc)
			if !pc.announced {
				return
			}
			f.mu.Lock()
			f.flying--
			next := f.dispatch()
			f.mu.Unlock()
			f.start(next)
		}()
	}
}

// get fetches a piece, for all who wait for it: so nobody's context ends it but
// the fetcher's.
func (f *fetcher) get(pc *piece) {
	p, err := f.b.Get(f.life, pc.pack.Object(), pc.off, pc.end-pc.off)
	f.mu.Lock()
	if pc.p, pc.err = p, err; err != nil {
		f.drop(pc)
	}
	f.mu.Unlock()
	close(pc.done)
}

// take waits for the pieces that a frame lies in, and cuts it out.
func (f *fetcher) take(ctx context.Context, at place, parts []*piece) ([]byte, error) {
	for _, pc := range parts {
		select {
		case <-pc.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if pc.err != nil {
			return nil, pc.err
		}
	}
	p := make([]byte, 0, at.n)
	for _, pc := range parts {
		p = append(p, pc.p[max(at.off, pc.off)-pc.off:min(at.off+at.n, pc.end)-pc.off]...)
	}
	f.mu.Lock()
	for _, pc := range parts {
		pc.taken = true
		pc.wanted -= min(at.off+at.n, pc.end) - max(at.off, pc.off) + frameHead
	}
	next := f.dispatch() // for which there may be room now
	f.mu.Unlock()
	f.start(next)
	return p, nil
}
