package restore

import (
	"bytes"
	"context"
	"hash"
	"slices"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
	"golang.org/x/sys/unix"
)

const (
	blockSize = 1 << 20  // contents are read, compared and written this much at a time,
	maxBlock  = 16 << 20 // or a whole chunk, up to this: it cannot be compared in parts
	window    = 4 << 20  // how far ahead of reading Prefetch is told, without Ahead
	pageSize  = 4096     // the smallest run of zeros worth a hole

	windowSteps = 8    // in how many parts a file's two windows move on
	maxQueue    = 8192 // extents that are ahead of reading at most
)

// transfer brings one file's contents into the target.
//
// seed is what the target has already; ranges of it that equal the snapshot's
// are not fetched. Three ways of working:
//
//   - no seed: everything is fetched and written to out;
//   - a seed beside out: out is made at the first difference, with what came
//     before it copied; if there is none, out stays unmade;
//   - in place: seed and out are one file; only what differs is written.
type transfer struct {
	ctx      context.Context
	w        *worker
	src      *content
	seed     int // -1: none
	seedSize int64
	inPlace  bool
	out      int                 // -1: not made yet
	make     func() (int, error) // makes out
	dry      bool                // count only; out is never made

	differs      bool
	holes        bool // out has holes, its size says nothing about its data
	fetched      int64
	written      int64
	data         int64         // bytes that a whole copy writes
	seen         int64         // bytes done, all of them equal to the seed's while !differs
	queue        []tree.Extent // announced and not worked off yet
	queued       int64         // bytes of data in it
	ids          []chunk.ID    // not announced yet
	untold       int64         // bytes of these
	block        []tree.Extent
	blockLen     int64
	hash         hash.Hash // of the contents, valid after run
	reportedRead int64
	reportedWrit int64
}

// run does all of it. Afterwards differs tells whether out is to be used.
func (t *transfer) run() error {
	t.hash = t.w.hash
	t.hash.Reset()
	if t.inPlace || t.seed < 0 {
		t.differs = t.seed < 0
		if t.out < 0 && !t.dry {
			if err := t.begin(); err != nil {
				return err
			}
		}
	}
	if err := t.src.each(t.add); err != nil {
		return err
	}
	if len(t.queue) > 1 { // a single one is about to be read anyway
		t.prefetch()
	}
	if err := t.process(t.queue); err != nil {
		return err
	}
	return t.finish()
}

// add queues an extent; what is two windows behind is worked off. Both go in steps
// of a part of a window, so that there is always something left to be fetched.
func (t *transfer) add(e tree.Extent) error {
	ahead := 2 * t.w.r.window()
	step := max(ahead/windowSteps, blockSize)
	t.queue = append(t.queue, e)
	if e.Kind == tree.Data {
		t.queued += e.Len
		if t.seed < 0 && !t.dry && t.w.r.opt.Prefetch != nil && !e.ID.IsZero() {
			t.ids, t.untold = append(t.ids, e.ID), t.untold+e.Len
		}
	}
	if t.untold >= step || len(t.ids) >= maxQueue/windowSteps {
		t.prefetch()
	}
	if t.queued < ahead && len(t.queue) < maxQueue {
		return nil
	}
	n := 0
	for most := len(t.queue) - maxQueue + maxQueue/windowSteps; n < len(t.queue) && (t.queued > ahead-step || n < most); n++ {
		if t.queue[n].Kind == tree.Data {
			t.queued -= t.queue[n].Len
		}
	}
	err := t.process(t.queue[:n])
	t.queue = slices.Delete(t.queue, 0, n)
	return err
}

func (t *transfer) prefetch() {
	if len(t.ids) > 0 {
		t.w.r.opt.Prefetch(t.ctx, t.ids)
	}
	t.ids, t.untold = t.ids[:0], 0
}

// process gathers neighbouring extents of data into blocks.
func (t *transfer) process(es []tree.Extent) error {
	for _, e := range es {
		if e.Kind != tree.Data {
			if err := t.flush(); err != nil {
				return err
			}
			if err := t.zeros(e); err != nil {
				return err
			}
			continue
		}
		if e.Len > maxBlock || e.ID.IsZero() { // may be read in any parts
			if err := t.parts(e); err != nil {
				return err
			}
			continue
		}
		if t.blockLen+e.Len > blockSize {
			if err := t.flush(); err != nil {
				return err
			}
		}
		t.block, t.blockLen = append(t.block, e), t.blockLen+e.Len
	}
	return t.flush()
}

func (t *transfer) parts(e tree.Extent) error {
	for e.Len > 0 {
		if err := t.flush(); err != nil {
			return err
		}
		p := tree.Extent{Off: e.Off, Len: min(e.Len, blockSize), Kind: tree.Data}
		t.block, t.blockLen = append(t.block, p), p.Len
		e.Off, e.Len = e.Off+p.Len, e.Len-p.Len
	}
	return t.flush()
}

// flush does the block at hand: compare, fetch, hash, write.
func (t *transfer) flush() error {
	if len(t.block) == 0 {
		return nil
	}
	if err := context.Cause(t.ctx); err != nil {
		return err
	}
	es := t.block
	off, n := es[0].Off, t.blockLen
	t.block, t.blockLen = t.block[:0], 0
	buf := t.w.buffer(&t.w.buf, n)
	same := t.compare(es, buf)
	if err := t.fetch(es, same, buf); err != nil {
		return err
	}
	t.data += n
	if t.dry {
		for i, e := range es {
			if !same[i] {
				t.differs = true
				t.written += e.Len
			}
		}
		return nil
	}
	t.hash.Write(buf)
	for i := 0; i < len(es); {
		if same[i] && (t.inPlace || !t.differs) {
			t.seen += es[i].Len
			i++
			continue
		}
		if err := t.begin(); err != nil {
			return err
		}
		from, j := es[i].Off, i
		for j < len(es) && !(same[j] && t.inPlace) {
			t.seen += es[j].Len
			j++
		}
		if err := t.write(buf[from-off:t.seen-off], from); err != nil {
			return err
		}
		i = j
	}
	t.report()
	return nil
}

// compare reads the block's range of the seed into buf, as far as there is
// one, and tells which extents are there already. A nil Sum, or extents
// without an ID, leave that to fetch.
func (t *transfer) compare(es []tree.Extent, buf []byte) []bool {
	same := t.w.same[:0]
	off := es[0].Off
	n := int64(0)
	if t.seed >= 0 {
		n = max(0, min(int64(len(buf)), t.seedSize-off))
		if preadAll(t.seed, buf[:n], off) != nil {
			n = 0 // unreadable, or cut short meanwhile: fetch
		}
	}
	for _, e := range es {
		end := e.Off + e.Len - off
		same = append(same, end <= n && !e.ID.IsZero() && t.w.r.opt.Sum != nil &&
			t.w.r.opt.Sum(buf[e.Off-off:end]) == e.ID)
	}
	t.w.same = same
	return same
}

// fetch reads what compare did not find, neighbours together. Without IDs it
// sees only now what is the same.
func (t *transfer) fetch(es []tree.Extent, same []bool, buf []byte) error {
	off := es[0].Off
	for i := 0; i < len(es); i++ {
		if same[i] {
			continue
		}
		j := i + 1
		for j < len(es) && !same[j] {
			j++
		}
		from, to := es[i].Off, es[j-1].Off+es[j-1].Len
		t.fetched += to - from
		if t.dry {
			i = j
			continue
		}
		blind := t.seed >= 0 && to <= t.seedSize && (t.w.r.opt.Sum == nil || es[i].ID.IsZero())
		if blind {
			copy(t.w.buffer(&t.w.old, to-from), buf[from-off:to-off])
		} else if t.seed >= 0 && j-i > 1 && t.w.r.opt.Prefetch != nil {
			for _, e := range es[i:j] {
				t.ids = append(t.ids, e.ID)
			}
			t.prefetch()
		}
		if err := t.src.read(buf[from-off:to-off], from); err != nil {
			return err
		}
		if blind && bytes.Equal(t.w.old, buf[from-off:to-off]) {
			for k := i; k < j; k++ {
				same[k] = true
			}
		}
		i = j
	}
	return nil
}

// begin makes out, if it is not there, a copy of what was the same so far.
func (t *transfer) begin() error {
	t.differs = true
	if t.out >= 0 {
		return nil
	}
	var err error
	if t.out, err = t.make(); err != nil || t.seen == 0 {
		return err
	}
	t.holes = true // as the seed may have had
	return copyRange(t.out, t.seed, t.seen, t.w.buffer(&t.w.old, blockSize))
}

// write writes p, leaving holes for its zeros if Sparse wants that.
func (t *transfer) write(p []byte, off int64) error {
	if !t.w.r.opt.Sparse {
		t.written += int64(len(p))
		return pwriteAll(t.out, p, off)
	}
	for len(p) > 0 {
		n, zero := run0(p, off)
		var err error
		switch {
		case !zero:
			t.written += int64(n)
			err = pwriteAll(t.out, p[:n], off)
		case t.inPlace && off < t.seedSize:
			t.holes = true
			err = t.punch(off, min(int64(n), t.seedSize-off))
		default:
			t.holes = true
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// finish gives out its size, or leaves it unmade where nothing differs.
func (t *transfer) finish() error {
	if t.seed >= 0 && t.seedSize != t.src.size {
		t.differs = true
	}
	if t.dry {
		if t.differs && !t.inPlace {
			t.written = t.data
		}
		return nil
	}
	if !t.differs {
		return nil
	}
	if err := t.begin(); err != nil {
		return err
	}
	if !t.inPlace && !t.w.r.opt.Sparse {
		t.written = t.data // with what begin copied
	}
	if t.holes || t.inPlace {
		return unix.Ftruncate(t.out, t.src.size)
	}
	return nil
}

func (t *transfer) report() {
	t.w.r.progress(t.fetched-t.reportedRead, t.written-t.reportedWrit)
	t.reportedRead, t.reportedWrit = t.fetched, t.written
}
