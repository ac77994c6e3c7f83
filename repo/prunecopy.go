package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// copier copies chunks out of condemned packs.
type copier struct {
	*pruner
	w       *chunkstore.Writer
	streams map[pack.Kind]*chunkstore.Stream
	left    map[pack.Name]struct{} // packs not looked through yet
	plain   []byte                 // room for a frame
}

// copyOut stores every needed chunk of the condemned packs anew that no other
// pack may hold, each pack before its segment. A chunk that cannot be read keeps
// the pack.
func (p *pruner) copyOut(ctx context.Context) (err error) {
	c := &copier{pruner: p, streams: map[pack.Kind]*chunkstore.Stream{}, left: map[pack.Name]struct{}{}}
	_ = p.eachReady(func(_ string, rec *condemnedRecord) error {
		for _, name := range rec.packs {
			if _, there := p.see.packs[name]; there {
				c.left[name] = struct{}{}
			}
		}
		return nil
	})
	if len(c.left) == 0 {
		return nil
	}
	p.p.PacksTotal.Store(uint64(len(c.left)))
	p.p.Packs.Store(0)
	holders, err := p.holders(ctx)
	if err != nil {
		return err
	}
	session, err := p.r.newID()
	if err != nil {
		return err
	}
	c.w = p.r.store.NewWriter(session, func(n pack.Name) bool { _, ok := holders[n]; return ok })
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		c.streams[kind] = c.w.Stream(kind)
	}
	err = c.all(ctx)
	for _, st := range c.streams {
		st.Flush()
	}
	if cerr := c.w.Close(); err == nil {
		err = cerr
	}
	p.res.Copied += c.w.Stats().Stored
	if isFull(err) {
		return p.keepUncopied(ctx, holders, err)
	}
	return err
}

// keepUncopied is for a full disk. Nothing that this run wanted to copy counts as
// copied: every pack stays of which something is needed that no other pack held
// before. The others make room.
func (p *pruner) keepUncopied(ctx context.Context, holders map[pack.Name]int64, full error) error {
	left := map[pack.Name]struct{}{}
	_ = p.eachReady(func(_ string, rec *condemnedRecord) error {
		for _, name := range rec.packs {
			left[name] = struct{}{}
		}
		return nil
	})
	held := func(id chunk.ID) (bool, error) {
		var room [4]pack.Location
		locs, err := p.r.ix.Lookup(id, room[:0])
		for _, l := range locs {
			if _, ok := holders[l.Pack]; ok {
				return true, err
			}
		}
		return false, err
	}
	err := p.r.ix.EachPack(ctx, func(t *pack.Trailer) error {
		if _, mine := left[t.Name]; !mine {
			return ctx.Err()
		}
		delete(left, t.Name)
		for i := range t.Frames {
			for j := range t.Frames[i].Chunks {
				ch := &t.Frames[i].Chunks[j]
				if !p.live.live(t.Kind, &ch.ID) {
					continue
				}
				if ok, err := held(ch.ID); err != nil {
					return err
				} else if !ok {
					p.stay[t.Name] = full
				}
			}
		}
		return nil
	})
	if err != nil && !unproven(err) {
		return err
	}
	for name := range left {
		if _, there := p.see.packs[name]; there {
			p.stay[name] = full // what it holds is not known
		}
	}
	return nil
}

// holders are the packs that a chunk may be left to: there in full length,
// condemned by nobody, listed in a segment, and to be trusted.
func (p *pruner) holders(ctx context.Context) (map[pack.Name]int64, error) {
	holders := p.see.usable()
	for name, size := range holders {
		info, ok, err := p.r.ix.Pack(name)
		if err != nil {
			return nil, err
		}
		if !ok || info.Size != size || !p.r.ix.Listed(name) {
			delete(holders, name)
		}
	}
	return holders, p.r.keepTrusted(ctx, holders, nil)
}

func (c *copier) all(ctx context.Context) error {
	err := c.r.ix.EachPack(ctx, func(t *pack.Trailer) error { return c.pack(ctx, t) })
	if err != nil && !unproven(err) {
		return err
	}
	// No segment lists these: they were condemned before they were published,
	// or their segment is damaged.
	for name := range c.left {
		t, err := pack.ReadTrailer(c.r.k, name, c.see.packs[name].Size, func(off, n int64) ([]byte, error) { return c.r.b.Get(ctx, name.Object(), off, n) })
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err == nil:
			err = c.pack(ctx, t)
			if err != nil {
				return err
			}
		case !unproven(err):
			return err
		case c.res.Homeless > 0:
			c.stay[name] = fmt.Errorf("pack %s: %w", name, err)
		}
	}
	return nil
}

// pack looks through one pack.
func (c *copier) pack(ctx context.Context, t *pack.Trailer) error {
	if _, ok := c.left[t.Name]; !ok {
		return nil
	}
	delete(c.left, t.Name)
	defer c.p.Packs.Add(1)
	key, err := pack.FrameKey(c.r.k, t.Name, t.Epoch, t.Wrapped)
	if err != nil {
		key = nil // its chunks may be had elsewhere
	}
	for i := range t.Frames {
		done, err := c.frame(ctx, t, key, uint32(i))
		if err != nil {
			return err
		}
		if done {
			continue
		}
		for j := range t.Frames[i].Chunks {
			ch := &t.Frames[i].Chunks[j]
			if !c.live.live(t.Kind, &ch.ID) {
				continue
			}
			if err := c.chunk(ctx, t, ch); err != nil {
				return err
			}
		}
	}
	return nil
}

// frame copies a frame as it is, which saves compressing it, if all of it is
// needed, none of it has a place, and it is not a small one. Whatever speaks
// against that leaves it to be done chunk by chunk.
func (c *copier) frame(ctx context.Context, t *pack.Trailer, key *seal.FrameKey, n uint32) (done bool, err error) {
	f := &t.Frames[n]
	if key == nil || f.Stored > seal.MaxFrame+seal.FrameOverhead || 2*int(f.Plain) < c.r.store.FrameSize(t.Kind) {
		return false, nil
	}
	for i := range f.Chunks {
		if !c.live.live(t.Kind, &f.Chunks[i].ID) {
			return false, nil
		}
		if known, err := c.w.Known(f.Chunks[i].ID); known || err != nil {
			return false, err
		}
	}
	stored, err := c.r.b.Get(ctx, t.Name.Object(), int64(f.Off), int64(f.Stored))
	if err != nil {
		return false, ctx.Err()
	}
	packed, err := key.OpenPacked(n, stored)
	if err != nil {
		return false, nil
	}
	h := c.r.k.Data
	if t.Kind == pack.Meta {
		h = c.r.k.Tree
	}
	if c.plain, err = seal.Unpack(c.plain, packed); err != nil || proveFrame(h, f, c.plain) != nil {
		return false, nil
	}
	if _, err := c.w.PutFrame(t.Kind, packed, f); err != nil {
		return false, c.w.Err()
	}
	c.p.Copied.Add(uint64(f.Stored))
	return true, nil
}

// chunk copies one chunk unless it has a place. Its bytes are read from wherever
// they can be had, and proven.
func (c *copier) chunk(ctx context.Context, t *pack.Trailer, ch *pack.Chunk) error {
	known, err := c.w.Known(ch.ID)
	if known || err != nil {
		return err
	}
	get := c.r.store.Data
	if t.Kind == pack.Meta {
		get = c.r.store.Page
	}
	b, err := get(ctx, ch.ID)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		if c.stay[t.Name] == nil {
			c.stay[t.Name] = err
		}
		return nil
	}
	_, err = c.streams[t.Kind].Put(ch.ID, b)
	c.p.Copied.Add(uint64(len(b)))
	return err
}
