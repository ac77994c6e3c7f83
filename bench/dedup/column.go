package dedup

import (
	"encoding/binary"
	"io"
	"math"
	"math/bits"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// Secrets are constant, so that numbers can be compared: the polynomial is a
// well-known one of the Rabin library's documentation.
const (
	rabinSecret = 0x3DA3358B4DC173
	gearSecret  = 1
)

// rawGain is the share that compression must gain to be used, as in frames.
const rawGain = 0.04

// column cuts, hashes, counts and compresses all that is read, in a goroutine
// of its own. It is an io.Reader of the stream at work.
type column struct {
	Column
	cutter   *chunk.Cutter // nil for Fixed
	block    []byte        // for Fixed
	hasher   *chunk.Hasher
	compress func(dst, src []byte) []byte
	group    []byte  // new chunks that are to be compressed
	weight   float64 // how often each of them counts
	packed   []byte  // a buffer

	in    chan *batch
	free  chan<- *batch
	batch *batch // at work; nil if none
	next  int    // part of it
	rest  []byte // of the part before, not read yet

	seen   distinct
	sizes  [64]int64 // chunks by the bits of their length
	chunks int64
	bytes  int64
	zeros  int64

	unique, uniqueBytes, variance, stored float64
	cpu, compressing                      time.Duration
}

func newColumn(c Column, opt *Options) (*column, error) {
	col := &column{
		Column:   c,
		hasher:   chunk.NewHasher([32]byte{}),
		compress: opt.Compress,
		group:    make([]byte, 0, opt.Group),
		in:       make(chan *batch, batches),
		seen:     newDistinct(opt.Distinct),
	}
	p := chunk.Params{Kind: c.Kind, Min: c.Avg / 2, Avg: c.Avg, Max: 4 * c.Avg}
	switch c.Kind {
	case Fixed:
		p.Kind = chunk.Gear // only to check the size
		if err := p.Validate(); err != nil {
			return nil, err
		}
		col.block = make([]byte, 0, c.Avg)
		return col, nil
	case chunk.Rabin:
		p.Secret = rabinSecret
	default:
		p.Secret = gearSecret
	}
	var err error
	col.cutter, err = chunk.NewCutter(p)
	return col, err
}

// run works until in is closed.
func (c *column) run(free chan<- *batch) {
	runtime.LockOSThread() // whose CPU time is the column's
	defer runtime.UnlockOSThread()
	c.free = free
	start := threadTime()
	for {
		first, ok := c.stream()
		if !ok {
			break
		}
		if c.cutter == nil {
			c.cutFixed(first)
			continue
		}
		c.cutter.Reset(c)
		for {
			piece, err := c.cutter.Next()
			if err != nil {
				break // io.EOF: a column has no other
			}
			if piece.Zero {
				c.zeros += piece.Len
			} else {
				c.chunk(piece.Data)
			}
		}
	}
	c.flush()
	c.cpu = threadTime() - start - c.compressing
}

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// part returns the next part, or false at the end of all.
func (c *column) part() (part, bool) {
	for c.batch == nil || c.next == len(c.batch.parts) {
		if c.batch != nil {
			c.batch.release(c.free)
		}
		if c.batch, c.next = <-c.in, 0; c.batch == nil {
			return part{}, false
		}
	}
	return c.batch.parts[c.next], true
}

// stream goes to the next stream and returns its offset in its file, or false
// if there is none.
func (c *column) stream() (off int64, ok bool) {
	p, ok := c.part()
	if ok {
		c.rest = c.batch.data[p.from:p.to]
		c.next++
	}
	return p.off, ok
}

// Read reads the stream at work.
func (c *column) Read(p []byte) (int, error) {
	if len(c.rest) == 0 {
		next, ok := c.part()
		if !ok || next.first {
			return 0, io.EOF
		}
		c.rest = c.batch.data[next.from:next.to]
		c.next++
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// cutFixed cuts the stream at work, which starts at off of its file.
func (c *column) cutFixed(off int64) {
	for size := c.Avg - int(off%int64(c.Avg)); ; size = c.Avg {
		n, err := io.ReadFull(c, c.block[:size])
		if block := c.block[:n]; n > 0 && zero(block) {
			c.zeros += int64(n)
		} else if n > 0 {
			c.chunk(block)
		}
		if err != nil {
			return
		}
	}
}

// zero reports whether p is all zeros.
func zero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// chunk counts one chunk.
func (c *column) chunk(p []byte) {
	c.chunks++
	c.bytes += int64(len(p))
	c.sizes[bits.Len(uint(len(p)))-1]++
	id := c.hasher.Sum(p)
	weight := c.seen.add(binary.BigEndian.Uint64(id[:]))
	if weight == 0 {
		return
	}
	n := float64(len(p))
	c.unique += weight
	c.uniqueBytes += weight * n
	c.variance += weight * (weight - 1) * n * n
	if c.compress == nil {
		return
	}
	if len(c.group)+len(p) > cap(c.group) || weight != c.weight {
		c.flush()
	}
	c.weight = weight
	if len(p) > cap(c.group) {
		c.squeeze(p) // alone
	} else {
		c.group = append(c.group, p...)
	}
}

// flush compresses the group.
func (c *column) flush() {
	c.squeeze(c.group)
	c.group = c.group[:0]
}

// squeeze compresses p, which counts as often as its chunks do.
func (c *column) squeeze(p []byte) {
	if len(p) == 0 {
		return
	}
	start := threadTime()
	c.packed = c.compress(c.packed[:0], p)
	n := float64(len(c.packed))
	if n > (1-rawGain)*float64(len(p)) {
		n = float64(len(p))
	}
	c.stored += n * c.weight
	c.compressing += threadTime() - start
}

// result sums up, once run has ended.
func (c *column) result(read int64) Result {
	r := Result{
		Column: c.String(), Splitter: string(c.Kind), Average: c.Avg,
		Chunks: c.chunks, Bytes: c.bytes, ZeroBytes: c.zeros,
		UniqueChunks: int64(math.Round(c.unique)), UniqueBytes: int64(math.Round(c.uniqueBytes)), StoredBytes: int64(math.Round(c.stored)),
		Sampled:    c.seen.rate(),
		CPUSeconds: c.cpu.Seconds(), CompressSeconds: c.compressing.Seconds(),
		Histogram: []Bucket{},
	}
	if c.uniqueBytes > 0 {
		r.Dedup = float64(read) / c.uniqueBytes
		r.Error = math.Sqrt(c.variance) / c.uniqueBytes
	}
	if c.stored > 0 {
		r.Ratio = float64(read) / c.stored
	}
	if c.cpu > 0 {
		r.MBPerSecond = float64(read) / 1e6 / c.cpu.Seconds()
	}
	for i, n := range c.sizes {
		if n > 0 {
			r.Histogram = append(r.Histogram, Bucket{1 << i, n})
		}
	}
	return r
}
