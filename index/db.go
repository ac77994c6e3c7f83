package index

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// DefaultMemoryLimit is how many locations are kept in memory before they move
// into a generation: about 10 MB, read in a tenth of a second.
const DefaultMemoryLimit = 150_000

// Options are how to open an index. The zero value keeps all in memory.
type Options struct {
	// Dir is the cache directory of this repository on this machine; the
	// index uses its subdirectory "index". "" keeps all in memory.
	Dir string

	// MemoryLimit is how many published locations stay in memory;
	// 0 means DefaultMemoryLimit.
	MemoryLimit int

	// MaxBytes bounds what Dir/index takes. While a generation is written the
	// one before it lies beside it. What does not fit stays in memory. 0
	// means no limit.
	MaxBytes int64

	// Lag is how long a change may stay unseen by listings, where the backend
	// says less.
	Lag time.Duration

	// Locked reports whether a segment cannot be removed yet, and so is not
	// merged; nil: none is locked. With it Compact also merges small segments of
	// which nothing is unneeded, as soon as their locks have passed.
	Locked func(backend.Info) bool

	Logf   func(format string, args ...any) // nil drops what it is told
	Random io.Reader                        // nil means crypto/rand
}

// DB is the index of one repository. It is safe for concurrent use, and any
// number of processes may have one open on the same directory.
type DB struct {
	backend backend.Backend
	keys    *seal.Keys
	opt     Options
	cache   cache
	repo    string
	segment int // about how large a plain segment is written at most, in bytes

	syncing chan struct{} // holds a token while somebody syncs
	buildMu sync.Mutex    // while a generation is built or taken over
	randMu  sync.Mutex
	news    atomic.Uint64 // counts what segments and generations made known

	background sync.WaitGroup
	stop       context.Context // ends when the index is closed
	cancel     context.CancelFunc

	mu       sync.RWMutex
	closed   bool
	building bool                // a goroutine builds
	buildAt  int                 // published entries in memory at which to build next
	rereadAt int64               // the same for unbuilt
	gen      *generation         // nil: none
	dead     map[uint32]struct{} // packs of gen that are dropped, gone, or overruled
	mem      *memory
	// All that covered segments list is in gen or mem, or was dropped, or is
	// disputed. When that ceases to hold, covered is emptied and losses counts.
	// Its values are the bytes to read of segments that gen does not cover.
	covered map[SegmentName]int64
	losses  int
	unbuilt int64 // sum of covered
	// partial are those of which something is not known because these keys do
	// not know its writers.
	partial  map[SegmentName][]seal.WriterID
	vanished bool // covered segments were merged away: packs may be gone, too
	dropped  map[pack.Name]struct{}
	disputed map[pack.Name][16]byte // listed in two ways, the other one by that writer
	proven   map[pack.Name]struct{} // as known here, by the pack's own word
}

var _ chunkstore.Index = (*DB)(nil)

// Open opens the newest usable generation of the cache, and nothing else: what
// is newer becomes known by Sync. A cache that is absent, damaged or out of
// reach is no error; the index then starts empty. It is for the repository of
// these keys. Close it.
func Open(ctx context.Context, b backend.Backend, k *seal.Keys, opt Options) (*DB, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if opt.MemoryLimit < 0 || opt.MaxBytes < 0 {
		return nil, fmt.Errorf("index: limits of %d entries and %d bytes: must not be negative", opt.MemoryLimit, opt.MaxBytes)
	}
	if opt.MemoryLimit == 0 {
		opt.MemoryLimit = DefaultMemoryLimit
	}
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if opt.Random == nil {
		opt.Random = rand.Reader
	}
	db := &DB{
		backend: b, keys: k, opt: opt, repo: k.Ring().Repo, segment: segmentBytes,
		syncing: make(chan struct{}, 1), buildAt: opt.MemoryLimit, rereadAt: rereadBytes, mem: newMemory(),
		covered: map[SegmentName]int64{}, partial: map[SegmentName][]seal.WriterID{}, dropped: map[pack.Name]struct{}{},
		disputed: map[pack.Name][16]byte{}, proven: map[pack.Name]struct{}{},
	}
	if opt.Dir != "" {
		db.cache.dir = filepath.Join(opt.Dir, subdir)
	}
	// The background outlives this call; only Close ends it.
	db.stop, db.cancel = context.WithCancel(context.WithoutCancel(ctx))
	db.refresh()
	return db, nil
}

// lag is how long a change may stay unseen by listings.
func (db *DB) lag() time.Duration { return max(db.backend.Lag(), db.opt.Lag) }

// Close gives the cache back. What is only in memory is forgotten: others
// learn of it from segments. Nothing may be called afterwards but Close.
func (db *DB) Close() error {
	db.cancel()
	db.mu.Lock()
	closed, g := db.closed, db.gen
	db.closed, db.gen, db.dead, db.mem = true, nil, nil, newMemory()
	db.mu.Unlock()
	db.background.Wait()
	if !closed && g != nil {
		g.release()
		db.removeOld()
	}
	return nil
}

var errClosed = fmt.Errorf("index: %w", fs.ErrClosed)

// Lookup appends the known locations of a chunk to dst, a few for each writer;
// none is no error. Those in packs of the owner and of oneself come first. They
// are hints: a pack may be gone, and a location may be wrong. A cache that turns out to be damaged is reported to Logf and
// forgotten; until the next Sync its chunks are then unknown. The only error is
// that the index is closed.
func (db *DB) Lookup(id chunk.ID, dst []pack.Location) ([]pack.Location, error) {
	db.mu.RLock()
	if db.closed {
		db.mu.RUnlock()
		return dst, errClosed
	}
	start := len(dst)
	dst = db.mem.lookup(&id, dst)
	g := db.gen
	var err error
	if g != nil {
		dst, err = g.lookup(&id, dst, db.dead)
	}
	if len(dst) > start+1 {
		db.order(dst[start:])
	}
	db.mu.RUnlock()
	if err != nil {
		db.lose(g, err)
	}
	return dst, nil
}

// Pack returns what is known of a pack, false if it is not known or was
// dropped. Its Wrapped is shared: do not change it.
func (db *DB) Pack(name pack.Name) (p chunkstore.PackInfo, ok bool, err error) {
	db.mu.RLock()
	if db.closed {
		db.mu.RUnlock()
		return p, false, errClosed
	}
	g := db.gen
	p, ok, err = db.info(name)
	db.mu.RUnlock()
	if err != nil {
		db.lose(g, err)
		return chunkstore.PackInfo{}, false, nil
	}
	return p, ok, nil
}

// Listed reports whether a segment that was read or published here lists the
// pack: what is only known by Add, others cannot know.
func (db *DB) Listed(name pack.Name) bool {
	db.mu.RLock()
	defer db.mu.RUnlock()
	if slot, ok := db.mem.slots[name]; ok {
		return db.mem.packs[slot].published
	}
	return db.inGeneration(name)
}

// Packs yields every known pack that was not dropped, in no order. Packs that
// become known meanwhile may or may not be seen.
func (db *DB) Packs() iter.Seq2[pack.Name, chunkstore.PackInfo] {
	return func(yield func(pack.Name, chunkstore.PackInfo) bool) {
		db.mu.RLock()
		recent := slices.Clone(db.mem.packs)
		dead := maps.Clone(db.dead)
		g := db.gen
		if g != nil {
			g.hold()
		}
		db.mu.RUnlock()
		if g != nil {
			defer g.release()
			c := g.packs.scan()
			for c.next() {
				p, ok := parseRecord(c.value)
				if !ok || len(c.key) != len(pack.Name{}) {
					c.err = fmt.Errorf("a pack's record is too short: %w", chunk.ErrCorrupt)
					break
				}
				name := pack.Name(c.key)
				n, _ := g.find(name)
				p.Listing = g.meta.listing(n)
				if _, gone := dead[n]; !gone && !yield(name, p) {
					return
				}
			}
			if c.err != nil {
				db.lose(g, c.err)
			}
		}
		for _, p := range recent {
			if !p.dropped && !yield(p.name, p.info) {
				return
			}
		}
	}
}

// Add makes the chunks of a pack known that this process wrote or adopted: t is
// what the pack itself says, and overrules what others list. A pack that is
// known so already, or was dropped, is left as it is. Until the pack is
// published its chunks stay in memory.
func (db *DB) Add(t *pack.Trailer) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.closed {
		return errClosed
	}
	db.insert(t, false, true)
	return nil
}

// drop forgets a pack for good and reports whether it was known. The caller
// has mu.
func (db *DB) drop(name pack.Name) (known bool) {
	if _, gone := db.dropped[name]; gone {
		return false
	}
	db.dropped[name] = struct{}{}
	delete(db.disputed, name)
	return db.hide(name)
}

// lose gives up a generation that is damaged.
func (db *DB) lose(g *generation, err error) {
	db.mu.Lock()
	mine := db.gen == g && !db.closed
	if mine {
		db.gen, db.dead = nil, nil
		db.forget()
	}
	db.mu.Unlock()
	if !mine {
		return
	}
	db.opt.Logf("index cache: %s: %v; setting it aside, the next sync reads the segments again", g.path, err)
	if g.inPlace() {
		db.cache.discard(g.path)
	}
	g.release()
}

// forget notes that what covered segments list may be unknown. The caller has
// mu.
func (db *DB) forget() {
	clear(db.covered)
	clear(db.partial)
	db.unbuilt = 0
	db.losses++
}

// random fills p.
func (db *DB) random(p []byte) error {
	db.randMu.Lock()
	defer db.randMu.Unlock()
	if _, err := io.ReadFull(db.opt.Random, p); err != nil {
		return fmt.Errorf("random name in the index: %w", err)
	}
	return nil
}

// Read makes DB's source of randomness one that goroutines may share.
type sharedRandom struct{ db *DB }

func (r sharedRandom) Read(p []byte) (int, error) {
	if err := r.db.random(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// enter waits until nobody else syncs.
func (db *DB) enter(ctx context.Context) error {
	select {
	case db.syncing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (db *DB) leave() { <-db.syncing }

// isGone reports whether err says that an object is not there.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) }
