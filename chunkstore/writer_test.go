package chunkstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func TestRoundTrip(t *testing.T) {
	for _, level := range []seal.Level{seal.Fastest, seal.Default, seal.Better} {
		b, ix := backend.NewMem(), newIndex()
		s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Level: level, Random: testRandom(1), PackSize: 1 << 20})
		var files, tree [][]byte
		sizes := []int{1, 2, 100, 4095, 65536, 65537, 300_000, 1 << 20}
		if level == seal.Fastest {
			sizes = append(sizes, 5<<20, 16<<20)
		}
		for i, size := range sizes {
			files = append(files, content(1, i, size), bytes.Repeat([]byte{'a' + byte(i)}, size))
		}
		for i := range 100 {
			tree = append(tree, content(2, i, 100*i+1))
		}
		store(t, s, pack.Data, files...)
		store(t, s, pack.Meta, tree...)

		// Another process, that knows what was published.
		s = chunkstore.New(b, testKeys(t), ix.fresh(), chunkstore.Options{})
		wantChunks(t, s, files...)
		for i, p := range tree {
			if got, err := s.Page(t.Context(), s.Keys().Tree.Sum(p)); err != nil || !bytes.Equal(got, p) {
				t.Errorf("page %d: %v", i, err)
			}
		}
		_, err := s.Page(t.Context(), s.Keys().Data.Sum(files[3]))
		wantErr(t, "a file's chunk as a page", err, chunk.ErrCorrupt)
		_, err = s.Data(t.Context(), s.Keys().Data.Sum([]byte("never stored")))
		wantErr(t, "an unknown chunk", err, chunk.ErrMissing)
		if errors.Is(err, fs.ErrNotExist) {
			t.Error("a missing chunk looks like an absent file")
		}
		for _, p := range ix.all() {
			for i, f := range p.Frames {
				if limit := uint32(256 << 10); p.Kind == pack.Data && f.Plain > limit+20000 && len(f.Chunks) > 1 {
					t.Errorf("frame %d of %d chunks has %d bytes", i, len(f.Chunks), f.Plain)
				}
				if p.Kind == pack.Meta && f.Plain > 33<<10 && len(f.Chunks) > 1 {
					t.Errorf("frame %d of pages has %d bytes", i, f.Plain)
				}
			}
		}
	}
}

// TestManySmallChunks: a frame has 4,096 chunks at most, so that the lengths in
// front of it fit.
func TestManySmallChunks(t *testing.T) {
	b, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	var chunks [][]byte
	for i := range 10_000 {
		chunks = append(chunks, content(1, i, 8))
	}
	store(t, s, pack.Data, chunks...)
	n := 0
	for _, p := range ix.all() {
		for _, f := range p.Frames {
			if len(f.Chunks) > 4096 {
				t.Errorf("a frame of %d chunks", len(f.Chunks))
			}
			n += len(f.Chunks)
		}
	}
	if n != len(chunks) {
		t.Errorf("%d chunks were stored, want %d", n, len(chunks))
	}
	wantChunks(t, s, chunks...)
}

// TestDedup puts the same chunks from many goroutines, while packs come and go:
// each is stored once.
func TestDedup(t *testing.T) {
	for _, packSize := range []int{64 << 10, 32 << 20} {
		b, ix := backend.NewMem(), newIndex()
		s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), PackSize: packSize, FrameSize: 8 << 10})
		w := s.NewWriter([16]byte{1}, usable(false))
		const goroutines, chunks = 8, 600
		var stored atomic.Uint64
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				st := w.Stream(pack.Data)
				buf := make([]byte, 0, 4096)
				for i := range chunks {
					n := (i*(2*g+1) + 37*g) % chunks // each in an order of its own
					buf = append(buf[:0], content(1, n, 100+n)...)
					ok, err := st.Put(s.Keys().Data.Sum(buf), buf)
					if err != nil {
						t.Error(err)
						return
					}
					if ok {
						stored.Add(1)
					}
					clear(buf) // Put keeps no reference
				}
				st.Flush()
			})
		}
		wg.Wait()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		distinct := map[int]bool{}
		for g := range goroutines {
			for i := range chunks {
				distinct[(i*(2*g+1)+37*g)%chunks] = true
			}
		}
		st := w.Stats()
		if int(stored.Load()) != len(distinct) || st.NewChunks != stored.Load() || st.NewChunks+st.KnownChunks != goroutines*chunks {
			t.Errorf("packs of %d: %d chunks were stored of %d distinct ones; %+v", packSize, stored.Load(), len(distinct), st)
		}
		size := uint64(0)
		for n := range distinct {
			p := content(1, n, 100+n)
			size += uint64(len(p))
			if locs := ix.fresh().locs[s.Keys().Data.Sum(p)]; len(locs) != 1 {
				t.Errorf("packs of %d: chunk %d lies in %d places", packSize, n, len(locs))
			}
			wantChunks(t, s, p)
		}
		bytes := uint64(0)
		for _, p := range ix.all() {
			bytes += uint64(p.Size)
		}
		if st.NewBytes != size || st.Stored != bytes || int(st.Packs) != len(ix.all()) {
			t.Errorf("packs of %d: %+v, want %d new bytes, %d stored in %d packs", packSize, st, size, bytes, len(ix.all()))
		}
	}
}

func TestUnusablePacksAreNotLeanedOn(t *testing.T) {
	b, ix := backend.NewMem(), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), PackSize: 4 << 10, FrameSize: 1 << 10})
	p := content(1, 1, 2000)
	id := s.Keys().Data.Sum(p)
	store(t, s, pack.Data, p)
	first := ix.locs[id][0].Pack

	put := func(use func(pack.Name) bool) bool {
		t.Helper()
		w := s.NewWriter([16]byte{2}, use)
		if known, err := w.Known(id); err != nil || known != use(first) {
			t.Errorf("known %t, %v", known, err)
		}
		st := w.Stream(pack.Data)
		stored, err := st.Put(id, p)
		if err != nil {
			t.Fatal(err)
		}
		if known, err := w.Known(id); err != nil || !known {
			t.Errorf("what was put is known: %t, %v", known, err)
		}
		// Fill some packs, so that the chunk lies in one of this session.
		for i := range 20 {
			q := content(2, int(id[0])+i, 1000)
			if _, err := st.Put(s.Keys().Data.Sum(q), q); err != nil {
				t.Fatal(err)
			}
		}
		st.Flush()
		if again, err := st.Put(id, p); err != nil || again {
			t.Errorf("stored twice in one session: %v", err)
		}
		st.Flush()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return stored
	}
	if put(usable(true)) {
		t.Error("a chunk of a usable pack was stored again")
	}
	if !put(func(n pack.Name) bool { return n != first }) {
		t.Error("a chunk of an unusable pack was not stored again")
	}
	if n := len(ix.locs[id]); n != 2 {
		t.Errorf("the chunk lies in %d places, want 2", n)
	}
}

// TestOrder proves that a pack is durable before the index learns of it, and
// before a segment names it; and that long sessions publish as they go.
func TestOrder(t *testing.T) {
	b, ix := backendtest.NewRecorder(backend.NewMem()), newIndex()
	publishes, biggest := 0, 0
	ix.event = func(what string, packs ...*pack.Trailer) error {
		var stored []string
		for _, op := range b.Ops() {
			if op.Verb == "put" && op.Err == nil {
				stored = append(stored, op.Name)
			}
		}
		for _, p := range packs {
			if !slices.Contains(stored, p.Name.Object()) {
				t.Errorf("%s of %s comes before it is stored", what, p.Name)
			}
		}
		if what == "publish" {
			publishes++
			biggest = max(biggest, len(packs))
		}
		return nil
	}
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), PackSize: 2 << 10, FrameSize: 1 << 10})
	w := s.NewWriter([16]byte{1}, usable(true))
	st, meta := w.Stream(pack.Data), w.Stream(pack.Meta)
	for i := range 200 {
		p := content(1, i, 1000)
		if _, err := st.Put(s.Keys().Data.Sum(p), p); err != nil {
			t.Fatal(err)
		}
		if _, err := meta.Put(s.Keys().Tree.Sum(p), p); err != nil {
			t.Fatal(err)
		}
	}
	st.Flush()
	meta.Flush()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if publishes < 2 || biggest > 32 {
		t.Errorf("%d segments for %d packs, the biggest of %d", publishes, len(ix.all()), biggest)
	}
	for _, op := range b.Ops() {
		if op.Verb != "put" {
			t.Errorf("a session that goes well does %s", op)
		}
	}
	if n := b.Count("put"); n != len(ix.all()) {
		t.Errorf("%d packs stored, %d published", n, len(ix.all()))
	}
}

var errBroken = errors.New("the disk is broken")

// brokenPuts fails all Puts from the n-th on.
type brokenPuts struct {
	backend.Backend
	left atomic.Int64
}

func (b *brokenPuts) Put(ctx context.Context, name string, p []byte) error {
	if b.left.Add(-1) < 0 {
		return fmt.Errorf("put %s: %w", name, errBroken)
	}
	return b.Backend.Put(ctx, name, p)
}

func TestFailingBackend(t *testing.T) {
	for _, left := range []int64{0, 1, 5} {
		before := runtime.NumGoroutine()
		b := &brokenPuts{Backend: backend.NewMem()}
		b.left.Store(left)
		ix := newIndex()
		s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1), PackSize: 4 << 10, FrameSize: 1 << 10})
		w := s.NewWriter([16]byte{1}, usable(false))
		var wg sync.WaitGroup
		for g := range 3 {
			wg.Go(func() {
				st := w.Stream(pack.Data)
				for i := range 500 {
					p := content(byte(g), i, 1000)
					if _, err := st.Put(s.Keys().Data.Sum(p), p); err != nil {
						wantErr(t, "put", err, errBroken)
						break
					}
				}
				st.Flush()
			})
		}
		wg.Wait()
		wantErr(t, "close", w.Close(), errBroken)
		wantErr(t, "the session", w.Err(), errBroken)
		p := content(9, 9, 10)
		_, err := w.Stream(pack.Data).Put(s.Keys().Data.Sum(p), p)
		wantErr(t, "put after the session", err, errBroken)
		if n := len(ix.packs); n != int(left) {
			t.Errorf("the index knows %d packs of %d that were stored", n, left)
		}
		settled(t, before)
	}
}

func TestFailingIndex(t *testing.T) {
	for _, what := range []string{"add", "publish"} {
		ix := newIndex()
		ix.event = func(is string, _ ...*pack.Trailer) error {
			if is == what {
				return errBroken
			}
			return nil
		}
		s := chunkstore.New(backend.NewMem(), testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
		w := s.NewWriter([16]byte{1}, usable(false))
		st := w.Stream(pack.Data)
		if _, err := st.Put(chunk.ID{1}, []byte("x")); err != nil {
			t.Fatal(err)
		}
		st.Flush()
		wantErr(t, what, w.Close(), errBroken)
	}
}

// TestLostAnswer: a Put that fails after it was done is none that failed.
func TestLostAnswer(t *testing.T) {
	b, ix := backendtest.NewFaulty(backend.NewMem(), backendtest.Faults{Call: 1, After: true}), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	p := content(1, 1, 1000)
	store(t, s, pack.Data, p)
	wantChunks(t, s, p)
	if len(ix.all()) != 1 {
		t.Errorf("%d packs are published", len(ix.all()))
	}
	// One that was not done has failed, and is not tried again.
	b.Set(backendtest.Faults{Call: 1})
	w := s.NewWriter([16]byte{1}, usable(false))
	st := w.Stream(pack.Data)
	if _, err := st.Put(chunk.ID{1}, []byte("x")); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	wantErr(t, "a Put that was not done", w.Close(), backendtest.ErrInjected)
	if b.Puts() != 0 {
		t.Errorf("%d Puts after the one that failed", b.Puts())
	}
}

// TestNameTaken: under the name of a pack, which is random, lies something
// else.
func TestNameTaken(t *testing.T) {
	var taken string
	for range 2 {
		b, ix := backend.NewMem(), newIndex()
		if taken != "" {
			if err := b.Put(t.Context(), taken, []byte("something else")); err != nil {
				t.Fatal(err)
			}
		}
		// Equal randomness, equal name.
		s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(7)})
		w := s.NewWriter([16]byte{1}, usable(false))
		st := w.Stream(pack.Data)
		if _, err := st.Put(chunk.ID{1}, []byte("x")); err != nil {
			t.Fatal(err)
		}
		st.Flush()
		err := w.Close()
		if taken == "" {
			if err != nil {
				t.Fatal(err)
			}
			taken = ix.all()[0].Name.Object()
			continue
		}
		wantErr(t, "a name that is taken", err, chunk.ErrCorrupt)
		if p, err := b.Get(t.Context(), taken, 0, -1); err != nil || string(p) != "something else" {
			t.Errorf("what was there became %q, %v", p, err)
		}
	}
}

func TestEmptySession(t *testing.T) {
	before := runtime.NumGoroutine()
	b, ix := backendtest.NewRecorder(backend.NewMem()), newIndex()
	s := chunkstore.New(b, testKeys(t), ix, chunkstore.Options{Random: testRandom(1)})
	w := s.NewWriter([16]byte{1}, usable(false))
	w.Stream(pack.Data).Flush()
	if err := w.Close(); err != nil || len(b.Ops()) != 0 || len(ix.published) != 0 {
		t.Errorf("%v, %v", b.Ops(), err)
	}
	settled(t, before)
}
