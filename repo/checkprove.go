package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
)

// pieceSize is how much of a pack is held at once in bytes, but for a frame that
// is larger: whole packs of 32 MiB, on every core, would be most of the memory.
const pieceSize = 4 << 20

// What reading a frame showed.
const (
	frameWhole  = iota
	frameBroken // it does not open: nothing in it can be read
	frameLies   // it opens, and some chunk in it is not what its ID says
)

// packState is what reading a pack showed.
type packState struct {
	depth  string // to which it was proven, or at which it was found damaged
	err    error  // nil: whole
	lost   bool   // its trailer or key cannot be had, so nothing in it can
	frames []byte // frameWhole and so on; nil: all whole
	chunks uint64
	read   uint64 // bytes
}

// prove reads a pack piece by piece and proves its closing hash, its trailer's
// signature, and all its chunks.
func (c *checker) prove(ctx context.Context, name pack.Name) packState {
	p := &prover{c: c, ctx: ctx, name: name, size: c.size(name), hash: chunk.NewDigest()}
	p.st.depth = DepthChunks
	err := p.open()
	if !errors.Is(err, fs.ErrNotExist) {
		// Also without a trailer: the closing hash tells whether that is rot.
		if rerr := p.readAll(); rerr != nil {
			err = rerr
		}
	}
	if err == nil && p.t != nil {
		err = c.listing(ctx, p.t)
	}
	p.st.err = err
	p.st.lost = p.st.lost || err != nil && !errors.Is(err, chunk.ErrCorrupt)
	return p.st
}

// listing compares what the index knows of a pack with t, which the pack says of
// itself. Where nobody has contradicted a false listing the true one is published
// here. A writer who lists other chunks of its own pack than it holds is damage:
// what is in the pack was proven, but nobody must lean on what is listed.
func (c *checker) listing(ctx context.Context, t *pack.Trailer) error {
	info, ok, err := c.r.ix.Pack(t.Name)
	if err != nil || !ok || info.Listing == index.ListingOf(t) || info.Listing == ([16]byte{}) {
		return err
	}
	if err := c.r.ix.Add(t); err != nil {
		return err
	}
	if c.r.ownerOnly("") == nil {
		if err := c.r.ix.Publish(ctx, []*pack.Trailer{t}); err != nil {
			return err
		}
	}
	if info.Writer != t.Writer {
		c.r.opt.Logf("%s: writer %s has listed it falsely, it is writer %s's", t.Name.Object(), seal.WriterID(info.Writer), seal.WriterID(t.Writer))
		return nil // its own writer has done nothing wrong
	}
	return fmt.Errorf("%s: its writer %s has listed other chunks of it than it holds: %w", t.Name.Object(), seal.WriterID(t.Writer), chunk.ErrCorrupt)
}

func (c *checker) size(name pack.Name) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.packs[name]
}

// prover proves one pack.
type prover struct {
	c    *checker
	ctx  context.Context
	name pack.Name
	size int64
	hash interface {
		io.Writer
		Sum([]byte) []byte
	}
	tail  []byte         // the last 32 bytes, as they came
	t     *pack.Trailer  // nil: cannot be read
	key   *seal.FrameKey // nil: these keys do not open the frames
	plain []byte
	head  []byte // the pack's first bytes, as far as they were read
	st    packState
	first error // what is wrong with a frame
}

// get reads a part of the pack. Its header is read with the first piece, and a
// small pack all at once: each request to a place in the network takes long.
func (p *prover) get(off, n int64) ([]byte, error) {
	if p.head == nil && (off == 0 || p.size <= pieceSize) && backend.Transfers(p.c.r.b) > 1 {
		head, err := p.read(0, min(p.size, pieceSize))
		if err != nil {
			return nil, err
		}
		p.head = head
	}
	if n >= 0 && off+n <= int64(len(p.head)) {
		return bytes.Clone(p.head[off : off+n]), nil // what opens a frame overwrites it
	}
	return p.read(off, n)
}

func (p *prover) read(off, n int64) ([]byte, error) {
	b, err := p.c.r.b.Get(p.ctx, p.name.Object(), off, n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%s is cut short: %w", p.name.Object(), chunk.ErrCorrupt)
	}
	return b, err
}

// open reads the trailer and unwraps the key.
func (p *prover) open() error {
	t, err := pack.ReadTrailer(p.c.r.k, p.name, p.size, p.get)
	if errors.Is(err, seal.ErrNoKey) {
		// Its writer may be newer than what is known of writers.
		if err := p.c.r.readWriters(p.ctx); err != nil {
			return err
		}
		t, err = pack.ReadTrailer(p.c.r.k, p.name, p.size, p.get)
	}
	if err != nil {
		p.st.lost, p.st.depth = true, DepthHash
		return formatError(err)
	}
	key, err := pack.FrameKey(p.c.r.k, p.name, t.Epoch, t.Wrapped)
	if errors.Is(err, seal.ErrNoKey) {
		// Sealed for an epoch that this ring has not got: no damage, but there is
		// no more to see than the closing hash.
		p.st.depth = DepthHash
		return nil
	}
	if err != nil {
		p.st.lost, p.st.depth = true, DepthFrames
		return err
	}
	p.t, p.key = t, key
	return nil
}

// readAll reads the pack in pieces that end where frames do.
func (p *prover) readAll() error {
	var frames []pack.Frame
	if p.t != nil {
		frames = p.t.Frames
	}
	next := 0
	for pos := int64(0); pos < p.size; {
		end, upTo := piece(frames, next, pos, p.size)
		b, err := p.get(pos, end-pos)
		if err != nil {
			return err
		}
		p.digest(b, pos)
		if end >= int64(len(p.head)) {
			p.head = []byte{} // done with
		}
		p.c.p.Bytes.Add(uint64(len(b)))
		p.st.read += uint64(len(b))
		for ; next < upTo; next++ {
			f := &frames[next]
			if err := p.frame(next, f, b[int64(f.Off)-pos:int64(f.Off)-pos+int64(f.Stored)]); err != nil {
				return err
			}
		}
		pos = end
		// A listing that goes back is none that a writer made.
		for ; next < len(frames) && int64(frames[next].Off) < pos; next++ {
			f := &frames[next]
			if b, err = p.get(int64(f.Off), int64(f.Stored)); err != nil {
				return err
			}
			if err := p.frame(next, f, b); err != nil {
				return err
			}
		}
	}
	if !bytes.Equal(p.hash.Sum(nil), p.tail) {
		p.st.depth = DepthHash
		p.first = p.summary()
	}
	return p.first
}

// piece returns where to read up to from pos on, and how many frames are whole
// by then; next is the first that is not yet.
func piece(frames []pack.Frame, next int, pos, size int64) (end int64, upTo int) {
	end, upTo = pos, next
	for upTo < len(frames) {
		f := &frames[upTo]
		stop := int64(f.Off) + int64(f.Stored)
		if int64(f.Off) < end || int64(f.Off)-pos > pieceSize || end > pos && stop-pos > pieceSize {
			break
		}
		end = stop
		upTo++
	}
	if end == pos || upTo == len(frames) && size-pos <= pieceSize {
		limit := min(size, pos+pieceSize)
		if upTo < len(frames) && int64(frames[upTo].Off) > pos {
			limit = min(limit, int64(frames[upTo].Off))
		}
		end = limit
	}
	return end, upTo
}

// digest hashes what stands before the closing hash, and keeps that.
func (p *prover) digest(b []byte, pos int64) {
	n := min(max(0, p.size-32-pos), int64(len(b)))
	p.hash.Write(b[:n])
	p.tail = append(p.tail, b[n:]...)
}

// frame proves one frame. Its error is of what ends the reading: damage is kept.
func (p *prover) frame(i int, f *pack.Frame, stored []byte) error {
	p.st.chunks += uint64(len(f.Chunks))
	h := p.c.r.hasher(p.t.Kind)
	state, depth := byte(frameBroken), DepthFrames
	var err error
	if p.plain, err = p.key.Open(p.plain[:0], uint32(i), stored); err == nil {
		state, depth = frameLies, DepthChunks
		err = proveFrame(h, f, p.plain)
	}
	if err == nil {
		return p.ctx.Err()
	}
	if p.st.frames == nil {
		p.st.frames = make([]byte, len(p.t.Frames))
	}
	p.st.frames[i] = state
	if p.first == nil {
		p.first, p.st.depth = fmt.Errorf("%s: %w", p.name.Object(), err), depth
	}
	return p.ctx.Err()
}

// summary tells what a pack is like whose closing hash does not fit.
func (p *prover) summary() error {
	what := ""
	if p.t != nil {
		bad := 0
		for _, s := range p.st.frames {
			if s != frameWhole {
				bad++
			}
		}
		what = fmt.Sprintf(", %d of %d frames are damaged", bad, len(p.t.Frames))
	}
	return fmt.Errorf("%s: its closing hash does not fit%s: %w", p.name.Object(), what, chunk.ErrCorrupt)
}

// proveFrame proves the chunks of an opened frame.
func proveFrame(h *chunk.Hasher, f *pack.Frame, plain []byte) error {
	parts, err := seal.ParseFrame(plain)
	if err != nil {
		return err
	}
	if len(parts) != len(f.Chunks) {
		return fmt.Errorf("a frame holds %d chunks, its trailer says %d: %w", len(parts), len(f.Chunks), chunk.ErrCorrupt)
	}
	for i, c := range f.Chunks {
		if h.Sum(parts[i]) != c.ID {
			return fmt.Errorf("chunk %s holds other bytes: %w", c.ID, chunk.ErrCorrupt)
		}
	}
	return nil
}
