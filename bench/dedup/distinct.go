package dedup

import "math"

// distinct is a set of hashes of bounded size: a hash table with open
// addressing, at most three quarters full. When it is full it keeps only the
// lower half of the hashes.
type distinct struct {
	table []uint64 // a power of two long; 0 is an empty place
	n     int      // hashes in it
	limit int      // hashes that it may hold
	shift uint     // hashes below 2^(64-shift) are kept
}

// newDistinct makes a set of at most limit hashes.
func newDistinct(limit int) distinct { return distinct{table: make([]uint64, 64), limit: limit} }

// add puts h into the set and returns how many distinct hashes it stands for: 0
// if it was there before or is not of those that are kept.
func (d *distinct) add(h uint64) float64 {
	if d.shift > 0 && h>>(64-d.shift) != 0 {
		return 0
	}
	if h == 0 {
		h = 1 // one hash in 2^64 is taken for its neighbour
	}
	if !d.insert(h) {
		return 0
	}
	weight := 1 / d.rate() // of when it was let in
	if d.n++; d.n > d.limit {
		for d.n > d.limit {
			d.shift++
			d.rebuild(len(d.table))
		}
	} else if d.n > len(d.table)/4*3 {
		d.rebuild(2 * len(d.table))
	}
	return weight
}

// rate is the share of all hashes that is kept.
func (d *distinct) rate() float64 { return math.Ldexp(1, -int(d.shift)) }

// insert returns false if h is there already.
func (d *distinct) insert(h uint64) bool {
	// The high bits are equal for all once they are sampled.
	mask := uint64(len(d.table) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch d.table[i] {
		case h:
			return false
		case 0:
			d.table[i] = h
			return true
		}
	}
}

// rebuild makes a table of size places of the hashes that are still kept.
func (d *distinct) rebuild(size int) {
	old := d.table
	d.table, d.n = make([]uint64, size), 0
	for _, h := range old {
		if h != 0 && (d.shift == 0 || h>>(64-d.shift) == 0) {
			d.insert(h)
			d.n++
		}
	}
}
