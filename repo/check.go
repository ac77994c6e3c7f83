package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// CheckOptions say how deep to look.
type CheckOptions struct {
	ReadData  bool        // read every pack, and prove every chunk
	Sample    float64     // the share of packs to read instead, 0 to 1
	Seed      uint64      // which packs that are
	Snapshots []*Snapshot // whose trees to walk; nil: all
	Progress  *CheckProgress
}

// CheckProgress counts while a check goes on; it may be read at any time.
type CheckProgress struct {
	Objects, Packs, PacksTotal, Bytes, BytesTotal, Snapshots, SnapshotsTotal, Pages atomic.Uint64
}

// Damage is one thing that is wrong, named as far as it reaches: an object of
// the repository, a chunk, a file or directory, a snapshot. What is unknown or
// does not apply is empty.
type Damage struct {
	Object   string
	Chunk    chunk.ID
	Path     string
	Snapshot *Snapshot
	Err      error
	// Healed tells that another healthy copy of the chunk exists.
	Healed bool
}

// CheckResult sums up a check.
type CheckResult struct {
	Objects, Packs, Orphans, Chunks, Pages, Snapshots, Damages uint64
	Bytes                                                      uint64 // of packs read
	Dead                                                       int    // intents of writers that may be dead
	Unknown                                                    []string
}

type checker struct {
	r      *Repo
	opt    CheckOptions
	p      *CheckProgress
	res    CheckResult
	report func(Damage)

	mu    sync.Mutex
	packs map[pack.Name]int64    // that exist
	bad   map[chunk.ID]error     // chunks found damaged, without a healthy copy
	pages map[chunk.ID]bool      // pages seen; true: something below is damaged
	sums  map[chunk.ID]sums      // what the pages seen hold
	seen  map[string]struct{}    // objects already reported
	hurt  map[pack.Name]struct{} // packs found damaged
	lost  map[pack.Name]error    // packs of which nothing could be read
}

// Check looks for damage and reports each as it is found, one at a time. The
// error is of what kept it from looking, not of what it found.
func (r *Repo) Check(ctx context.Context, opt CheckOptions, report func(Damage)) (CheckResult, error) {
	c := &checker{r: r, opt: opt, p: opt.Progress, packs: map[pack.Name]int64{}, bad: map[chunk.ID]error{},
		pages: map[chunk.ID]bool{}, sums: map[chunk.ID]sums{}, seen: map[string]struct{}{}, hurt: map[pack.Name]struct{}{}, lost: map[pack.Name]error{}}
	if c.p == nil {
		c.p = &CheckProgress{}
	}
	c.report = func(d Damage) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.res.Damages++
		report(d)
	}
	if err := c.objects(ctx); err != nil {
		return c.res, err
	}
	if err := r.Sync(ctx); err != nil && !unproven(err) {
		return c.res, err // damaged segments were named by objects
	}
	if err := c.readPacks(ctx); err != nil {
		return c.res, err
	}
	if err := c.trees(ctx); err != nil {
		return c.res, err
	}
	return c.res, ctx.Err()
}

// kinds tells what lies under each prefix; zero: packs.
var kinds = map[string]seal.Kind{
	"config": seal.KindConfig, "keys": seal.KindKey, "writers": seal.KindWriter, "index": seal.KindSegment, "intents": seal.KindIntent,
	"snapshots": seal.KindSnapshot, "marks": seal.KindMark, "condemned": seal.KindCondemned, "forgotten": seal.KindForgotten,
	"ledger": seal.KindLedger, "parity": seal.KindParity, "packs": seal.KindPack,
}

// objects proves everything but packs, and lists the packs.
func (c *checker) objects(ctx context.Context) error {
	for info, err := range c.r.b.List(ctx, "") {
		if err != nil {
			return err
		}
		prefix, _, _ := strings.Cut(info.Name, "/")
		kind, ok := kinds[prefix]
		switch {
		case !ok:
			c.res.Unknown = append(c.res.Unknown, info.Name)
		case kind == seal.KindPack:
			name, ok := pack.ParseObject(info.Name)
			if !ok {
				c.res.Unknown = append(c.res.Unknown, info.Name)
				continue
			}
			c.packs[name] = info.Size
		default:
			if kind == seal.KindIntent && !strings.Contains(info.Name, ".") {
				c.res.Dead++
			}
			c.object(ctx, info, kind)
		}
		c.res.Objects++
		c.p.Objects.Add(1)
	}
	slices.Sort(c.res.Unknown)
	return ctx.Err()
}

func (c *checker) object(ctx context.Context, info backend.Info, kind seal.Kind) {
	p, err := c.r.b.Get(ctx, info.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return
	}
	if err == nil {
		if kind == seal.KindKey {
			_, err = parseKey(info.Name, p)
		} else {
			err = c.open(info.Name, kind, p)
		}
	}
	if err != nil {
		c.seen[info.Name] = struct{}{}
		c.report(Damage{Object: info.Name, Err: err})
	}
}

func (c *checker) open(name string, kind seal.Kind, p []byte) error {
	if kind == seal.KindSnapshot {
		id, ok := ParseID(strings.TrimPrefix(name, "snapshots/"))
		if !ok {
			return fmt.Errorf("%s: not the name of a snapshot: %w", name, chunk.ErrCorrupt)
		}
		_, err := c.r.parseRecord(name, id, p)
		return err
	}
	_, err := c.r.k.OpenAs(name, kind, p)
	return formatError(err)
}

// readPacks compares the packs with the index, and reads those that were asked
// for.
func (c *checker) readPacks(ctx context.Context) error {
	var names []pack.Name
	for name := range c.packs {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b pack.Name) int { return slices.Compare(a[:], b[:]) })
	c.res.Packs = uint64(len(names))
	var read []pack.Name
	rnd := rand.New(rand.NewPCG(c.opt.Seed, 1))
	for _, name := range names {
		info, ok, err := c.r.ix.Pack(name)
		if err != nil {
			return err
		}
		if !ok {
			c.res.Orphans++
		} else if info.Size != c.packs[name] {
			c.hurt[name] = struct{}{}
			c.report(Damage{Object: name.Object(), Err: fmt.Errorf("%s has %d bytes, the index says %d: %w", name.Object(), c.packs[name], info.Size, chunk.ErrCorrupt)})
		}
		if c.opt.ReadData || rnd.Float64() < c.opt.Sample {
			read = append(read, name)
			c.p.BytesTotal.Add(uint64(c.packs[name]))
		}
	}
	c.p.PacksTotal.Store(uint64(len(read)))
	work := make(chan pack.Name)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for name := range work {
				c.readPack(ctx, name)
			}
		}()
	}
	for _, name := range read {
		if ctx.Err() != nil {
			break
		}
		work <- name
	}
	close(work)
	wg.Wait()
	c.dropHealed(ctx)
	return ctx.Err()
}

// readPack proves one pack: its closing hash, its trailer's signature, and all
// its chunks.
func (c *checker) readPack(ctx context.Context, name pack.Name) {
	p, err := c.r.b.Get(ctx, name.Object(), 0, -1)
	if errors.Is(err, fs.ErrNotExist) || ctx.Err() != nil {
		return
	}
	fail := func(err error) {
		c.mu.Lock()
		_, again := c.hurt[name]
		c.hurt[name] = struct{}{}
		c.mu.Unlock()
		if !again {
			c.report(Damage{Object: name.Object(), Err: err})
		}
	}
	unread := func(err error) {
		fail(err)
		c.mu.Lock()
		c.lost[name] = err
		c.mu.Unlock()
	}
	if err != nil {
		unread(err)
		return
	}
	if err := pack.Check(p); err != nil {
		fail(fmt.Errorf("%s: %w", name.Object(), err))
	}
	t, err := pack.ReadTrailer(c.r.k, name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
	if err != nil {
		unread(formatError(err))
		return
	}
	key, err := pack.FrameKey(c.r.k, name, t.Epoch, t.Wrapped)
	if err != nil {
		unread(err)
		return
	}
	h := c.r.k.Data
	if t.Kind == pack.Meta {
		h = c.r.k.Tree
	}
	var plain []byte
	chunks := uint64(0)
	for i := range t.Frames {
		f := &t.Frames[i]
		chunks += uint64(len(f.Chunks))
		if plain, err = key.Open(plain[:0], uint32(i), p[f.Off:f.Off+f.Stored]); err == nil {
			err = proveFrame(h, f, plain)
		}
		if err != nil {
			fail(fmt.Errorf("%s: %w", name.Object(), err))
			c.mu.Lock()
			for _, ch := range f.Chunks {
				c.bad[ch.ID] = err
			}
			c.mu.Unlock()
		}
	}
	c.p.Packs.Add(1)
	c.p.Bytes.Add(uint64(len(p)))
	c.mu.Lock()
	c.res.Chunks += chunks
	c.res.Bytes += uint64(len(p))
	c.mu.Unlock()
}

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

// dropHealed forgets damaged chunks of which a healthy copy exists elsewhere.
func (c *checker) dropHealed(ctx context.Context) {
	for id := range c.bad {
		_, err := c.r.store.Data(ctx, id)
		if err != nil {
			_, err = c.r.store.Page(ctx, id)
		}
		if err == nil {
			delete(c.bad, id)
		}
	}
}
