package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/diskcache"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// Options of a Store; zero values mean the defaults.
type Options struct {
	FrameSize  int        // plain bytes of a data frame; 256 KiB
	PackSize   int        // bytes at which a data pack is full; 32 MiB
	Level      seal.Level // how hard to compress
	CacheBytes int64      // decoded frames kept; 64 MiB
	Parity     float64    // per cent of each pack to put beside it as parity; none
	AheadBytes int64      // stored frames fetched ahead and kept, across a network only; 96 MiB
	Random     io.Reader  // required to write

	// Disk keeps stored frames; nil: none are kept. It is used across a network
	// only. With DiskPages it is given those of trees alone.
	Disk      *diskcache.Cache
	DiskPages bool

	// Lag is how long listings may be out of date: what seems to be missing is
	// looked for again after that.
	Lag time.Duration
}

const (
	defaultFrame = 256 << 10
	metaFrame    = 32 << 10
	defaultPack  = 32 << 20
	metaPack     = 8 << 20
	defaultCache = 64 << 20
)

// Store gets chunks, and puts them through Writers. It is safe for concurrent
// use.
type Store struct {
	b     backend.Backend
	k     *seal.Keys
	ix    Index
	opt   Options
	cache *frameCache

	mu       sync.RWMutex
	packKeys map[pack.Name]packKey

	waited   atomic.Bool   // in vain, for listings, and nothing new came since
	prefetch chan struct{} // one token for each decode ahead under way
	fetch    *fetcher      // nil: the backend is near
}

// New returns the Store of a repository.
func New(b backend.Backend, k *seal.Keys, ix Index, opt Options) *Store {
	if opt.FrameSize == 0 {
		opt.FrameSize = defaultFrame
	}
	if opt.PackSize == 0 {
		opt.PackSize = defaultPack
	}
	if opt.CacheBytes == 0 {
		opt.CacheBytes = defaultCache
	}
	if opt.AheadBytes == 0 {
		opt.AheadBytes = defaultAhead
	}
	s := &Store{b: b, k: k, ix: ix, opt: opt, cache: newFrameCache(opt.CacheBytes),
		packKeys: map[pack.Name]packKey{}, prefetch: make(chan struct{}, 2*runtime.GOMAXPROCS(0))}
	if backend.Transfers(b) > 1 {
		s.fetch = newFetcher(b, opt.AheadBytes)
	}
	return s
}

// PackSize returns at how many bytes a pack of that kind is full.
func (s *Store) PackSize(kind pack.Kind) int {
	if kind == pack.Meta {
		return min(s.opt.PackSize, metaPack)
	}
	return s.opt.PackSize
}

// FrameSize returns how many plain bytes a frame of that kind of pack has at most,
// unless a single chunk has more.
func (s *Store) FrameSize(kind pack.Kind) int {
	if kind == pack.Meta {
		return min(s.opt.FrameSize, metaFrame)
	}
	return s.opt.FrameSize
}

// Keys returns the keys in use.
func (s *Store) Keys() *seal.Keys { return s.k }

// Data returns the bytes of a file's chunk. They are shared and not to be
// changed. A chunk that no pack holds is chunk.ErrMissing, one whose bytes do
// not match chunk.ErrCorrupt.
func (s *Store) Data(ctx context.Context, id chunk.ID) ([]byte, error) {
	return s.get(ctx, id, s.k.Data)
}

// Page returns the bytes of a tree's page, as Data does for chunks.
func (s *Store) Page(ctx context.Context, id chunk.ID) ([]byte, error) {
	return s.get(ctx, id, s.k.Tree)
}

func (s *Store) get(ctx context.Context, id chunk.ID, h *chunk.Hasher) ([]byte, error) {
	p, err := s.tryAll(ctx, id, h)
	if err == nil || ctx.Err() != nil {
		return p, err
	}
	// Packs move while prune runs: look again with what has been published since, by
	// whoever read it first, and once more where the next prune has been faster.
	for n, changed := 0, true; err != nil && changed && n < maxMoves; n++ {
		var serr error
		if changed, serr = s.ix.Sync(ctx); changed {
			s.waited.Store(false)
		}
		if p, err = s.tryAll(ctx, id, h); errors.Is(err, chunk.ErrMissing) && unread(serr) {
			return nil, fmt.Errorf("chunk %s is in no pack that is known, and what was published since cannot be read: %w", id, serr)
		}
	}
	if s.opt.Lag == 0 || !errors.Is(err, chunk.ErrMissing) || s.waited.Load() {
		return p, err
	}
	// What lists it may be new, and not be shown yet.
	if err := sleep(ctx, s.opt.Lag); err != nil {
		return nil, err
	}
	changed, _ := s.ix.Sync(ctx)
	if p, err = s.tryAll(ctx, id, h); err != nil && !changed {
		s.waited.Store(true) // where much is missing, once is enough
	}
	return p, err
}

// maxMoves is how often a chunk may have been moved between looking where it is and
// reading it.
const maxMoves = 8

// unread reports whether a Sync that failed so may succeed at another time: what is
// damaged stays so, and is no reason to doubt the rest.
func unread(err error) bool {
	return err != nil && !errors.Is(err, chunk.ErrCorrupt) && !errors.Is(err, seal.ErrNoKey)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) tryAll(ctx context.Context, id chunk.ID, h *chunk.Hasher) ([]byte, error) {
	var room [4]pack.Location
	locs, err := s.ix.Lookup(id, room[:0])
	if err != nil {
		return nil, err
	}
	var last error
	for _, loc := range locs {
		p, err := s.read(ctx, id, loc, h)
		if err == nil {
			return p, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // a pack that is gone says nothing of the chunk
		}
		if last == nil || !errors.Is(err, chunk.ErrMissing) {
			last = err
		}
	}
	if last == nil {
		return nil, fmt.Errorf("chunk %s is in no pack: %w", id, chunk.ErrMissing)
	}
	return nil, last
}

// read gets one chunk at one place.
func (s *Store) read(ctx context.Context, id chunk.ID, loc pack.Location, h *chunk.Hasher) ([]byte, error) {
	f, err := s.cache.get(ctx, frameID{loc.Pack, loc.Frame}, func() (*frame, error) { return s.decode(ctx, loc) })
	if err != nil {
		return nil, fmt.Errorf("chunk %s: %w", id, err)
	}
	p, ok := f.chunk(loc, id, h)
	if !ok {
		return nil, fmt.Errorf("chunk %s: frame %d of pack %s holds other bytes: %w", id, loc.Frame, loc.Pack, chunk.ErrCorrupt)
	}
	return p, nil
}

func (s *Store) decode(ctx context.Context, loc pack.Location) (*frame, error) {
	key, info, err := s.frameKey(loc.Pack)
	if err != nil {
		return nil, err
	}
	if loc.Plain > seal.MaxFrame || loc.Stored > seal.MaxFrame+seal.FrameOverhead {
		return nil, fmt.Errorf("pack %s, frame %d: impossible size: %w", loc.Pack, loc.Frame, chunk.ErrCorrupt)
	}
	var plain []byte
	if s.fetch != nil {
		plain, err = s.openFar(ctx, key, info, loc)
	} else {
		plain, err = s.openNear(ctx, key, loc)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("pack %s is cut short: %w", loc.Pack, chunk.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", loc.Pack, err)
	}
	f, err := newFrame(plain)
	if err != nil {
		return nil, fmt.Errorf("pack %s, frame %d: %w", loc.Pack, loc.Frame, err)
	}
	return f, nil
}

// openNear gets and opens a frame with one request.
func (s *Store) openNear(ctx context.Context, key *seal.FrameKey, loc pack.Location) ([]byte, error) {
	stored, err := s.b.Get(ctx, loc.Pack.Object(), int64(loc.Off), int64(loc.Stored))
	if err != nil {
		return nil, err
	}
	return key.Open(make([]byte, 0, loc.Plain), loc.Frame, stored)
}

// maxPackKeys bounds the unwrapped keys kept: unwrapping one costs 0.1 ms.
const maxPackKeys = 10000

// packKey is an unwrapped key, and what it was unwrapped from: where a pack had
// been listed falsely the index comes to know another one.
type packKey struct {
	wrapped []byte
	key     *seal.FrameKey
}

func (s *Store) frameKey(name pack.Name) (*seal.FrameKey, PackInfo, error) {
	info, ok, err := s.ix.Pack(name)
	if err != nil {
		return nil, info, err
	}
	if !ok {
		return nil, info, fmt.Errorf("pack %s is not in the index: %w", name, chunk.ErrMissing)
	}
	s.mu.RLock()
	known := s.packKeys[name]
	s.mu.RUnlock()
	if known.key != nil && bytes.Equal(known.wrapped, info.Wrapped) {
		return known.key, info, nil
	}
	key, err := pack.FrameKey(s.k, name, info.Epoch, info.Wrapped)
	if err != nil {
		return nil, info, err
	}
	s.mu.Lock()
	if len(s.packKeys) >= maxPackKeys {
		clear(s.packKeys)
	}
	s.packKeys[name] = packKey{info.Wrapped, key}
	s.mu.Unlock()
	return key, info, nil
}

// CacheStats returns hits, misses and the bytes held by the cache of decoded
// frames.
func (s *Store) CacheStats() (hits, misses uint64, bytes int64) { return s.cache.stats() }
