package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// twoCopies returns a store that holds a chunk in two packs, the names of
// their objects, and the backend, to spoil them.
func twoCopies(t *testing.T) (b *changed, ix *testIndex, p []byte, first, second string) {
	t.Helper()
	b, ix = &changed{Backend: backend.NewMem()}, newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(3)})
	p = content(1, 1, 5000)
	store(t, s, pack.Data, p)
	store(t, s, pack.Data, content(1, 2, 100), p)
	locs := ix.locs[s.Keys().Data.Sum(p)]
	if len(locs) != 2 {
		t.Fatalf("the chunk lies in %d places", len(locs))
	}
	return b, ix, p, locs[0].Pack.Object(), locs[1].Pack.Object()
}

func TestFallsBackToAnotherPack(t *testing.T) {
	gone := func([]byte, error) ([]byte, error) {
		return backend.NewMem().Get(context.Background(), "packs/gone", 0, -1)
	}
	flipped := func(p []byte, err error) ([]byte, error) {
		if len(p) > 100 {
			p[100] ^= 1
		}
		return p, err
	}
	short := func([]byte, error) ([]byte, error) {
		return nil, func() error { _, err := backend.Range("pack", 10, 0, 20); return err }()
	}
	broken := func([]byte, error) ([]byte, error) { return nil, errBroken }
	type how = func([]byte, error) ([]byte, error)
	for _, tt := range []struct {
		name          string
		first, second how
		want          error // nil: the chunk is read
	}{
		{"all well", nil, nil, nil},
		{"first gone", gone, nil, nil},
		{"first damaged", flipped, nil, nil},
		{"first cut short", short, nil, nil},
		{"first cannot be read", broken, nil, nil},
		{"second gone", nil, gone, nil},
		{"both gone", gone, gone, chunk.ErrMissing},
		{"both damaged", flipped, flipped, chunk.ErrCorrupt},
		{"both cut short", short, short, chunk.ErrCorrupt},
		{"gone and damaged", gone, flipped, chunk.ErrCorrupt},
		{"damaged and gone", flipped, gone, chunk.ErrCorrupt},
		{"gone and unreadable", gone, broken, errBroken},
	} {
		b, ix, p, first, second := twoCopies(t)
		b.set(func(name string, p []byte, err error) ([]byte, error) {
			switch {
			case name == first && tt.first != nil:
				return tt.first(p, err)
			case name == second && tt.second != nil:
				return tt.second(p, err)
			}
			return p, err
		})
		s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
		got, err := s.Data(t.Context(), s.Keys().Data.Sum(p))
		if tt.want == nil {
			if err != nil || !bytes.Equal(got, p) {
				t.Errorf("%s: %d bytes, %v", tt.name, len(got), err)
			}
			continue
		}
		wantErr(t, tt.name, err, tt.want)
		// What failed once is tried again, not remembered.
		b.set(nil)
		if got, err := s.Data(t.Context(), s.Keys().Data.Sum(p)); err != nil || !bytes.Equal(got, p) {
			t.Errorf("%s, and well again: %v", tt.name, err)
		}
	}
}

// TestSync: what is nowhere is looked for again with what others have
// published meanwhile, and only then.
func TestSync(t *testing.T) {
	b, full, p, _, _ := twoCopies(t)
	ix := newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	_, err := s.Data(t.Context(), s.Keys().Data.Sum(p))
	wantErr(t, "nothing is known", err, chunk.ErrMissing)
	if ix.syncs != 1 {
		t.Errorf("%d syncs, want 1", ix.syncs)
	}
	ix.onSync = func() bool {
		for _, tr := range full.all() {
			if err := ix.Add(tr); err != nil {
				t.Error(err)
			}
		}
		return true
	}
	wantChunks(t, s, p)
	wantChunks(t, s, p)
	if ix.syncs != 2 {
		t.Errorf("%d syncs, want 2", ix.syncs)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Data(ctx, chunk.ID{1})
	if ix.syncs != 2 || err == nil {
		t.Errorf("who has given up makes the index sync: %v", err)
	}
}

// TestSyncMoves: what was moved once more before it was read is looked for again, and
// where the index cannot be asked nobody says that it is missing.
func TestSyncMoves(t *testing.T) {
	b, full, p, _, _ := twoCopies(t)
	ix := newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	id := s.Keys().Data.Sum(p)
	ix.syncErr = syscall.ECONNRESET
	if _, err := s.Data(t.Context(), id); !errors.Is(err, syscall.ECONNRESET) || errors.Is(err, chunk.ErrMissing) {
		t.Errorf("the index cannot be asked: %v", err)
	}
	ix.syncErr = fmt.Errorf("a segment: %w", chunk.ErrCorrupt)
	_, err := s.Data(t.Context(), id)
	wantErr(t, "a segment is damaged", err, chunk.ErrMissing)
	ix.syncErr, ix.syncs = nil, 0
	ix.onSync = func() bool {
		if ix.syncs < 3 { // gone from there already
			return true
		}
		for _, tr := range full.all() {
			if err := ix.Add(tr); err != nil {
				t.Error(err)
			}
		}
		return true
	}
	wantChunks(t, s, p)
	if ix.syncs != 3 {
		t.Errorf("%d syncs, want 3", ix.syncs)
	}
}

// TestSyncLag: where listings lag, what is nowhere is looked for again when they
// have caught up; where that was in vain, not for each chunk.
func TestSyncLag(t *testing.T) {
	const lag = 60 * time.Millisecond
	b, full, p, _, _ := twoCopies(t)
	ix := newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Lag: lag})
	begun := time.Now()
	for i := range 100 {
		_, err := s.Data(t.Context(), chunk.ID{byte(i)})
		wantErr(t, "nothing is known", err, chunk.ErrMissing)
	}
	if ix.syncs != 101 || time.Since(begun) < lag {
		t.Errorf("%d syncs in %s, want 101 in %s", ix.syncs, time.Since(begun), lag)
	}
	ix.onSync = func() bool {
		switch ix.syncs {
		case 102: // something else is new
			begun = time.Now()
			return true
		case 104: // the one in between found nothing
			for _, tr := range full.all() {
				if err := ix.Add(tr); err != nil {
					t.Error(err)
				}
			}
			return true
		}
		return false
	}
	wantChunks(t, s, p)
	if ix.syncs != 104 || time.Since(begun) < lag {
		t.Errorf("%d syncs, the last %s after the one that found something, want 104 and %s", ix.syncs, time.Since(begun), lag)
	}
}

// TestLyingIndex has locations that name a wrong place: what comes back is
// always proven, even if the place was proven as what it is.
func TestLyingIndex(t *testing.T) {
	b, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	p, q := content(1, 1, 1000), content(1, 2, 1000)
	store(t, s, pack.Data, p, q)
	sum := s.Keys().Data.Sum
	good := ix.locs[sum(p)][0]
	for name, do := range map[string]func(*pack.Location){
		"another chunk's place":  func(l *pack.Location) { *l = ix.locs[sum(q)][0] },
		"start between chunks":   func(l *pack.Location) { l.Start++ },
		"start behind the frame": func(l *pack.Location) { l.Start = 1 << 31 },
		"another length":         func(l *pack.Location) { l.Len++ },
		"another frame":          func(l *pack.Location) { l.Frame++ },
		"another offset":         func(l *pack.Location) { l.Off++ },
		"stored length":          func(l *pack.Location) { l.Stored-- },
		"stored beyond the end":  func(l *pack.Location) { l.Stored = seal.MaxFrame },
		"impossible stored":      func(l *pack.Location) { l.Stored = 1 << 31 },
		"impossible plain":       func(l *pack.Location) { l.Plain = 1<<32 - 1 },
	} {
		for _, warm := range []bool{false, true} {
			bad := good
			do(&bad)
			ix.locs[sum(p)] = []pack.Location{bad}
			s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
			if warm {
				wantChunks(t, s, q)
			}
			_, err := s.Data(t.Context(), sum(p))
			if warm && (bad.Off != good.Off || bad.Stored != good.Stored || bad.Plain != good.Plain) {
				continue // the frame is in the cache: nobody looks at these
			}
			wantErr(t, fmt.Sprintf("%s, cached %t", name, warm), err, chunk.ErrCorrupt)
		}
	}
	// A plain length that is too small costs an allocation, no more.
	bad := good
	bad.Plain = 1
	ix.locs[sum(p)] = []pack.Location{bad}
	wantChunks(t, chunkstore.New(b, testKeys(t), ix, chunkstore.Options{}), p)

	ix.locs[sum(p)] = []pack.Location{good}
	clear(ix.packs)
	_, err := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{}).Data(t.Context(), sum(p))
	wantErr(t, "a pack that the index does not know", err, chunk.ErrMissing)
}

// TestWriteOnly: a node without private keys deduplicates and stores, and reads
// nothing.
func TestWriteOnly(t *testing.T) {
	r := *testRing()
	r.Epochs = []seal.Epoch{{N: 1, Public: r.Epochs[0].Public}}
	k, err := r.Open()
	if err != nil {
		t.Fatal(err)
	}
	b, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(b, k, ix, chunkstore.Options{Random: testRandom(1)})
	p := content(1, 1, 1000)
	store(t, s, pack.Data, p)
	w := s.NewWriter([16]byte{}, usable(true))
	if known, err := w.Known(k.Data.Sum(p)); !known || err != nil {
		t.Errorf("known %t, %v", known, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	_, err = s.Data(t.Context(), k.Data.Sum(p))
	wantErr(t, "reading", err, seal.ErrNoKey)
	wantChunks(t, chunkstore.New(b, testKeys(t), ix, chunkstore.Options{}), p)
}

// TestCacheIsBounded reads much more than the cache may hold, from several
// goroutines.
func TestCacheIsBounded(t *testing.T) {
	b, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), FrameSize: 16 << 10})
	var chunks [][]byte
	for i := range 1000 {
		chunks = append(chunks, content(1, i, 4<<10))
	}
	store(t, s, pack.Data, chunks...)
	const limit = 200 << 10
	s = chunkstore.New(b, testKeys(t), ix, chunkstore.Options{CacheBytes: limit})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 0))
			for range 1500 {
				i := rnd.IntN(len(chunks))
				got, err := s.Data(t.Context(), s.Keys().Data.Sum(chunks[i]))
				if err != nil || !bytes.Equal(got, chunks[i]) {
					t.Errorf("chunk %d: %v", i, err)
				}
				if _, _, n := s.CacheStats(); n > limit {
					t.Errorf("the cache holds %d bytes, %d are allowed", n, limit)
				}
			}
		})
	}
	wg.Wait()
	hits, misses, n := s.CacheStats()
	if n == 0 || hits == 0 || hits+misses != 6000 {
		t.Errorf("%d hits, %d misses, %d bytes", hits, misses, n)
	}
	// A frame that is larger than the cache is read, and not kept.
	s = chunkstore.New(b, testKeys(t), ix, chunkstore.Options{CacheBytes: 1})
	wantChunks(t, s, chunks[:10]...)
	if _, _, n := s.CacheStats(); n != 0 {
		t.Errorf("a cache of one byte holds %d", n)
	}
}

// TestDecodedOnce: however many ask for the chunks of a frame, it is fetched
// and decoded once.
func TestDecodedOnce(t *testing.T) {
	b, ix := &changed{Backend: backend.NewMem()}, newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	var chunks [][]byte
	for i := range 20 {
		chunks = append(chunks, content(1, i, 1000))
	}
	store(t, s, pack.Data, chunks...)
	var gets atomic.Int64
	started, release := make(chan struct{}), make(chan struct{})
	b.set(func(_ string, p []byte, err error) ([]byte, error) {
		if gets.Add(1) == 1 {
			close(started)
		}
		<-release
		return p, err
	})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() { wantChunks(t, s, chunks...) })
	}
	<-started
	time.Sleep(10 * time.Millisecond) // the others come while the first one waits
	close(release)
	wg.Wait()
	if gets.Load() != 1 {
		t.Errorf("one frame was fetched %d times", gets.Load())
	}
}

// TestCancelledReader: one who gives up does not fail those who wait with it.
func TestCancelledReader(t *testing.T) {
	mem := backend.NewMem()
	ix := newIndex()
	s := chunkstore.New(mem, testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	p := content(1, 1, 1000)
	store(t, s, pack.Data, p)
	id := s.Keys().Data.Sum(p)

	b := &waiting{Backend: mem, started: make(chan struct{}, 10), release: make(chan struct{})}
	s = chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error), make(chan error)
	get := func(ctx context.Context, done chan error) {
		_, err := s.Data(ctx, id)
		done <- err
	}
	go get(ctx, first)
	<-b.started
	go get(t.Context(), second)
	cancel()
	wantErr(t, "who gave up", <-first, context.Canceled)
	<-b.started // the second one took over
	close(b.release)
	if err := <-second; err != nil {
		t.Errorf("who did not give up: %v", err)
	}
}

// waiting is a backend whose Gets wait until they are released or cancelled.
type waiting struct {
	backend.Backend
	started chan struct{}
	release chan struct{}
}

func (b *waiting) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	b.started <- struct{}{}
	select {
	case <-b.release:
		return b.Backend.Get(ctx, name, off, n)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestPrefetchNeverBlocks(t *testing.T) {
	before := runtime.NumGoroutine()
	mem, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(mem, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), FrameSize: 4 << 10})
	var chunks [][]byte
	var ids []chunk.ID
	for i := range 500 {
		p := content(1, i, 4<<10)
		chunks, ids = append(chunks, p), append(ids, s.Keys().Data.Sum(p))
	}
	store(t, s, pack.Data, chunks...)
	b := &waiting{Backend: mem, started: make(chan struct{}, 1000), release: make(chan struct{})}
	s = chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	done := make(chan struct{})
	go func() {
		for range 100 {
			s.Prefetch(ids)
			s.Prefetch([]chunk.ID{{1}, {2}}) // unknown
			s.Prefetch(nil)
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Prefetch waits for a backend that does not answer")
	}
	<-b.started
	if n, limit := len(b.started)+1, 2*runtime.GOMAXPROCS(0); n > limit {
		t.Errorf("%d decodes ahead at a time, want at most %d", n, limit)
	}
	close(b.release)
	settled(t, before)
	gets := len(b.started)
	wantChunks(t, s, chunks[0])
	if len(b.started) != gets {
		t.Error("what was prefetched was fetched again")
	}
}

// TestPrefetchFails: what fails ahead of time fails again for who asks, or
// succeeds then.
func TestPrefetchFails(t *testing.T) {
	before := runtime.NumGoroutine()
	b, ix, p, _, _ := twoCopies(t)
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	b.set(func(string, []byte, error) ([]byte, error) { return nil, errBroken })
	s.Prefetch([]chunk.ID{s.Keys().Data.Sum(p)})
	settled(t, before)
	_, err := s.Data(t.Context(), s.Keys().Data.Sum(p))
	wantErr(t, "a broken disk", err, errBroken)
	b.set(nil)
	wantChunks(t, s, p)
	if _, _, n := s.CacheStats(); n == 0 {
		t.Error("nothing is cached")
	}
}

// TestOneRequest: a chunk costs one request, for its frame only.
func TestOneRequest(t *testing.T) {
	mem, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(mem, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), FrameSize: 64 << 10})
	var chunks [][]byte
	for i := range 100 {
		chunks = append(chunks, content(1, i, 32<<10))
	}
	store(t, s, pack.Data, chunks...)
	b := backendtest.NewRecorder(mem)
	s = chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	wantChunks(t, s, chunks[50])
	if got, _ := b.Bytes(); len(b.Ops()) != 1 || got > 65<<10 {
		t.Errorf("one chunk of 32 KiB costs %v, %d bytes", b.Ops(), got)
	}
}

func TestErrorsNameTheChunk(t *testing.T) {
	b, ix, p, first, second := twoCopies(t)
	b.set(func(_ string, p []byte, err error) ([]byte, error) { return p[:len(p)-1], err })
	pack := func(object string) string { return object[strings.LastIndex(object, "/")+1:] }
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{})
	id := s.Keys().Data.Sum(p)
	_, err := s.Data(t.Context(), id)
	if !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), id.String()) ||
		!strings.Contains(err.Error(), pack(first)) && !strings.Contains(err.Error(), pack(second)) {
		t.Errorf("%q does not name chunk %s and pack %s", err, id, first)
	}
}
