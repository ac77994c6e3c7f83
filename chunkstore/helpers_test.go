package chunkstore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

var testRing = sync.OnceValue(func() *seal.Ring {
	r, err := seal.NewRing("00112233445566778899aabbccddeeff", testRandom(1))
	if err != nil {
		panic(err)
	}
	return r
})

func testKeys(tb testing.TB) *seal.Keys {
	tb.Helper()
	k, err := testRing().Open()
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// lockedRandom is bytes from a seed for many goroutines.
type lockedRandom struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRandom) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

func testRandom(seed byte) *lockedRandom {
	return &lockedRandom{r: rand.NewChaCha8([32]byte{seed})}
}

// testIndex is an Index in memory that tells what happens to it.
type testIndex struct {
	mu        sync.Mutex
	locs      map[chunk.ID][]pack.Location
	packs     map[pack.Name]chunkstore.PackInfo
	published [][]*pack.Trailer
	syncs     int
	onSync    func() bool
	syncErr   error
	event     func(what string, packs ...*pack.Trailer) error // add, publish
}

func newIndex() *testIndex {
	return &testIndex{locs: map[chunk.ID][]pack.Location{}, packs: map[pack.Name]chunkstore.PackInfo{}, event: func(string, ...*pack.Trailer) error { return nil }}
}

func (x *testIndex) Lookup(id chunk.ID, dst []pack.Location) ([]pack.Location, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return append(dst, x.locs[id]...), nil
}

func (x *testIndex) Pack(name pack.Name) (chunkstore.PackInfo, bool, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	info, ok := x.packs[name]
	return info, ok, nil
}

func (x *testIndex) Add(t *pack.Trailer) error {
	if err := x.event("add", t); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.packs[t.Name] = chunkstore.PackInfo{Header: t.Header, Size: t.Size}
	t.Locations(func(id chunk.ID, l pack.Location) { x.locs[id] = append(x.locs[id], l) })
	return nil
}

func (x *testIndex) Sync(context.Context) (bool, error) {
	x.mu.Lock()
	x.syncs++
	do, err := x.onSync, x.syncErr
	x.mu.Unlock()
	return do != nil && do(), err
}

func (x *testIndex) Publish(_ context.Context, packs []*pack.Trailer) error {
	if err := x.event("publish", packs...); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.published = append(x.published, slices.Clone(packs))
	return nil
}

// all returns what was published.
func (x *testIndex) all() []*pack.Trailer {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Concat(x.published...)
}

// fresh returns an index that knows what was published.
func (x *testIndex) fresh() *testIndex {
	y := newIndex()
	for _, t := range x.all() {
		_ = y.Add(t)
	}
	return y
}

func usable(is bool) func(pack.Name) bool { return func(pack.Name) bool { return is } }

// content returns the n-th chunk of a seed: size bytes, n among them.
func content(seed byte, n, size int) []byte {
	p := make([]byte, max(8, size))
	rand.NewChaCha8([32]byte{seed, byte(n), byte(n >> 8), byte(n >> 16)}).Read(p)
	binary.LittleEndian.PutUint64(p, uint64(n))
	return p[:size]
}

// store puts chunks through one stream in one session.
func store(tb testing.TB, s *chunkstore.Store, kind pack.Kind, chunks ...[]byte) {
	tb.Helper()
	w := s.NewWriter([16]byte{1}, usable(false))
	st := w.Stream(kind)
	for _, p := range chunks {
		if _, err := st.Put(hasher(s, kind).Sum(p), p); err != nil {
			tb.Fatal(err)
		}
	}
	st.Flush()
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
}

func hasher(s *chunkstore.Store, kind pack.Kind) *chunk.Hasher {
	if kind == pack.Meta {
		return s.Keys().Tree
	}
	return s.Keys().Data
}

// wantChunks reads chunks of files.
func wantChunks(tb testing.TB, s *chunkstore.Store, chunks ...[]byte) {
	tb.Helper()
	for i, p := range chunks {
		got, err := s.Data(context.Background(), s.Keys().Data.Sum(p))
		if err != nil || !bytes.Equal(got, p) {
			tb.Errorf("chunk %d of %d bytes comes back as %d, %v", i, len(p), len(got), err)
		}
	}
}

// changed is a backend whose Gets of some objects go wrong.
type changed struct {
	backend.Backend
	mu  sync.Mutex
	get func(name string, p []byte, err error) ([]byte, error)
}

func (b *changed) set(get func(name string, p []byte, err error) ([]byte, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.get = get
}

func (b *changed) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	p, err := b.Backend.Get(ctx, name, off, n)
	b.mu.Lock()
	get := b.get
	b.mu.Unlock()
	if get != nil {
		return get(name, p, err)
	}
	return p, err
}

// settled waits until no more goroutines run than before.
func settled(tb testing.TB, before int) {
	tb.Helper()
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	tb.Errorf("%d goroutines are left of %d", runtime.NumGoroutine(), before)
}

func wantErr(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if err == nil || !errors.Is(err, want) {
		tb.Errorf("%s: error %v, want %v", what, err, want)
	}
}
