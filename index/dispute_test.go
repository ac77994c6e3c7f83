package index

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// writerKeys returns the keys of writer n of the tests' repository, whom the
// others know if they are told to.
func writerKeys(t testing.TB, n byte, known ...*seal.Keys) *seal.Keys {
	t.Helper()
	ring := *testKeys().Ring()
	ring.Write = bytes.Repeat([]byte{n}, ed25519.SeedSize)
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range known {
		meet(o, k)
	}
	return k
}

// meet makes two writers know each other.
func meet(a, b *seal.Keys) {
	for _, p := range [][2]*seal.Keys{{a, b}, {b, a}} {
		if seed := p[1].Ring().Write; len(seed) > 0 {
			p[0].Trust(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
		}
	}
}

// ownerKeys returns keys of the owner that know nobody else yet.
func ownerKeys(t testing.TB) *seal.Keys {
	t.Helper()
	ring := *testKeys().Ring()
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func openAs(t testing.TB, b backend.Backend, k *seal.Keys, dir string) (*DB, *logs) {
	t.Helper()
	l := &logs{}
	db, err := Open(t.Context(), b, k, Options{Dir: dir, MemoryLimit: 1000, Logf: l.logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, l
}

// storedBy stores a real pack of k's, of one chunk, without listing it.
func storedBy(t testing.TB, b *memBackend, k *seal.Keys, seed int) (*pack.Trailer, chunk.ID) {
	t.Helper()
	random := rand.NewChaCha8(chunk.Digest(fmt.Appendf(nil, "seed %d", seed)))
	p, err := pack.NewBuilder(k, pack.Data, [16]byte{3}, random, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Appendf(nil, "chunk of pack %s", p.Name())
	c := pack.Chunk{ID: k.Data.Sum(data), Len: uint32(len(data))}
	plain := seal.AppendFrame(nil, [][]byte{data})
	p.Add(seal.Pack(nil, plain, seal.Fastest), len(plain), []pack.Chunk{c})
	file, trailer, err := p.Finish(k, random)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), trailer.Name.Object(), file); err != nil {
		t.Fatal(err)
	}
	return trailer, c.ID
}

// lie lists pack x as if k had written it, with other chunks in it.
func lie(t testing.TB, k *seal.Keys, x *pack.Trailer, ids ...chunk.ID) *pack.Trailer {
	t.Helper()
	f := *x
	f.Frames = []pack.Frame{{Off: 2000, Stored: 20}}
	for _, id := range ids {
		f.Frames[0].Chunks = append(f.Frames[0].Chunks, pack.Chunk{ID: id, Len: 10})
	}
	f.Frames[0].Plain = f.Frames[0].Start(len(ids))
	f.Size += 2000
	if err := f.Sign(k); err != nil {
		t.Fatal(err)
	}
	return &f
}

// put stores a segment as k would.
func put(t testing.TB, b backend.Backend, k *seal.Keys, packs ...*pack.Trailer) {
	t.Helper()
	db, err := Open(t.Context(), b, k, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, _, err := db.putSegment(t.Context(), &Segment{Packs: packs}); err != nil {
		t.Fatal(err)
	}
}

// knowsTruly fails unless db knows pack x as it is, with chunk id, and nothing
// of what a liar says is in it.
func knowsTruly(t testing.TB, db *DB, x *pack.Trailer, id, claimed chunk.ID) {
	t.Helper()
	want := infoOf(x)
	if info, ok, err := db.Pack(x.Name); err != nil || !ok || !sameListing(&info, &want) {
		t.Errorf("pack %s is writer %s's, but known as %s's (%v, %v)", x.Name, seal.WriterID(x.Writer), seal.WriterID(info.Writer), ok, err)
	}
	if locs, err := db.Lookup(id, nil); err != nil || len(locs) != 1 || locs[0].Pack != x.Name {
		t.Errorf("the chunk of pack %s is said to be at %v, %v", x.Name, locs, err)
	}
	if locs, _ := db.Lookup(claimed, nil); len(locs) != 0 {
		t.Errorf("what was claimed to be in pack %s is said to be at %v", x.Name, locs)
	}
	n := 0
	for name := range db.Packs() {
		if name == x.Name {
			n++
		}
	}
	if n != 1 {
		t.Errorf("pack %s is yielded %d times", x.Name, n)
	}
}

func TestFalseListing(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	meet(node, hostile)
	for _, honest := range []*seal.Keys{owner, node} {
		for _, reader := range []*seal.Keys{owner, node} {
			for _, cached := range []bool{false, true} {
				for _, order := range []string{"false, sync, true", "true, sync, false", "together", "together in one segment", "false, build, true", "true, build, false"} {
					t.Run(fmt.Sprintf("owner=%v reader=%v cached=%v %s", honest == owner, reader == owner, cached, order), func(t *testing.T) {
						b, dir := newBackend(), ""
						if cached {
							dir = t.TempDir()
						}
						x, id := storedBy(t, b, honest, 1)
						claimed := testID(1 << 30)
						false_ := lie(t, hostile, x, claimed)
						db, _ := openAs(t, b, reader, dir)
						fill := func(from int) {
							put(t, b, owner, testPacks(from, from+15)...)
							mustSync(t, db)
							if cached && db.gen == nil {
								t.Fatal("no generation was built")
							}
						}
						switch order {
						case "false, sync, true":
							put(t, b, hostile, false_)
							mustSync(t, db)
							put(t, b, honest, x)
						case "true, sync, false":
							put(t, b, honest, x)
							mustSync(t, db)
							put(t, b, hostile, false_)
						case "together":
							put(t, b, honest, x)
							put(t, b, hostile, false_)
						case "together in one segment":
							put(t, b, hostile, false_, x, false_)
						case "false, build, true":
							put(t, b, hostile, false_)
							fill(100)
							put(t, b, honest, x)
						case "true, build, false":
							put(t, b, honest, x)
							fill(100)
							put(t, b, hostile, false_)
						}
						mustSync(t, db)
						knowsTruly(t, db, x, id, claimed)
						fill(200) // the next generation
						knowsTruly(t, db, x, id, claimed)
						db.Close()
						db, _ = openAs(t, b, reader, dir)
						if cached {
							knowsTruly(t, db, x, id, claimed)
						}
						mustSync(t, db)
						knowsTruly(t, db, x, id, claimed)
					})
				}
			}
		}
	}
}

// An honest repository costs no request for any pack.
func TestHonestListingsCostNothing(t *testing.T) {
	owner := ownerKeys(t)
	node := writerKeys(t, 1, owner)
	b := newBackend()
	for n := range 20 {
		x, _ := storedBy(t, b, []*seal.Keys{owner, node}[n%2], n)
		put(t, b, owner, x)
		put(t, b, node, x) // two have adopted it
	}
	b.hook = func(_, name string) error {
		if strings.HasPrefix(name, "packs/") {
			t.Errorf("a request for %s", name)
		}
		return nil
	}
	db, _ := openAs(t, b, owner, t.TempDir())
	mustSync(t, db)
	if mustSync(t, db) {
		t.Error("the same twice is news")
	}
}

// Another process builds a generation that holds the false listing.
func TestFalseListingInOthersGeneration(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	meet(node, hostile)
	for _, how := range []string{"written here", "read here", "false one read here"} {
		t.Run(how, func(t *testing.T) {
			b, dir := newBackend(), t.TempDir()
			x, id := storedBy(t, b, node, 1)
			claimed := testID(1 << 30)
			mine, _ := openAs(t, b, owner, dir)
			other, _ := openAs(t, b, owner, dir)
			switch how {
			case "written here":
				if err := mine.Add(x); err != nil {
					t.Fatal(err)
				}
				put(t, b, hostile, lie(t, hostile, x, claimed))
			case "read here":
				put(t, b, node, x)
				mustSync(t, mine)
				saved := b.objects // the other one reads it later
				b.objects = map[string][]byte{x.Name.Object(): saved[x.Name.Object()]}
				put(t, b, hostile, lie(t, hostile, x, claimed))
				put(t, b, owner, testPacks(100, 115)...)
				mustSync(t, other)
				for name, p := range saved {
					b.objects[name] = p
				}
			case "false one read here":
				put(t, b, hostile, lie(t, hostile, x, claimed))
				mustSync(t, mine)
				put(t, b, node, x)
			}
			put(t, b, owner, testPacks(200, 215)...)
			mustSync(t, other)
			if len(generations(t, dir)) == 0 {
				t.Fatal("no generation was built")
			}
			mustSync(t, mine)
			knowsTruly(t, mine, x, id, claimed)
			put(t, b, node, x)
			mustSync(t, other)
			knowsTruly(t, other, x, id, claimed)
			put(t, b, owner, testPacks(300, 315)...)
			for _, db := range []*DB{mine, other} {
				mustSync(t, db)
				knowsTruly(t, db, x, id, claimed)
			}
			late, _ := openAs(t, b, owner, dir)
			mustSync(t, late)
			knowsTruly(t, late, x, id, claimed)
		})
	}
}

func TestUndecidedListings(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	claimed := testID(1 << 30)
	setup := func(t *testing.T) (*memBackend, *DB, *pack.Trailer, chunk.ID, string) {
		b, dir := newBackend(), t.TempDir()
		x, id := storedBy(t, b, node, 1)
		db, _ := openAs(t, b, owner, dir)
		put(t, b, hostile, lie(t, hostile, x, claimed))
		mustSync(t, db)
		put(t, b, node, x)
		return b, db, x, id, dir
	}
	t.Run("out of reach", func(t *testing.T) {
		b, db, x, id, dir := setup(t)
		broken := errors.New("the wire is cut")
		b.hook = func(_, name string) error {
			if strings.HasPrefix(name, "packs/") {
				return broken
			}
			return nil
		}
		for range 2 {
			if _, err := db.Sync(t.Context()); !errors.Is(err, broken) {
				t.Errorf("an undecided listing is no error: %v", err)
			}
			put(t, b, owner, testPacks(100, 115)...) // enough for a generation, once it is disputed
		}
		if len(generations(t, dir)) > 0 {
			t.Error("a generation was built of what is not decided")
		}
		b.hook = nil
		mustSync(t, db)
		knowsTruly(t, db, x, id, claimed)
	})
	// The segments that make a generation full may be read before or after the
	// one that is disputed. Whichever it was, who starts from the cache that is
	// left behind must come to know the truth.
	t.Run("out of reach, in any order", func(t *testing.T) {
		built := 0
		for range 40 {
			b, db, x, id, dir := setup(t)
			b.hook = func(_, name string) error {
				if strings.HasPrefix(name, "packs/") {
					return errors.New("the wire is cut")
				}
				return nil
			}
			put(t, b, owner, testPacks(100, 115)...)
			if _, err := db.Sync(t.Context()); err == nil {
				t.Fatal("an undecided listing is no error")
			}
			built += len(generations(t, dir))
			db.Close()
			b.hook = nil
			next, _ := openAs(t, b, owner, dir)
			mustSync(t, next)
			knowsTruly(t, next, x, id, claimed)
			next.Close()
		}
		t.Logf("%d of 40 left a generation behind", built)
	})
	t.Run("gone", func(t *testing.T) {
		b, db, x, _, _ := setup(t)
		delete(b.objects, x.Name.Object())
		put(t, b, owner, testPacks(100, 115)...)
		mustSync(t, db)
		check(t, db, 100, 115)
	})
	t.Run("damaged", func(t *testing.T) {
		b, db, x, _, _ := setup(t)
		p := b.objects[x.Name.Object()]
		p[len(p)-50] ^= 1
		put(t, b, owner, testPacks(100, 115)...)
		mustSync(t, db)
		check(t, db, 100, 115)
		if len(db.disputed) > 0 {
			t.Error("still disputed")
		}
	})
	t.Run("damaged, the owner's", func(t *testing.T) {
		b := newBackend()
		x, id := storedBy(t, b, owner, 1)
		p := b.objects[x.Name.Object()]
		p[len(p)-50] ^= 1
		db, _ := openAs(t, b, node, "")
		meet(node, hostile)
		put(t, b, hostile, lie(t, hostile, x, claimed))
		mustSync(t, db)
		put(t, b, owner, x)
		mustSync(t, db)
		knowsTruly(t, db, x, id, claimed)
	})
	t.Run("many", func(t *testing.T) {
		b := newBackend()
		db, _ := openAs(t, b, owner, t.TempDir())
		var xs []*pack.Trailer
		var ids []chunk.ID
		var lies []*pack.Trailer
		for n := range 3 * fewPacks {
			x, id := storedBy(t, b, node, n)
			xs, ids = append(xs, x), append(ids, id)
			lies = append(lies, lie(t, hostile, x, claimed))
		}
		put(t, b, hostile, lies...)
		put(t, b, node, xs...)
		mustSync(t, db)
		for i, x := range xs {
			knowsTruly(t, db, x, ids[i], claimed)
		}
	})
	t.Run("adopted", func(t *testing.T) {
		b := newBackend()
		x, id := storedBy(t, b, node, 1)
		put(t, b, hostile, lie(t, hostile, x, claimed))
		db, _ := openAs(t, b, owner, "")
		mustSync(t, db)
		if _, err := db.Adopt(t.Context(), x.Name, x.Size); err != nil {
			t.Fatal(err)
		}
		knowsTruly(t, db, x, id, claimed)
		if db.Listed(x.Name) {
			t.Error("the false listing counts as one")
		}
	})
}

// Whoever merges segments that disagree, the true listing stays.
func TestFalseListingMerged(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	meet(node, hostile)
	claimed := testID(1 << 30)
	for _, merger := range []*seal.Keys{owner, node} {
		for _, readable := range []bool{true, false} {
			for _, trueFirst := range []bool{true, false} {
				b := newBackend()
				x, id := storedBy(t, b, node, 1)
				alone, _ := storedBy(t, b, node, 2) // listed falsely only, twice
				packs := []*pack.Trailer{lie(t, hostile, x, claimed), lie(t, hostile, alone, claimed), x}
				if trueFirst {
					packs[0], packs[2] = packs[2], packs[0]
				}
				for _, p := range packs {
					put(t, b, hostile, p)
				}
				again := lie(t, hostile, alone, claimed)
				again.Session[0]++
				if err := again.Sign(hostile); err != nil {
					t.Fatal(err)
				}
				put(t, b, hostile, again)
				for n := range 70 {
					b.objects[testName(n).Object()] = nil
					put(t, b, owner, testPack(n))
				}
				whole := bytes.Clone(b.objects[x.Name.Object()])
				if !readable {
					b.objects[x.Name.Object()][len(whole)-50] ^= 1
				}
				m, _ := openAs(t, b, merger, "")
				if n, err := m.Merge(t.Context()); n != 74 || err != nil {
					t.Fatalf("merged %d, %v", n, err)
				}
				b.objects[x.Name.Object()] = whole
				r, log := openAs(t, b, owner, "")
				mustSync(t, r)
				knowsTruly(t, r, x, id, claimed)
				check(t, r, 10, 70)
				if said := strings.Contains(log.String(), "falsely"); said == readable {
					t.Errorf("readable %v, but the reader says: %q", readable, log)
				}
				if info, ok, _ := r.Pack(alone.Name); !ok || info.Writer != alone.Writer {
					t.Error("the pack that nobody listed as it is, is not listed as it is now")
				}
			}
		}
	}
}

// A false listing with a key of its own must not spoil the pack for a process
// that has used it.
func TestFalseKey(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	b := newBackend()
	popular, popularID := storedBy(t, b, owner, 1)
	x, id := storedBy(t, b, node, 2)
	f := lie(t, hostile, x, popularID)
	var err error
	if f.Epoch, f.Wrapped, err = hostile.Wrap(x.Name.Object(), make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sign(hostile); err != nil {
		t.Fatal(err)
	}
	db, _ := openAs(t, b, owner, "")
	s := chunkstore.New(b, owner, db, chunkstore.Options{})
	put(t, b, hostile, f)
	mustSync(t, db)
	if _, err := s.Data(t.Context(), popularID); err == nil {
		t.Fatal("a chunk was read that only a liar claims to have")
	}
	put(t, b, owner, popular)
	if _, err := s.Data(t.Context(), popularID); err != nil {
		t.Error(err)
	}
	put(t, b, node, x)
	if _, err := s.Data(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// What a process cannot prove because it does not know the writer yet is not
// lost to those who do: neither in a merge nor in a generation.
func TestUnknownWriter(t *testing.T) {
	owner := ownerKeys(t)
	node := writerKeys(t, 1, owner)
	late := ownerKeys(t) // does not know the node
	b, dir := newBackend(), t.TempDir()
	x, id := storedBy(t, b, node, 1)
	put(t, b, owner, x) // as a merge by who knows the node
	for n := range 70 {
		b.objects[testName(n).Object()] = nil
		put(t, b, owner, testPack(n))
	}
	db, _ := openAs(t, b, late, dir)
	mustSync(t, db)
	if n, err := db.Merge(t.Context()); n != 71 || err != nil {
		t.Fatalf("merged %d, %v", n, err)
	}
	put(t, b, owner, testPacks(100, 115)...)
	mustSync(t, db)
	if len(generations(t, dir)) == 0 {
		t.Fatal("no generation was built")
	}
	next, _ := openAs(t, b, owner, dir)
	mustSync(t, next)
	knowsTruly(t, next, x, id, testID(1<<30))
	if locs, _ := db.Lookup(id, nil); len(locs) > 0 {
		t.Error("a listing counts that nobody known has signed")
	}
	meet(late, node)
	mustSync(t, db)
	knowsTruly(t, db, x, id, testID(1<<30))
}

// Segments, lies and truths come in at random while two processes of one cache
// sync; in the end both know the truth.
func TestFalseListingsConcurrently(t *testing.T) {
	owner := ownerKeys(t)
	node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
	meet(node, hostile)
	const seed, packs = 5, 40
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	b, dir := newBackend(), t.TempDir()
	var xs []*pack.Trailer
	var ids []chunk.ID
	var all []*pack.Trailer
	claimed := testID(1 << 30)
	for n := range packs {
		x, id := storedBy(t, b, node, n)
		xs, ids = append(xs, x), append(ids, id)
		all = append(all, x, lie(t, hostile, x, claimed))
	}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	one, _ := openAs(t, b, owner, dir)
	two, _ := openAs(t, b, owner, dir)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, db := range []*DB{one, two} {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := db.Sync(ctx); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for i, x := range all {
		put(t, b, hostile, x)
		if i%8 == 0 {
			put(t, b, owner, testPacks(100+i, 108+i)...)
		}
	}
	cancel()
	wg.Wait()
	fresh, _ := openAs(t, b, owner, dir)
	for _, db := range []*DB{one, two, fresh} {
		mustSync(t, db)
		for i, x := range xs {
			knowsTruly(t, db, x, ids[i], claimed)
		}
	}
}

// A dispute may come up between settle and plan.
func TestNoPlanWhileDisputed(t *testing.T) {
	db, _ := openDB(t, newBackend(), t.TempDir())
	publish(t, db, testPacks(0, 5)...)
	db.disputed[testName(3)] = [16]byte{1}
	if _, err := db.plan(); err == nil {
		t.Error("a generation is planned of what is not decided")
	}
	delete(db.disputed, testName(3))
	if _, err := db.plan(); err != nil {
		t.Error(err)
	}
}
