package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func TestPublishAndSync(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached=%v", cached), func(t *testing.T) {
			b := newBackend()
			dir1, dir2 := "", ""
			if cached {
				dir1, dir2 = t.TempDir(), t.TempDir()
			}
			w, _ := openDB(t, b, dir1)
			r, log := openDB(t, b, dir2)
			if mustSync(t, r) {
				t.Error("an empty repository is news")
			}
			for n := 0; n < 60; n += 4 {
				if err := w.Add(testPack(n)); err != nil {
					t.Fatal(err)
				}
				check(t, w, 0, n+1)
				publish(t, w, testPacks(n, n+4)...)
				check(t, w, 0, n+4)
				if !mustSync(t, r) {
					t.Fatal("a published segment is no news")
				}
				check(t, r, 0, n+4)
				if mustSync(t, r) {
					t.Fatal("the same segments are news twice")
				}
			}
			if got := len(generations(t, dir2)); cached && got == 0 {
				t.Error("no generation was built")
			}
			info, ok, err := r.Pack(testName(3))
			if want := testPack(3); err != nil || !ok || info.Size != want.Size || string(info.Wrapped) != string(want.Wrapped) || info.Session != want.Session || info.Kind != want.Kind {
				t.Errorf("pack 3: %+v, %v, %v", info, ok, err)
			}
			n := 0
			for name, info := range r.Packs() {
				if n++; info.Size != 1<<20 || len(info.Wrapped) != 1168 {
					t.Errorf("pack %s: %+v", name, info)
				}
			}
			if n != 60 {
				t.Errorf("%d packs are known, want 60", n)
			}
			if log.String() != "" {
				t.Error(log)
			}
		})
	}
}

func TestSeveralLocations(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	db, _ := openDB(t, b, dir)
	var want []pack.Name
	for i := range 5 {
		p := testPack(0)
		p.Name = testName(1000 + i)
		want = append(want, p.Name)
		publish(t, db, p)
		publish(t, db, testPacks(i*6+1, i*6+7)...) // so that generations come between
	}
	locs, err := db.Lookup(testID(0), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []pack.Name
	for _, l := range locs {
		got = append(got, l.Pack)
	}
	slices.SortFunc(got, compareNames)
	slices.SortFunc(want, compareNames)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(generations(t, dir)) == 0 {
		t.Error("no generation was built")
	}
}

// What a writer has stored in the middle of a huge snapshot moves into
// generations as far as it is published.
func TestUnpublishedStaysInMemory(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	db, _ := openDB(t, b, dir)
	for n := range 40 {
		if err := db.Add(testPack(n)); err != nil {
			t.Fatal(err)
		}
	}
	if got := generations(t, dir); len(got) != 0 {
		t.Fatalf("unpublished packs went to %v", got)
	}
	publish(t, db, testPacks(0, 30)...)
	check(t, db, 0, 40)
	if db.gen == nil || db.mem.n > 40*perPack-1000 {
		t.Fatalf("%d entries are left in memory", db.mem.n)
	}
	db2, _ := openDB(t, newBackend(), dir)
	if n, _ := found(t, db2, 30, 40); n != 0 {
		t.Errorf("%d unpublished chunks are in the generation", n)
	}
}

func TestNextProcessStartsFromGeneration(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	db, _ := openDB(t, b, dir)
	publish(t, db, testPacks(0, 25)...)
	covered := len(db.gen.meta.covered)
	db.Close()
	gets := 0
	var mu sync.Mutex
	b.hook = func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "get" {
			gets++
		}
		return nil
	}
	db, _ = openDB(t, b, dir)
	mustSync(t, db)
	check(t, db, 0, 25)
	if gets != 25-covered {
		t.Errorf("%d segments were read, but the generation covers %d of 25", gets, covered)
	}
	if _, err := os.Stat(filepath.Join(dir, subdir, builderName)); err != nil {
		t.Error(err)
	}
}

func TestDrop(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	db, _ := openDB(t, b, dir)
	other, _ := openDB(t, b, t.TempDir())
	publish(t, db, testPacks(0, 15)...)
	mustSync(t, other)
	gone := []pack.Name{testName(2), testName(14), testName(77)}
	if err := db.Drop(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	if !mustSync(t, other) {
		t.Error("dropped packs are no news")
	}
	late, _ := openDB(t, b, "")
	mustSync(t, late)
	for i, x := range []*DB{db, other, late} {
		for _, n := range []int{2, 14, 77} {
			// It may be listed again, by a segment that is older or adopted it.
			if err := x.Add(testPack(n)); err != nil {
				t.Fatal(err)
			}
			if got, _ := found(t, x, n, n+1); got != 0 {
				t.Errorf("index %d: %d chunks of the dropped pack %d are found", i, got, n)
			}
			if _, ok, _ := x.Pack(testName(n)); ok {
				t.Errorf("index %d: dropped pack %d is known", i, n)
			}
		}
		check(t, x, 3, 14)
	}
	publish(t, db, testPacks(15, 40)...) // the next generation leaves them out
	if _, ok := db.gen.find(testName(2)); ok {
		t.Error("a dropped pack is in the next generation")
	}
	for name := range db.Packs() {
		if slices.Contains(gone, name) {
			t.Errorf("dropped pack %s is listed", name)
		}
	}
	if got := int(db.gen.meta.keys); got%perPack != 0 || got >= 40*perPack-2*perPack+1 {
		t.Errorf("the generation has %d keys", got)
	}
}

func TestDamagedSegment(t *testing.T) {
	b := newBackend()
	w, _ := openDB(t, b, "")
	publish(t, w, testPacks(0, 5)...)
	for _, name := range b.names("index/")[:2] {
		b.objects[name][60] ^= 1
	}
	r, _ := openDB(t, b, "")
	changed, err := r.Sync(t.Context())
	if !changed || !errors.Is(err, chunk.ErrCorrupt) || strings.Count(err.Error(), "index/") != 2 {
		t.Fatalf("changed %v, %v", changed, err)
	}
	if n, _ := found(t, r, 0, 5); n != 3*perPack {
		t.Errorf("%d chunks are known, want those of 3 packs", n)
	}
}

func TestSyncErrors(t *testing.T) {
	b := newBackend()
	w, _ := openDB(t, b, "")
	publish(t, w, testPacks(0, 20)...)
	r, _ := openDB(t, b, "")
	broken := errors.New("the wire is cut")
	b.hook = func(op, name string) error {
		if op == "list" {
			return broken
		}
		return nil
	}
	if _, err := r.Sync(t.Context()); !errors.Is(err, broken) {
		t.Error(err)
	}
	n := 0
	var mu sync.Mutex
	b.hook = func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; op == "get" && n%3 == 0 {
			return broken
		}
		return nil
	}
	if _, err := r.Sync(t.Context()); !errors.Is(err, broken) {
		t.Error(err)
	}
	b.hook = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	mustSync(t, r)
	check(t, r, 0, 20)
	r.Close()
	if _, err := r.Sync(t.Context()); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if _, err := r.Lookup(testID(0), nil); !errors.Is(err, fs.ErrClosed) {
		t.Error(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// A Put that fails, or whose answer is lost, must not publish under a taken
// name, nor claim to have published.
func TestPublishFailures(t *testing.T) {
	b := newBackend()
	db, _ := openDB(t, b, "")
	broken := errors.New("the wire is cut")
	b.hook = func(op, _ string) error {
		if op == "put" {
			return broken
		}
		return nil
	}
	if err := db.Publish(t.Context(), testPacks(0, 1)); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	b.hook = nil
	publish(t, db, testPack(0))
	if n := len(b.names("index/")); n != 1 {
		t.Errorf("%d segments", n)
	}
	// The same random bytes twice: the name is taken by another segment.
	seed := [32]byte{9}
	one, err := Open(t.Context(), b, testKeys(), Options{Random: rand.NewChaCha8(seed)})
	if err != nil {
		t.Fatal(err)
	}
	two, err := Open(t.Context(), b, testKeys(), Options{Random: rand.NewChaCha8(seed)})
	if err != nil {
		t.Fatal(err)
	}
	publish(t, one, testPack(1))
	publish(t, two, testPack(2))
	if n := len(b.names("index/")); n != 3 {
		t.Errorf("%d segments, want 3", n)
	}
	mustSync(t, db)
	check(t, db, 0, 3)
}

func TestMerge(t *testing.T) {
	b, ctx := newBackend(), t.Context()
	w, _ := openDB(t, b, "")
	before, _ := openDB(t, b, t.TempDir())
	publish(t, w, testPacks(0, 64)...)
	for n := range 70 {
		if n != 5 && n != 6 { // packs that were removed
			b.objects[testName(n).Object()] = nil
		}
	}
	if n, err := w.Merge(ctx); n != 0 || err != nil {
		t.Fatalf("64 segments: merged %d, %v", n, err)
	}
	mustSync(t, before)
	publish(t, w, testPacks(64, 70)...)
	if err := w.Drop(ctx, []pack.Name{testName(6), testName(500)}); err != nil {
		t.Fatal(err)
	}
	mustSync(t, before)
	n, err := w.Merge(ctx)
	if n != 71 || err != nil {
		t.Fatalf("merged %d, %v", n, err)
	}
	names := b.names("index/")
	if len(names) != 1 {
		t.Fatalf("%d segments are left", len(names))
	}
	if mustSync(t, before) {
		t.Error("what is merged is news to who knew all of it")
	}
	if n, _ := found(t, before, 0, 70); n != 69*perPack {
		t.Errorf("%d chunks are known, want all but those of pack 6", n)
	}
	late, _ := openDB(t, b, t.TempDir())
	mustSync(t, late)
	if n, _ := found(t, late, 0, 70); n != 68*perPack {
		t.Errorf("%d chunks are known, want all but those of packs 5 and 6", n)
	}
	o, err := testKeys().OpenAs(names[0], seal.KindSegment, b.objects[names[0]])
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSegment(o.Body)
	if err != nil || len(s.Replaced) != 71 || len(s.Packs) != 68 || !slices.Equal(s.Dropped, []pack.Name{testName(500)}) {
		t.Errorf("replaced %d, %d packs, dropped %v, %v", len(s.Replaced), len(s.Packs), s.Dropped, err)
	}
}

// Segments are merged away while a reader is between listing and reading.
func TestSyncBesideMerge(t *testing.T) {
	b := newBackend()
	w, _ := openDB(t, b, "")
	publish(t, w, testPacks(0, 70)...)
	for n := range 70 {
		b.objects[testName(n).Object()] = nil
	}
	r, _ := openDB(t, b, t.TempDir())
	// The first Get waits for a merge, during which no call is counted.
	var once sync.Once
	var merging atomic.Bool
	var lists atomic.Int32
	b.hook = func(op, name string) error {
		if merging.Load() {
			return nil
		}
		if op == "list" {
			lists.Add(1)
		}
		if op == "get" {
			once.Do(func() {
				merging.Store(true)
				defer merging.Store(false)
				if n, err := w.Merge(t.Context()); n != 70 || err != nil {
					t.Errorf("merged %d, %v", n, err)
				}
			})
		}
		return nil
	}
	mustSync(t, r)
	check(t, r, 0, 70)
	if lists.Load() < 2 {
		t.Errorf("listed %d times", lists.Load())
	}
}

func TestMergeFaults(t *testing.T) {
	for _, op := range []string{"list", "get", "put", "remove"} {
		t.Run(op, func(t *testing.T) {
			b := newBackend()
			w, _ := openDB(t, b, "")
			publish(t, w, testPacks(0, 66)...)
			for n := range 66 {
				b.objects[testName(n).Object()] = nil
			}
			broken := errors.New("the wire is cut")
			for nth := 1; ; nth++ {
				var mu sync.Mutex
				n := 0
				b.hook = func(o, _ string) error {
					mu.Lock()
					defer mu.Unlock()
					if o == op {
						if n++; n == nth {
							return broken
						}
					}
					return nil
				}
				_, err := w.Merge(t.Context())
				b.hook = nil
				r, _ := openDB(t, b, "")
				mustSync(t, r)
				check(t, r, 0, 66)
				if err == nil {
					break
				}
				if !errors.Is(err, broken) {
					t.Fatal(err)
				}
			}
		})
	}
}

// realPack stores a real pack of one chunk.
func realPack(t *testing.T, b *memBackend) (*pack.Trailer, chunk.ID) {
	t.Helper()
	p, err := pack.NewBuilder(testKeys(), pack.Data, [16]byte{3}, sharedRandom{&DB{opt: Options{Random: rand.NewChaCha8([32]byte{byte(len(b.objects))})}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Appendf(nil, "chunk of pack %s", p.Name())
	c := pack.Chunk{ID: testKeys().Data.Sum(data), Len: uint32(len(data))}
	p.Add(append([]byte{0, 1, byte(len(data))}, data...), len(data)+2, []pack.Chunk{c})
	file, trailer, err := p.Finish(testKeys(), rand.NewChaCha8([32]byte{5}))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), trailer.Name.Object(), file); err != nil {
		t.Fatal(err)
	}
	return trailer, c.ID
}

func TestOrphansAdoptRebuild(t *testing.T) {
	b, dir, ctx := newBackend(), t.TempDir(), t.Context()
	db, _ := openDB(t, b, dir)
	var ids []chunk.ID
	var all []*pack.Trailer
	for range 6 {
		p, id := realPack(t, b)
		all, ids = append(all, p), append(ids, id)
	}
	publish(t, db, all[:2]...)
	if err := db.Drop(ctx, []pack.Name{all[2].Name}); err != nil {
		t.Fatal(err)
	}
	r, _ := openDB(t, b, dir)
	orphans, err := r.Orphans(ctx)
	if err != nil || len(orphans) != 3 {
		t.Fatalf("%v, %v", orphans, err)
	}
	for _, o := range orphans {
		p, err := r.Adopt(ctx, o.Name, o.Size)
		if err != nil || p.Name != o.Name {
			t.Fatal(err)
		}
	}
	for i, id := range ids {
		if locs, _ := r.Lookup(id, nil); (len(locs) == 1) != (i != 2) {
			t.Errorf("chunk of pack %d: %v", i, locs)
		}
	}
	if orphans, err = r.Orphans(ctx); len(orphans) != 0 || err != nil {
		t.Errorf("still orphans: %v, %v", orphans, err)
	}
	if _, err := r.Adopt(ctx, testName(1), 1000); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// All segments are damaged: the packs list themselves.
	for _, name := range b.names("index/") {
		b.objects[name][40] ^= 4
	}
	if err := r.Rebuild(ctx, true); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("damaged segments are not reported: %v", err)
	}
	for i, id := range ids {
		if locs, _ := r.Lookup(id, nil); len(locs) != 1 {
			t.Errorf("after Rebuild, chunk of pack %d: %v", i, locs)
		}
	}
}

func TestRebuild(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	db, _ := openDB(t, b, dir)
	publish(t, db, testPacks(0, 35)...)
	if err := db.Add(testPack(35)); err != nil {
		t.Fatal(err)
	}
	first := generations(t, dir)
	if err := db.Rebuild(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	check(t, db, 0, 36)
	if again := generations(t, dir); len(first) != 1 || len(again) != 1 {
		t.Errorf("generations: %v, then %v", first, again)
	}
}

// A generation goes when the last one who holds it goes on or leaves.
func TestOldGenerationsGo(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	w, _ := openDB(t, b, dir)
	publish(t, w, testPacks(0, 10)...)
	stays, _ := openDB(t, b, dir)
	leaves, _ := openDB(t, b, dir)
	publish(t, w, testPacks(10, 20)...)
	if got := generations(t, dir); len(got) != 2 {
		t.Fatalf("generations %v, one is new and one in use", got)
	}
	mustSync(t, stays)
	if got := generations(t, dir); len(got) != 2 {
		t.Fatalf("generations %v, one is new and one in use", got)
	}
	leaves.Close()
	if got := generations(t, dir); len(got) != 1 {
		t.Errorf("generations %v", got)
	}
	check(t, stays, 0, 20)
}

// Everything at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	one, log1 := openDB(t, b, dir)
	two, log2 := openDB(t, b, dir)
	const each = 24
	var writers, readers sync.WaitGroup
	for i, db := range []*DB{one, two, one} {
		writers.Go(func() {
			for n := i * each; n < (i+1)*each; n++ {
				p := testPack(n)
				if err := errors.Join(db.Add(p), db.Publish(t.Context(), []*pack.Trailer{p})); err != nil {
					t.Error(err)
				}
				if got, err := db.Lookup(p.Frames[1].Chunks[3].ID, nil); len(got) != 1 || err != nil {
					t.Errorf("pack %d: %v, %v", n, got, err)
				}
			}
		})
	}
	stop := make(chan struct{})
	for _, db := range []*DB{one, two} {
		readers.Go(func() {
			var room [4]pack.Location
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if i%500 == 0 {
					if _, err := db.Sync(t.Context()); err != nil {
						t.Error(err)
					}
					for range db.Packs() {
					}
				}
				if _, err := db.Lookup(testID(i%(3*each*perPack)), room[:0]); err != nil {
					t.Error(err)
				}
				if _, _, err := db.Pack(testName(i % (3 * each))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	for _, db := range []*DB{one, two} {
		mustSync(t, db)
		check(t, db, 0, 3*each)
	}
	if s := log1.String() + log2.String(); s != "" {
		t.Error(s)
	}
	if len(generations(t, dir)) == 0 {
		t.Error("no generation was built")
	}
}
