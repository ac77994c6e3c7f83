package repo

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// PackCopier copies trees as they are between repositories with the same secrets:
// pages and chunks keep their IDs.
//
// It goes pack by pack. A frame of which at least half is needed is taken over as
// it is, decrypted but neither decompressed nor compressed again; what is needed
// of others is copied chunk by chunk. The packs that it makes are new ones under
// new names, signed by the copier: a pack must never come to stand under a name
// that a pack had which was removed, for whoever removed it may still be about to,
// and index caches know that name as gone. A frame is taken over only from packs
// that may be leaned on in their repository, so nobody's false claims come to be
// signed by the copier. All else is proven against its ID.
//
// It is for one goroutine at a time.
type PackCopier struct {
	src, dst *Repo
	p        *PackCopyProgress

	done    *liveSet    // pages that are stored with all that is below them
	planned *liveSet    // pages that were looked through for what is needed; and what that is
	leaned  []pack.Name // the packs in which all of that lies
	open    bool        // it is being added to by a session that has not committed yet
}

// PackCopyProgress counts while a PackCopier works; it may be read at any time.
type PackCopyProgress struct {
	Bytes  atomic.Uint64 // plain, of chunks and pages copied
	Frames atomic.Uint64 // taken over as they are
	Chunks atomic.Uint64 // copied one by one, pages included
}

// NewPackCopier returns a PackCopier, false if the two repositories have not the
// same secrets. p may be nil.
func NewPackCopier(src, dst *Repo, p *PackCopyProgress) (*PackCopier, bool) {
	if p == nil {
		p = &PackCopyProgress{}
	}
	return &PackCopier{src: src, dst: dst, p: p, open: true}, src.SameSecrets(dst)
}

// Tree makes sure that the session has stored, or leans on, all that is at and
// below these pages of the source. When the session is committed, Committed must
// be told, or the next Tree looks through everything again.
func (c *PackCopier) Tree(ctx context.Context, s *Session, roots ...PageID) error {
	if c.open || c.large() || !s.Writer.LeanOn(c.leaned) {
		c.done, c.planned, c.leaned = newLiveSet(), newLiveSet(), nil
	}
	c.open = true
	if err := c.frames(ctx, s.Writer, roots); err != nil {
		return err
	}
	return c.rest(ctx, s.Writer, roots)
}

// A PackCopier that follows a repository for weeks must not grow for ever: beyond
// so many pages and chunks it begins anew, which costs a walk of the next tree. They
// take 200 MB.
const (
	maxCopied = 1 << 20
	maxNeeded = 8 << 20
)

func (c *PackCopier) large() bool {
	if c.done == nil {
		return false
	}
	_, pages, _ := c.done.count()
	chunks, _, _ := c.planned.count()
	return pages > maxCopied || chunks > maxNeeded
}

// Committed says that the session of the last Tree has committed.
func (c *PackCopier) Committed(s *Session) {
	c.leaned, c.open = s.Writer.Leaned(), false
}

// frameNeed is what is needed of one frame.
type frameNeed struct{ bytes, plain uint32 }

// packNeed is what is needed of one pack, by the frames' numbers.
type packNeed struct {
	name   pack.Name
	frames map[uint32]*frameNeed
}

// frames takes over the frames of which enough is needed. It is as good as its
// view of the source's packs: what it leaves, rest copies.
func (c *PackCopier) frames(ctx context.Context, w *chunkstore.Writer, roots []PageID) error {
	plan, err := c.plan(ctx, w, roots)
	if err != nil {
		return err
	}
	jobs := make(chan *packNeed)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range jobs {
				if ctx.Err() != nil || w.Err() != nil {
					continue
				}
				if err := c.take(ctx, w, n); err != nil && ctx.Err() == nil && w.Err() == nil {
					c.src.opt.Logf("pack %s: %v; what is needed of it is read chunk by chunk", n.name, err)
				}
			}
		}()
	}
	for _, n := range plan {
		jobs <- n
	}
	close(jobs)
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return w.Err()
}

// plan finds out which frames hold what is needed, in the order in which the trees
// ask for it.
func (c *PackCopier) plan(ctx context.Context, w *chunkstore.Writer, roots []PageID) ([]*packNeed, error) {
	trusted, err := c.src.trust(ctx)
	if err != nil {
		return nil, err
	}
	var plan []*packNeed
	byName := map[pack.Name]*packNeed{}
	need := func(kind pack.Kind, id chunk.ID) error {
		known, err := w.Known(id)
		if known || err != nil || kind == pack.Data && !c.planned.add(kind, &id) {
			return err
		}
		var room [4]pack.Location
		locs, err := c.src.ix.Lookup(id, room[:0])
		if err != nil {
			return err
		}
		for _, l := range locs {
			if !trusted(l.Pack) {
				continue
			}
			n := byName[l.Pack]
			if n == nil {
				n = &packNeed{l.Pack, map[uint32]*frameNeed{}}
				byName[l.Pack] = n
				plan = append(plan, n)
			}
			f := n.frames[l.Frame]
			if f == nil {
				f = &frameNeed{plain: l.Plain}
				n.frames[l.Frame] = f
			}
			f.bytes += l.Len
			break
		}
		return nil
	}
	return plan, c.src.reach(ctx, c.planned, roots, need, nil)
}

// enough reports whether a frame is to be taken over.
func (f *frameNeed) enough() bool { return uint64(f.bytes)*2 >= uint64(f.plain) }

// maxRange is how many bytes of a pack are read at once.
const maxRange = 8 << 20

// take takes over frames of one pack.
func (c *PackCopier) take(ctx context.Context, w *chunkstore.Writer, n *packNeed) error {
	if !n.any() {
		return nil
	}
	info, ok, err := c.src.ix.Pack(n.name)
	if err != nil || !ok {
		return err
	}
	get := func(off, size int64) ([]byte, error) { return c.src.b.Get(ctx, n.name.Object(), off, size) }
	t, err := pack.ReadTrailer(c.src.k, n.name, info.Size, get)
	if err != nil {
		return err
	}
	key, err := pack.FrameKey(c.src.k, t.Name, t.Epoch, t.Wrapped)
	if err != nil {
		return err
	}
	wanted := func(i int) bool {
		f := n.frames[uint32(i)]
		return f != nil && f.enough()
	}
	for i := 0; i < len(t.Frames); {
		if !wanted(i) {
			i++
			continue
		}
		// One read fetches neighbours.
		end := i + 1
		for end < len(t.Frames) && wanted(end) && t.Frames[end].Off > t.Frames[end-1].Off && frameEnd(&t.Frames[end])-int64(t.Frames[i].Off) <= maxRange {
			end++
		}
		base := t.Frames[i].Off
		p, err := get(int64(base), frameEnd(&t.Frames[end-1])-int64(base))
		if err != nil {
			return err
		}
		for ; i < end; i++ {
			f := &t.Frames[i]
			if frameEnd(f)-int64(base) > int64(len(p)) {
				continue // frames lie one in the other: no writer makes such
			}
			packed, err := key.OpenPacked(uint32(i), p[f.Off-base:f.Off-base+f.Stored])
			if err != nil {
				return err
			}
			fresh, err := w.PutFrame(t.Kind, packed, f)
			if err != nil {
				return err
			}
			if fresh > 0 {
				c.p.Frames.Add(1)
				c.p.Bytes.Add(uint64(f.Plain))
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return nil
}

func frameEnd(f *pack.Frame) int64 { return int64(f.Off) + int64(f.Stored) }

func (n *packNeed) any() bool {
	for _, f := range n.frames {
		if f.enough() {
			return true
		}
	}
	return false
}

// rest looks at every page and chunk, and copies what is not yet there.
func (c *PackCopier) rest(ctx context.Context, w *chunkstore.Writer, roots []PageID) error {
	data, meta := w.Stream(pack.Data), w.Stream(pack.Meta)
	defer data.Flush()
	defer meta.Flush()
	put := func(st *chunkstore.Stream, id chunk.ID, p []byte) error {
		stored, err := st.Put(id, p)
		if stored {
			c.p.Chunks.Add(1)
			c.p.Bytes.Add(uint64(len(p)))
		}
		return err
	}
	met := func(kind pack.Kind, id chunk.ID) error {
		if kind == pack.Meta {
			return nil // when its bytes are there
		}
		known, err := w.Known(id)
		if known || err != nil {
			return err
		}
		p, err := c.src.store.Data(ctx, id)
		if err != nil {
			return err
		}
		return put(data, id, p)
	}
	return c.src.reach(ctx, c.done, roots, met, func(id chunk.ID, p []byte) error { return put(meta, id, p) })
}
