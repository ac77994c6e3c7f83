package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/parity"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// HealResult tells what Heal did with one pack.
type HealResult struct {
	Pack     pack.Name
	NoParity bool          // the pack has none; Err says so too
	Report   parity.Report // what was damaged
	Chunks   int           // of the pack; each has a healthy place now
	Stored   int           // of them those that had none
	Bytes    int64         // plain, of those
	Err      error         // why the pack is not healed; nil: it is
}

// Heal rebuilds damaged packs by their parity and stores what they hold anew,
// but for chunks that have another place in packs that may be leaned on. The
// damaged packs stay as they are, for a pack's name is used once: prune removes
// them when the ledger names them as damaged. What was rebuilt has been proven
// by the closing hash, the writer's signature and every chunk's ID before it is
// stored.
//
// The results are in the order of names. A pack that cannot be healed has its
// reason there, chunk.ErrCorrupt or chunk.ErrMissing in it; if none can, nothing
// is written. The error is of what kept it from going on: then no result is of
// use. Write-only keys get seal.ErrNoKey.
func (r *Repo) Heal(ctx context.Context, names []pack.Name) ([]HealResult, error) {
	if err := r.Readable(); err != nil {
		return nil, err
	}
	h := &healer{r: r, names: names, streams: map[pack.Kind]*chunkstore.Stream{}}
	results := make([]HealResult, 0, len(names))
	var err error
	for _, name := range names {
		var res HealResult
		if res, err = h.pack(ctx, name); err != nil {
			break
		}
		results = append(results, res)
	}
	if err = errors.Join(err, h.close(ctx)); err != nil {
		return nil, err
	}
	return results, nil
}

// healer is one run of Heal.
type healer struct {
	r       *Repo
	names   []pack.Name
	s       *Session // begun when there is something to store
	streams map[pack.Kind]*chunkstore.Stream
}

// pack heals one pack. What is wrong with the pack is in the result.
func (h *healer) pack(ctx context.Context, name pack.Name) (HealResult, error) {
	res := HealResult{Pack: name}
	p, err := h.rebuild(ctx, name, &res)
	var x *proven
	if err == nil {
		x, err = h.r.wholePack(name, p)
	}
	switch {
	case ctx.Err() != nil:
		return res, ctx.Err()
	case errors.Is(err, chunk.ErrCorrupt), errors.Is(err, chunk.ErrMissing), errors.Is(err, seal.ErrVersion), errors.Is(err, ErrFormat), errors.Is(err, seal.ErrNoKey):
		res.Err = err
		return res, nil
	case err != nil:
		return res, err
	}
	return res, h.store(ctx, x, &res)
}

// rebuild returns the pack as it was.
func (h *healer) rebuild(ctx context.Context, name pack.Name, res *HealResult) ([]byte, error) {
	o, err := h.r.readTorn(ctx, parity.Object(name), pack.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		res.NoParity = true
		return nil, fmt.Errorf("%s has no parity: %w", name.Object(), chunk.ErrMissing)
	}
	if err != nil {
		return nil, err
	}
	x, err := parity.Open(name, o)
	if err != nil {
		return nil, err
	}
	p, err := h.r.readTorn(ctx, name.Object(), x.Size())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone, and its parity is not enough to make it anew: %w", name.Object(), chunk.ErrMissing)
	}
	if err != nil {
		return nil, err
	}
	p, res.Report, err = x.Rebuild(p)
	return p, err
}

// store puts every chunk that has no place in a pack that is not being healed.
func (h *healer) store(ctx context.Context, x *proven, res *HealResult) error {
	if h.s == nil {
		s, err := h.r.begin(ctx, func(n pack.Name) bool { return !slices.Contains(h.names, n) })
		if err != nil {
			return err
		}
		h.s = s
		for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
			h.streams[kind] = s.Writer.Stream(kind)
		}
	}
	st := h.streams[x.t.Kind]
	return x.each(func(id chunk.ID, p []byte) error {
		res.Chunks++
		stored, err := st.Put(id, p)
		if stored {
			res.Stored++
			res.Bytes += int64(len(p))
		}
		if err == nil {
			err = ctx.Err()
		}
		return err
	})
}

// close makes durable and lists what was stored, and ends the session.
func (h *healer) close(ctx context.Context) error {
	if h.s == nil {
		return nil
	}
	for _, st := range h.streams {
		st.Flush()
	}
	err := h.s.Writer.Close()
	h.s.end(ctx)
	return err
}

// proven is a whole pack of which every byte that counts has been proven.
type proven struct {
	t   *pack.Trailer
	p   []byte
	key *seal.FrameKey
}

// wholePack proves all that a pack's file holds: the closing hash, what its
// writer signed, and every chunk.
func (r *Repo) wholePack(name pack.Name, p []byte) (*proven, error) {
	if err := pack.Check(p); err != nil {
		return nil, fmt.Errorf("%s: %w", name.Object(), err)
	}
	t, err := pack.ReadTrailer(r.k, name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
	if err != nil {
		return nil, formatError(err)
	}
	key, err := pack.FrameKey(r.k, name, t.Epoch, t.Wrapped)
	if err != nil {
		return nil, err
	}
	x, hash := &proven{t, p, key}, r.hasher(t.Kind)
	return x, x.each(func(id chunk.ID, p []byte) error {
		if hash.Sum(p) != id {
			return fmt.Errorf("%s: chunk %s holds other bytes: %w", name.Object(), id, chunk.ErrCorrupt)
		}
		return nil
	})
}

// each calls f for every chunk; the bytes are good until f returns.
func (x *proven) each(f func(id chunk.ID, p []byte) error) error {
	var plain []byte
	for i := range x.t.Frames {
		fr := &x.t.Frames[i]
		if int64(fr.Off)+int64(fr.Stored) > int64(len(x.p)) {
			return fmt.Errorf("%s: frame %d lies behind its end: %w", x.t.Name.Object(), i, chunk.ErrCorrupt)
		}
		var err error
		if plain, err = x.key.Open(plain[:0], uint32(i), slices.Clone(x.p[fr.Off:fr.Off+fr.Stored])); err != nil {
			return fmt.Errorf("%s: %w", x.t.Name.Object(), err)
		}
		parts, err := seal.ParseFrame(plain)
		if err != nil {
			return fmt.Errorf("%s: %w", x.t.Name.Object(), err)
		}
		if len(parts) != len(fr.Chunks) {
			return fmt.Errorf("%s: frame %d holds %d chunks, its trailer says %d: %w", x.t.Name.Object(), i, len(parts), len(fr.Chunks), chunk.ErrCorrupt)
		}
		for j, c := range fr.Chunks {
			if c.Kind != pack.Plain {
				return fmt.Errorf("%s: chunk %s is kept in a way that this program does not know: %w", x.t.Name.Object(), c.ID, ErrFormat)
			}
			if err := f(c.ID, parts[j]); err != nil {
				return err
			}
		}
	}
	return nil
}

// Pieces in which an object is read of which a disk gives only parts.
const (
	tornPiece  = 64 << 10
	tornSector = 4 << 10
)

// readTorn reads an object up to max bytes. Where the disk says that it cannot
// read (EIO, as for a bad sector) there are zeros: whoever uses them has better
// proof than that.
func (r *Repo) readTorn(ctx context.Context, name string, max int64) ([]byte, error) {
	size := int64(-1)
	for info, err := range r.b.List(ctx, name) {
		if err != nil {
			return nil, err
		}
		if info.Name == name {
			size = min(info.Size, max)
		}
	}
	if size < 0 {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	p, err := r.b.Get(ctx, name, 0, size)
	if !errors.Is(err, syscall.EIO) {
		return p, err
	}
	r.opt.Logf("%v; it is read piece by piece", err)
	p = make([]byte, size)
	return p, r.readPieces(ctx, name, p, 0, tornPiece)
}

// readPieces fills p, which is what the object has from off on.
func (r *Repo) readPieces(ctx context.Context, name string, p []byte, off, piece int64) error {
	for at := int64(0); at < int64(len(p)); at += piece {
		part := p[at:min(at+piece, int64(len(p)))]
		q, err := r.b.Get(ctx, name, off+at, int64(len(part)))
		switch {
		case err == nil:
			copy(part, q)
		case !errors.Is(err, syscall.EIO):
			return err
		case piece > tornSector:
			if err := r.readPieces(ctx, name, part, off+at, tornSector); err != nil {
				return err
			}
		}
	}
	return nil
}
