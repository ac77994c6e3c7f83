package index

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

const (
	// testSegment is how large segments are here.
	testSegment = 128 << 10
	// largePacks is how many packs make such a segment large.
	largePacks = 20
)

var largeTrailers = sync.OnceValue(func() []*pack.Trailer { return testPacks(50_000, 50_000+2*largePacks) })

// openCompact is openDB with small segments.
func openCompact(t testing.TB, b backend.Backend, dir string) *DB {
	t.Helper()
	db, _ := openDB(t, b, dir)
	db.segment = testSegment
	return db
}

// stands puts empty objects for the packs, so that they are there.
func stands(b *memBackend, packs ...*pack.Trailer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range packs {
		b.objects[x.Name.Object()] = nil
	}
}

// falls removes packs, as prune does.
func falls(b *memBackend, packs ...*pack.Trailer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range packs {
		delete(b.objects, x.Name.Object())
	}
}

// listedNow reads all segments: how often each pack is listed, and the dropped
// names.
func listedNow(t testing.TB, b *memBackend) (packs map[pack.Name]int, dropped map[pack.Name]int) {
	t.Helper()
	packs, dropped = map[pack.Name]int{}, map[pack.Name]int{}
	for _, name := range b.names("index/") {
		p, err := b.Get(t.Context(), name, 0, -1)
		if err != nil {
			continue // merged meanwhile
		}
		o, err := testKeys().OpenAs(name, seal.KindSegment, p)
		if err != nil {
			continue // damaged on purpose
		}
		s, err := ParseSegment(o.Body)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range s.Packs {
			packs[x.Name]++
		}
		for _, d := range s.Dropped {
			dropped[d]++
		}
	}
	return packs, dropped
}

func mustCompact(t testing.TB, db *DB) CompactResult {
	t.Helper()
	res, err := db.Compact(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestCompact(t *testing.T) {
	const fifth, third = largePacks / 5, largePacks/3 + 1
	large := largeTrailers()[:largePacks]
	setup := func(t *testing.T) (*memBackend, *DB) {
		b := newBackend()
		stands(b, large...)
		db := openCompact(t, b, "")
		if err := db.Publish(t.Context(), large); err != nil {
			t.Fatal(err)
		}
		for _, name := range b.names("index/") {
			if n := len(b.objects[name]); n <= testSegment/4 {
				t.Fatalf("a segment of %d bytes is small", n)
			}
		}
		return b, db
	}
	drop := func(t *testing.T, db *DB, packs ...*pack.Trailer) {
		var names []pack.Name
		for _, x := range packs {
			names = append(names, x.Name)
		}
		if err := db.Drop(t.Context(), names); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what     string
		do       func(t *testing.T, b *memBackend, db *DB)
		want     CompactResult // without bytes
		listings int           // left
		drops    int           // left
	}{
		{"nothing", func(*testing.T, *memBackend, *DB) {}, CompactResult{}, largePacks, 0},
		{"a fifth is gone", func(t *testing.T, b *memBackend, db *DB) { falls(b, large[:fifth]...) }, CompactResult{}, largePacks, 0},
		{"a third is gone", func(t *testing.T, b *memBackend, db *DB) { falls(b, large[:third]...) },
			CompactResult{Replaced: 1, Written: 1, Listings: third}, largePacks - third, 0},
		{"a third is dropped and gone", func(t *testing.T, b *memBackend, db *DB) {
			falls(b, large[:third]...)
			drop(t, db, large[:third]...)
		}, CompactResult{Replaced: 2, Written: 1, Listings: third, Drops: third}, largePacks - third, 0},
		{"a third is dropped and still there", func(t *testing.T, b *memBackend, db *DB) { drop(t, db, large[:third]...) },
			CompactResult{Replaced: 1, Written: 1, Listings: third}, largePacks - third, third},
		{"a fifth is dropped and gone", func(t *testing.T, b *memBackend, db *DB) {
			falls(b, large[:fifth]...)
			drop(t, db, large[:fifth]...)
		}, CompactResult{}, largePacks, fifth},
		{"all are gone", func(t *testing.T, b *memBackend, db *DB) {
			falls(b, large...)
			drop(t, db, large...)
		}, CompactResult{Replaced: 2, Listings: largePacks, Drops: largePacks}, 0, 0},
		{"what nobody lists is dropped", func(t *testing.T, b *memBackend, db *DB) { drop(t, db, testPack(1), testPack(2)) },
			CompactResult{Replaced: 1, Drops: 2}, largePacks, 0},
		{"a small segment with a pack that is gone", func(t *testing.T, b *memBackend, db *DB) {
			stands(b, testPacks(0, 4)...) // a fifth of it is gone
			if err := db.Publish(t.Context(), testPacks(0, 5)); err != nil {
				t.Fatal(err)
			}
		}, CompactResult{Replaced: 1, Written: 1, Listings: 1}, largePacks + 4, 0},
		{"a second listing of all", func(t *testing.T, b *memBackend, db *DB) {
			if err := db.Publish(t.Context(), large); err != nil {
				t.Fatal(err)
			}
		}, CompactResult{Replaced: 2, Written: 1, Listings: largePacks}, largePacks, 0},
		{"a small second listing of some", func(t *testing.T, b *memBackend, db *DB) {
			if err := db.Publish(t.Context(), large[:5]); err != nil {
				t.Fatal(err)
			}
		}, CompactResult{Replaced: 2, Written: 1, Listings: 5}, largePacks, 0},
		{"an unreadable segment", func(t *testing.T, b *memBackend, db *DB) {
			publish(t, db, testPack(3))
			for _, name := range b.names("index/") {
				if p := b.objects[name]; len(p) < testSegment/4 {
					p[60] ^= 1
				}
			}
			falls(b, large[:third]...)
			drop(t, db, large[:third]...)
		}, CompactResult{Replaced: 1, Written: 1, Listings: third}, largePacks - third, third},
	} {
		t.Run(c.what, func(t *testing.T) {
			b, db := setup(t)
			c.do(t, b, db)
			res, err := db.Compact(t.Context())
			if broken := strings.Contains(c.what, "unreadable"); broken != errors.Is(err, chunk.ErrCorrupt) || !broken && err != nil {
				t.Fatal(err)
			}
			if (res.Before > 0) != (res.Replaced > 0) || (res.After > 0) != (res.Written > 0) {
				t.Errorf("%+v", res)
			}
			res.Before, res.After = 0, 0
			if res != c.want {
				t.Errorf("got %+v, want %+v", res, c.want)
			}
			packs, drops := listedNow(t, b)
			if len(packs) != c.listings || len(drops) != c.drops {
				t.Errorf("%d listings and %d dropped packs are left, want %d and %d", len(packs), len(drops), c.listings, c.drops)
			}
			for name, n := range packs {
				if n > 1 {
					t.Errorf("pack %s is listed %d times", name, n)
				}
			}
			if res, _ := db.Compact(t.Context()); res != (CompactResult{}) {
				t.Errorf("a second run does: %+v", res)
			}
		})
	}
}

// Who is not the owner must not take the owner's drops out of force.
func TestCompactByAnother(t *testing.T) {
	owner := ownerKeys(t)
	node := writerKeys(t, 1, owner)
	b := newBackend()
	db, _ := openAs(t, b, owner, "")
	stands(b, testPacks(0, 10)...)
	publish(t, db, testPacks(0, 10)...)
	if err := db.Drop(t.Context(), []pack.Name{testName(3)}); err != nil {
		t.Fatal(err)
	}
	other, _ := openAs(t, b, node, "")
	if res := mustCompact(t, other); res.Replaced != 1 || res.Drops != 0 || res.Listings != 1 {
		t.Errorf("%+v", res)
	}
	fresh, _ := openAs(t, b, owner, "")
	mustSync(t, fresh)
	if err := fresh.Add(testPack(3)); err != nil {
		t.Fatal(err)
	}
	if n, _ := found(t, fresh, 3, 4); n > 0 {
		t.Error("the dropped pack is known")
	}
}

// Caches forget packs that are gone without having seen the drop.
func TestCacheForgets(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	w, _ := openDB(t, b, "")
	stands(b, testPacks(0, 15)...)
	publish(t, w, testPacks(0, 15)...)
	db, _ := openDB(t, b, dir)
	mustSync(t, db)
	db.Close()
	// While nobody looks.
	falls(b, testPacks(0, 5)...)
	if err := w.Drop(t.Context(), []pack.Name{testName(0), testName(1)}); err != nil {
		t.Fatal(err)
	}
	mustCompact(t, w)
	if n, _ := found(t, w, 0, 5); n > 0 || len(w.dropped) > 0 {
		t.Errorf("who compacts knows %d chunks of packs that are gone, and %d dropped packs", n, len(w.dropped))
	}
	check(t, w, 5, 15)
	db, _ = openDB(t, b, dir)
	mustSync(t, db)
	stands(b, testPacks(15, 30)...)
	publish(t, w, testPacks(15, 30)...)
	mustSync(t, db)
	check(t, db, 5, 30)
	db.Close()
	db, _ = openDB(t, b, dir)
	if n, _ := found(t, db, 0, 5); n > 0 || len(db.gen.meta.dropped) > 0 {
		t.Errorf("the next generation knows %d chunks of packs that are gone, and %d dropped packs", n, len(db.gen.meta.dropped))
	}
	mustSync(t, db)
	check(t, db, 5, 30)
}

// Segments that list what a generation holds already are not read by each
// process for ever.
func TestCompactedSegmentsAreCovered(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	all := largeTrailers()
	stands(b, all...)
	w := openCompact(t, b, "")
	if err := w.Publish(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	db, _ := openDB(t, b, dir)
	mustSync(t, db)
	db.Close()
	falls(b, all[:15]...)
	if res := mustCompact(t, w); res.Replaced == 0 {
		t.Fatalf("%+v", res)
	}
	db, _ = openDB(t, b, dir)
	db.rereadAt = 1 << 10
	mustSync(t, db)
	db.Close()
	b.hook = func(op, name string) error {
		if op == "get" {
			t.Errorf("%s is read once more", name)
		}
		return nil
	}
	db, _ = openDB(t, b, dir)
	mustSync(t, db)
	if n := len(db.gen.meta.names); n != len(all)-15 {
		t.Errorf("the generation knows %d packs, want %d", n, len(all)-15)
	}
}

// wasteful makes a repository with something to do for Compact: large and small
// segments, packs that are gone, dropped, listed twice, listed falsely. All that
// is there is real or stands.
func wasteful(t testing.TB) (*memBackend, []*pack.Trailer) {
	t.Helper()
	b := newBackend()
	hostile := writerKeys(t, 2, testKeys())
	large := largeTrailers()
	stands(b, large...)
	db := openCompact(t, b, "")
	for _, ts := range [][]*pack.Trailer{large[:largePacks], large[largePacks:], large[:largePacks]} {
		if err := db.Publish(t.Context(), ts); err != nil {
			t.Fatal(err)
		}
	}
	small := testPacks(100_000, 100_006)
	stands(b, small...)
	publish(t, db, small...)
	x, _ := storedBy(t, b, hostile, 1)
	other := writerKeys(t, 3, testKeys())
	put(t, b, other, lie(t, other, x, testID(1<<30)))
	put(t, b, hostile, x)
	gone := slices.Concat(large[largePacks:largePacks+8], small[:2])
	falls(b, gone...)
	if err := db.Drop(t.Context(), []pack.Name{large[largePacks].Name, small[0].Name, large[3].Name}); err != nil {
		t.Fatal(err)
	}
	keep := slices.DeleteFunc(slices.Concat(large, small, []*pack.Trailer{x}), func(x *pack.Trailer) bool {
		return x.Name == large[3].Name || slices.ContainsFunc(gone, func(g *pack.Trailer) bool { return g.Name == x.Name })
	})
	return b, keep
}

// allListed fails unless each of the packs is listed.
func allListed(t testing.TB, b *memBackend, keep []*pack.Trailer) {
	t.Helper()
	packs, _ := listedNow(t, b)
	for _, x := range keep {
		if packs[x.Name] == 0 {
			t.Fatalf("pack %s is there, and not listed any more", x.Name)
		}
	}
}

func (b *memBackend) clone() *memBackend {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &memBackend{objects: maps.Clone(b.objects)}
}

// Every call fails once, before or after it was done, and every Put is once the
// last one that succeeds: all that is there stays listed, and the next Compact
// finishes the work.
func TestCompactFaults(t *testing.T) {
	before, keep := wasteful(t)
	run := func(what string, f backendtest.Faults) bool {
		t.Helper()
		b := before.clone()
		faulty := backendtest.NewFaulty(b, f)
		db, err := Open(t.Context(), faulty, testKeys(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.segment = testSegment
		_, err = db.Compact(t.Context())
		allListed(t, b, keep)
		if err != nil && !errors.Is(err, backendtest.ErrInjected) && !errors.Is(err, backendtest.ErrCrashed) {
			t.Fatalf("%s: %v", what, err)
		}
		faulty.Set(backendtest.Faults{})
		for i := range 3 {
			res := mustCompact(t, db)
			allListed(t, b, keep)
			if i == 2 && res != (CompactResult{}) {
				t.Fatalf("%s: the third run after it still does %+v", what, res)
			}
		}
		// Where a fault has hidden something from the first run, the large
		// segments that it wrote may have some waste left.
		packs, drops := listedNow(t, b)
		if more := len(packs) - len(keep); more > largePacks/4 || len(drops) > 1+more || err == nil && more > 0 {
			t.Fatalf("%s: %d listings and %d dropped packs are left, %d packs are there", what, len(packs), len(drops), len(keep))
		}
		return err != nil
	}
	for _, after := range []bool{false, true} {
		n := 0
		for n++; run(fmt.Sprintf("call %d fails, after %v", n, after), backendtest.Faults{Call: n, After: after}); n++ {
		}
		if n < 20 {
			t.Errorf("only %d calls", n)
		}
	}
	n := 0
	for n++; run(fmt.Sprintf("crash after %d puts", n), backendtest.Faults{CrashAfterPuts: n}); n++ {
	}
	if n < 2 {
		t.Errorf("only %d puts", n)
	}
}

// Several processes compact and merge while others publish, drop and remove.
func TestCompactConcurrently(t *testing.T) {
	b, keep := wasteful(t)
	ctx, cancel := context.WithCancel(t.Context())
	var workers, writers sync.WaitGroup
	for range 3 {
		db := openCompact(t, b, t.TempDir())
		workers.Go(func() {
			for ctx.Err() == nil {
				if _, err := db.Compact(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := db.Merge(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 2 {
		db, _ := openDB(t, b, "")
		writers.Go(func() {
			for n := range 40 {
				x := testPack(200_000 + 1000*i + n)
				stands(b, x)
				publish(t, db, x)
				if n%4 == 0 {
					falls(b, x)
					if err := db.Drop(t.Context(), []pack.Name{x.Name}); err != nil {
						t.Error(err)
					}
				}
			}
		})
		for n := range 40 {
			if n%4 != 0 {
				keep = append(keep, testPack(200_000+1000*i+n))
			}
		}
	}
	writers.Wait()
	cancel()
	workers.Wait()
	allListed(t, b, keep)
	db := openCompact(t, b, "")
	for range 3 {
		mustCompact(t, db)
	}
	packs, drops := listedNow(t, b)
	if len(packs) != len(keep) || len(drops) != 1 {
		t.Errorf("%d listings and %d dropped packs are left, want %d and 1", len(packs), len(drops), len(keep))
	}
	mustSync(t, db)
	for _, x := range keep {
		if _, ok, _ := db.Pack(x.Name); !ok {
			t.Errorf("pack %s is not known", x.Name)
		}
	}
}
