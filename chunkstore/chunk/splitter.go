package chunk

import (
	"encoding/binary"
	"sync"

	"github.com/restic/chunker"
)

// Splitter finds where chunks end. It knows nothing of zero runs: Cutter does.
// A Splitter is not safe for concurrent use; it is cheap to keep and reuse.
type Splitter interface {
	// Next looks at the bytes that follow those of the previous call. It
	// returns the index in p to cut before, from 1 to len(p), and is then as
	// after Reset: the next call gets p from that index on. Or it returns -1:
	// the chunk goes on behind p.
	Next(p []byte) int

	// Reset forgets the chunk at work: the next byte starts a new one.
	Reset()

	// cutBehind reports whether the 64 bytes of w would let Next cut behind
	// them, in a chunk that is between its minimum and its maximum.
	cutBehind(w []byte) bool
}

// window is how many bytes decide about a cut.
const window = 64

// NewSplitter returns a Splitter, or the error of p.Validate. What is dear to
// compute is remembered for a few sets of parameters, so that a Splitter of
// known parameters costs little more than its memory (5 KiB).
func NewSplitter(p Params) (Splitter, error) {
	known.Lock()
	defer known.Unlock()
	if newer, ok := known.made[p]; ok {
		return newer(), nil
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	newer := newRabin
	if p.Kind == Gear {
		newer = newGear
	}
	if known.made == nil || len(known.made) >= 64 {
		known.made = make(map[Params]func() Splitter)
	}
	known.made[p] = newer(p)
	return known.made[p](), nil
}

var known struct {
	sync.Mutex
	made map[Params]func() Splitter // of valid parameters only
}

// rabin wraps the library's chunker. The library's own Reset goes through a
// lock that all chunkers share and through its options; copying a fresh one
// does neither.
type rabin struct {
	chunker.BaseChunker
	fresh, probe *chunker.BaseChunker // shared, never written to
}

func newRabin(p Params) func() Splitter {
	pol, avg := chunker.Pol(p.Secret), chunker.WithBaseAverageBits(p.cutBits())
	fresh := chunker.NewBase(pol, avg, chunker.WithBaseBoundaries(uint(p.Min), uint(p.Max)))
	probe := chunker.NewBase(pol, avg, chunker.WithBaseBoundaries(window, uint(p.Max)))
	return func() Splitter { return &rabin{*fresh, fresh, probe} }
}

func (r *rabin) Next(p []byte) int { return r.NextSplitPoint(p) }
func (r *rabin) Reset()            { r.BaseChunker = *r.fresh }

func (r *rabin) cutBehind(w []byte) bool {
	c := *r.probe
	return c.NextSplitPoint(w) == len(w)
}

// gear is the Gear hash with a minimum, a maximum, and a threshold instead of a
// mask: the high bits are where all 64 bytes have arrived.
type gear struct {
	table     *[256]uint64 // shared, never written to
	threshold uint64
	min, max  int
	n         int    // bytes of the chunk so far
	hash      uint64 // of the bytes from min-64 on
}

// gearFloor is the threshold of the smallest average, below which the hash of
// no run of equal bytes lies.
const gearFloor = 1 << 55

func newGear(p Params) func() Splitter {
	table := gearTable(p.Secret)
	g := gear{table: table, threshold: 1 << (64 - p.cutBits()), min: p.Min, max: p.Max}
	return func() Splitter { c := g; return &c }
}

func gearTable(secret uint64) *[256]uint64 {
	var seed, counter [8]byte
	binary.LittleEndian.PutUint64(seed[:], secret)
	table := new([256]uint64)
	for filled, i := 0, uint64(0); filled < len(table); i++ {
		binary.LittleEndian.PutUint64(counter[:], i)
		block := Derive("cutbank gear table v1", seed[:], counter[:])
		for b := block[:]; len(b) > 0 && filled < len(table); b = b[8:] {
			if w := binary.LittleEndian.Uint64(b); -w >= gearFloor {
				table[filled] = w
				filled++
			}
		}
	}
	return table
}

func (g *gear) Reset() { g.n, g.hash = 0, 0 }

func (g *gear) Next(p []byte) int {
	from := 0
	if skip := g.min - window - g.n; skip > 0 {
		if skip >= len(p) {
			g.n += len(p)
			return -1
		}
		from = skip
	}
	h := g.hash
	if prime := g.min - 1 - g.n; prime > from {
		// The hash is full when it has seen the 64 bytes before the minimum.
		to := min(prime, len(p))
		for _, b := range p[from:to] {
			h = h<<1 + g.table[b]
		}
		if from = to; from == len(p) {
			g.n, g.hash = g.n+len(p), h
			return -1
		}
	}
	p = p[:min(len(p), g.max-g.n)]
	if i := g.scan(p[from:], &h); i >= 0 {
		g.Reset()
		return from + i + 1
	}
	if g.n+len(p) == g.max {
		g.Reset()
		return len(p)
	}
	g.n, g.hash = g.n+len(p), h
	return -1
}

// scan returns the index of the first byte behind which the hash says to cut,
// or -1. It is apart to keep its loop in registers.
func (g *gear) scan(p []byte, hash *uint64) int {
	table, threshold, h := g.table, g.threshold, *hash
	for i, b := range p {
		h = h<<1 + table[b]
		if h < threshold {
			return i
		}
	}
	*hash = h
	return -1
}

func (g *gear) cutBehind(w []byte) bool {
	var h uint64
	for _, b := range w {
		h = h<<1 + g.table[b]
	}
	return h < g.threshold
}
