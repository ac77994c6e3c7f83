package repo

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore"
	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(p)
	return string(p)
}

// texts returns the texts of these seeds, each a chunk.
func texts(seeds ...uint64) (all []string) {
	for _, s := range seeds {
		all = append(all, noise(s, 3000))
	}
	return all
}

// treeOf stores a tree of one file for each text, of one chunk.
func treeOf(t testing.TB, r *Repo, s *Session, texts []string) PageID {
	t.Helper()
	st := s.Writer.Stream(pack.Meta)
	put := func(p []byte) (chunk.ID, error) {
		id := r.SecretKeys().Tree.Sum(p)
		_, err := st.Put(id, p)
		return id, err
	}
	w := tree.NewDirWriter(put)
	for i, text := range texts {
		e := tree.Entry{Attr: tree.Attr{Name: fmt.Sprintf("file%06d", i), Kind: tree.File, Mode: 0o644, Size: int64(len(text)), Nlink: 1},
			Extents: []tree.Extent{{Len: int64(len(text)), Kind: tree.Data, ID: r.SecretKeys().Data.Sum([]byte(text))}}}
		if err := w.Add(&e); err != nil {
			t.Fatal(err)
		}
	}
	dir := tree.Entry{Attr: tree.Attr{Name: tree.RootName, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
	if err := w.Finish(&dir); err != nil {
		t.Fatal(err)
	}
	root := tree.NewDirWriter(put)
	var page tree.Entry
	if err := errors.Join(root.Add(&dir), root.Finish(&page)); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	return PageID{page.Root}
}

// snap makes a snapshot of these texts.
func snap(t testing.TB, r *Repo, texts []string) *Snapshot {
	t.Helper()
	s := testBegin(t, r)
	return finish(t, r, s, texts)
}

func finish(t testing.TB, r *Repo, s *Session, texts []string) *Snapshot {
	t.Helper()
	store(t, r, s, texts...)
	rec := &Snapshot{Name: "host", Time: start, Tree: treeOf(t, r, s, texts)}
	if err := s.Commit(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	return rec
}

// healthy checks that everything that live snapshots need can be read.
func healthy(t testing.TB, b backend.Backend, want int) {
	t.Helper()
	r := testOpen(t, b)
	res, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("damage: %+v", d) })
	if err != nil {
		t.Fatal(err)
	}
	if int(res.Snapshots) != want {
		t.Errorf("%d snapshots, want %d", res.Snapshots, want)
	}
}

// clean checks that nothing is there that nobody needs: every frame of every pack
// is at least half needed, every pack is listed, nothing is condemned.
func clean(t testing.TB, b backend.Backend) {
	t.Helper()
	r := testOpen(t, b)
	res, err := r.Prune(t.Context(), PruneOptions{DryRun: true, MaxRepack: -1})
	if err != nil {
		t.Fatal(err)
	}
	if res.Unneeded.Packs+res.Repack.Packs+res.Left.Packs > 0 || res.Homeless > 0 {
		t.Errorf("something is left to prune: %+v", res)
	}
	for name := range mustListPacks(t, r) {
		if !r.ix.Listed(name) {
			t.Errorf("pack %s is listed in no segment", name)
		}
	}
	if left := names(t, b, "condemned/"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	intents, err := r.intents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id := range intents {
		if state, err := r.stateOf(t.Context(), id); err != nil || state != aRecord {
			t.Errorf("left: the intent of %s, %v", id, err)
		}
	}
	// A hidden record stays as long as its writer may put it again.
	for _, name := range names(t, b, "forgotten/") {
		id, _ := ParseID(strings.TrimPrefix(name, "forgotten/"))
		if _, at := intents[id]; !at {
			t.Errorf("left: %s", name)
		}
	}
	for _, name := range names(t, b, "intents/") {
		base, _, _ := strings.Cut(strings.TrimPrefix(name, "intents/"), ".")
		if id, _ := ParseID(base); intents[id].last.IsZero() {
			t.Errorf("left: %s", name)
		}
	}
}

func mustListPacks(t testing.TB, r *Repo) map[pack.Name]backend.Info {
	t.Helper()
	packs, err := r.listPacks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return packs
}

func prune(t testing.TB, b backend.Backend, opt PruneOptions) PruneResult {
	t.Helper()
	res, err := testOpen(t, b).Prune(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func forget(t testing.TB, b backend.Backend, snaps ...*Snapshot) {
	t.Helper()
	for _, s := range snaps {
		if _, err := testOpen(t, b).Forget(t.Context(), []ID{s.ID}); err != nil {
			t.Fatal(err)
		}
	}
}

// clocked is a backend with a clock that tests set.
func clocked() (*backend.Mem, *time.Time) {
	b, now := backend.NewMem(), start
	var mu sync.Mutex
	b.SetClock(func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Millisecond); return now })
	return b, &now
}

var everything = PruneOptions{MaxRepack: -1}

func TestPrune(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	var old []uint64
	for i := range uint64(60) {
		old = append(old, i)
	}
	first := snap(t, r, texts(old...))
	// A second one needs every fourth chunk, and one of its own.
	var some []uint64
	for _, i := range old {
		if i%4 == 0 {
			some = append(some, i)
		}
	}
	snap(t, r, texts(append(some, 1000)...))
	res := prune(t, b, everything)
	if res.Removed.Packs != 0 || res.Snapshots != 2 || res.Homeless != 0 {
		t.Errorf("with both snapshots %+v", res)
	}
	forget(t, b, first)
	before := sizeOfPacks(t, b)
	dry := prune(t, b, PruneOptions{DryRun: true, MaxRepack: -1})
	if got := sizeOfPacks(t, b); got != before || len(names(t, b, "condemned/")) > 0 {
		t.Errorf("a dry run changed something: %d bytes, then %d", before, got)
	}
	if dry.Repack.Packs == 0 || dry.Unneeded.Packs == 0 {
		t.Errorf("dry run: %+v", dry)
	}
	if res = prune(t, b, PruneOptions{MaxRepack: 0}); res.Copied != 0 || res.Removed.Packs != dry.Unneeded.Packs || res.Skipped.Packs != dry.Repack.Packs {
		t.Errorf("without copying: %+v after %+v", res, dry)
	}
	healthy(t, b, 1)
	res = prune(t, b, everything)
	if res.Copied == 0 || res.Removed.Packs == 0 {
		t.Errorf("%+v", res)
	}
	if after := sizeOfPacks(t, b); after > before/2 {
		t.Errorf("%d bytes of packs, then %d", before, after)
	}
	healthy(t, b, 1)
	clean(t, b)
}

func sizeOfPacks(t testing.TB, b backend.Backend) (sum int64) {
	t.Helper()
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size
	}
	return sum
}

// TestPruneWaits: a writer that leans on what is then condemned is waited for; its
// snapshot is whole.
func TestPruneWaits(t *testing.T) {
	b, now := clocked()
	first := snap(t, testInit(t, b), texts(1, 2, 3))
	forget(t, b, first)
	w := testOpen(t, b)
	s := testBegin(t, w) // leans on the packs of the first
	res := prune(t, b, everything)
	if res.Removed.Packs != 0 || res.Left.Packs == 0 || len(res.Waiting) != 1 || res.Waiting[0].Intent.ID != s.ID {
		t.Fatalf("beside a writer: %+v", res)
	}
	// Another prune goes on with the same record.
	if res = prune(t, b, everything); res.Removed.Packs != 0 || res.Left.Packs == 0 {
		t.Fatalf("beside a writer, again: %+v", res)
	}
	second := finish(t, w, s, texts(1, 2, 3))
	res = prune(t, b, everything)
	if res.Removed.Packs == 0 || res.Left.Packs != 0 || res.Copied == 0 {
		t.Errorf("after the writer: %+v", res)
	}
	healthy(t, b, 1)
	clean(t, b)
	// A silent one is declared dead after the grace.
	forget(t, b, second)
	s = testBegin(t, w)
	*now = now.Add(59 * time.Minute)
	if res = prune(t, b, everything); len(res.Dead) != 0 {
		t.Errorf("within the grace: %+v", res)
	}
	*now = now.Add(2 * time.Minute)
	if res = prune(t, b, everything); len(res.Dead) != 1 || res.Dead[0] != s.ID || res.Left.Packs != 0 {
		t.Errorf("beyond the grace: %+v", res)
	}
	store(t, w, s, texts(1)...)
	rec := &Snapshot{Name: "host", Time: start, Tree: treeOf(t, w, s, texts(1))}
	if err := s.Commit(t.Context(), rec); !errors.Is(err, ErrDead) {
		t.Errorf("a dead writer's commit: %v", err)
	}
	snap(t, w, texts(1)) // the run after that succeeds
	healthy(t, b, 1)
	prune(t, b, everything)
	clean(t, b)
}

// TestPruneWaitOption waits until the writer is done.
func TestPruneWaitOption(t *testing.T) {
	b, _ := clocked()
	first := snap(t, testInit(t, b), texts(1, 2, 3))
	forget(t, b, first)
	w := testOpen(t, b)
	s := testBegin(t, w)
	done := make(chan PruneResult)
	var p PruneProgress
	go func() {
		res, err := testOpen(t, b).Prune(t.Context(), PruneOptions{MaxRepack: -1, Wait: true, Poll: time.Millisecond, Progress: &p})
		if err != nil {
			t.Error(err)
		}
		done <- res
	}()
	for p.Waiting.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	finish(t, w, s, texts(1, 2, 3))
	if res := <-done; res.Removed.Packs == 0 || res.Left.Packs != 0 {
		t.Errorf("%+v", res)
	}
	healthy(t, b, 1)
	clean(t, b)
}

// wasteful makes a repository with all that prune looks at: packs needed in full,
// in part and not at all, a snapshot hidden behind its writer's intent, a writer
// that crashed with an unlisted pack, and more segments than are merged.
func wasteful(t testing.TB, b backend.Backend) (keep []*Snapshot) {
	r := testInit(t, b)
	a := snap(t, r, texts(1, 2, 3, 4, 5, 6, 7, 8))
	keep = append(keep, snap(t, r, texts(1, 9)))
	forgotten := snap(t, r, texts(20, 21))
	forget(t, b, a, forgotten)
	hidden := snap(t, r, texts(30, 31))
	put(t, r, r.SecretKeys(), intentName(hidden.ID), seal.KindIntent, seal.ForList, Intent{V: 1, ID: hidden.ID})
	put(t, r, r.SecretKeys(), intentName(hidden.ID)+".1", seal.KindIntent, seal.ForList, Intent{V: 1, ID: hidden.ID, Beat: 1})
	forget(t, b, hidden)
	crashed := backendtest.NewFaulty(b, backendtest.Faults{CrashAfterPuts: 2}) // intent and a pack
	s := testBegin(t, testOpen(t, crashed))
	store(t, s.r, s, texts(40, 41)...)
	s.Writer.Close()
	s.halt()
	return keep
}

// TestPruneCrashes: whichever call is the last one, the snapshots are whole, and
// two more runs leave nothing. The first call that fails once must do no harm
// either, its answer lost or not.
func TestPruneCrashes(t *testing.T) {
	for first, kind := range []string{"crash", "fault", "lost answer"} {
		t.Run(kind, func(t *testing.T) {
			every := 5
			if os.Getenv("CUTBANK_SLOW") != "" {
				every = 1
			} else if testing.Short() {
				every = 31
			}
			for n := 1 + first; ; n += every {
				b, now := clocked()
				keep := wasteful(t, b)
				*now = now.Add(2 * time.Hour)
				faults := map[string]backendtest.Faults{"crash": {CrashAtCall: n}, "fault": {Call: n}, "lost answer": {Call: n, After: true}}[kind]
				f := backendtest.NewFaulty(b, backendtest.Faults{})
				r := testOpen(t, f)
				f.Set(faults)
				_, err := r.Prune(t.Context(), everything)
				healthy(t, b, len(keep))
				prune(t, b, everything)
				prune(t, b, everything)
				healthy(t, b, len(keep))
				clean(t, b)
				if t.Failed() {
					t.Fatalf("%s at call %d: %v", kind, n, err)
				}
				if f.Calls() < n {
					t.Logf("%d calls, every %d. of them", f.Calls(), every)
					return
				}
			}
		})
	}
}

// TestPruneTogether runs writers, prunes, forgets and a reader at once; in the end
// every snapshot that was not forgotten is whole.
func TestPruneTogether(t *testing.T) {
	b := backend.NewMem()
	testInit(t, b)
	var mu sync.Mutex
	live := map[ID]bool{}
	var wg sync.WaitGroup
	actors := uint64(0)
	run := func(f func(r *Repo, rnd *rand.Rand)) {
		actors++
		rnd := rand.New(rand.NewPCG(actors, 7))
		wg.Add(1)
		go func() {
			defer wg.Done()
			r := testOpen(t, b)
			for range 12 {
				f(r, rnd)
			}
		}()
	}
	for range 3 {
		run(func(r *Repo, rnd *rand.Rand) {
			var seeds []uint64
			for range 8 {
				seeds = append(seeds, rnd.Uint64N(40))
			}
			slices.Sort(seeds)
			s := snap(t, r, texts(seeds...))
			mu.Lock()
			live[s.ID] = true
			mu.Unlock()
		})
	}
	run(func(r *Repo, rnd *rand.Rand) {
		mu.Lock()
		var ids []ID
		for id := range live {
			if rnd.IntN(2) == 0 {
				ids = append(ids, id)
				delete(live, id)
			}
		}
		mu.Unlock()
		if _, err := r.Forget(t.Context(), ids); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		run(func(r *Repo, _ *rand.Rand) {
			if _, err := r.Prune(t.Context(), everything); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	healthy(t, b, len(live))
	prune(t, b, everything)
	prune(t, b, everything)
	healthy(t, b, len(live))
	clean(t, b)
}

// TestPruneRefuses what it cannot decide.
func TestPruneRefuses(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	gone := snap(t, r, texts(1, 2, 3))
	forget(t, b, gone)
	kept := snap(t, r, texts(4, 5))
	name := "snapshots/" + kept.ID.String()
	good := get(t, b, name)
	bad := slices.Clone(good)
	bad[len(bad)/2] ^= 1
	replace(t, b, name, bad)
	if res, err := testOpen(t, b).Prune(t.Context(), everything); err == nil || res.Removed.Packs > 0 || len(names(t, b, "condemned/")) > 0 {
		t.Errorf("with a damaged record: %+v, %v", res, err)
	}
	replace(t, b, name, good)
	// A page that is lost hides what is below it.
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		n, _ := pack.ParseObject(info.Name)
		if p, ok, _ := r.ix.Pack(n); ok && p.Kind == pack.Meta && p.Session == kept.ID {
			if err := b.Remove(t.Context(), info.Name); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := len(names(t, b, "packs/"))
	if res, err := testOpen(t, b).Prune(t.Context(), everything); !errors.Is(err, chunk.ErrMissing) || len(names(t, b, "packs/")) != before {
		t.Errorf("with a lost page: %+v, %v", res, err)
	}
	// A writer that is not the owner.
	if _, err := asWriter(t, r).Prune(t.Context(), everything); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("a writer's prune: %v", err)
	}
	if _, err := asWriter(t, r).Forget(t.Context(), []ID{kept.ID}); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("a writer's forget: %v", err)
	}
}

// asWriter opens the repository with a full ring that signs as another writer.
func asWriter(t testing.TB, r *Repo) *Repo {
	t.Helper()
	ring := *r.k.Ring()
	ring.Write = []byte(noise(99, 32))
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	w, err := open(t.Context(), r.b, k, r.key, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// TestPruneStays: a chunk that cannot be copied keeps its pack, and only that.
func TestPruneStays(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	a := snap(t, r, texts(1, 2, 3, 4, 5, 6, 7, 8))
	snap(t, r, texts(1))
	forget(t, b, a)
	var data []string
	for name := range mustListPacks(t, r) {
		if p, ok, _ := r.ix.Pack(name); ok && p.Kind == pack.Data {
			data = append(data, name.Object())
		}
	}
	if len(data) != 1 {
		t.Fatalf("%d data packs", len(data))
	}
	p := get(t, b, data[0])
	for i := 1300; i < 24000; i += 50 { // all frames, but not the trailer
		p[i] ^= 1
	}
	replace(t, b, data[0], p)
	res, err := testOpen(t, b).Prune(t.Context(), everything)
	if !errors.Is(err, chunk.ErrCorrupt) || len(res.Stay) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	if _, err := b.Get(t.Context(), data[0], 0, 1); err != nil {
		t.Errorf("the damaged pack: %v", err)
	}
}

// TestPruneSmall: many small packs become few.
func TestPruneSmall(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	for i := range uint64(manySmall + 4) {
		snap(t, r, texts(i))
	}
	before := len(names(t, b, "packs/"))
	res := prune(t, b, everything)
	if after := len(names(t, b, "packs/")); after > before/4 {
		t.Errorf("%d packs became %d: %+v", before, after, res)
	}
	healthy(t, b, manySmall+4)
	clean(t, b)
}

// TestPruneRewrite copies what is asked for.
func TestPruneRewrite(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	snap(t, r, texts(1, 2, 3))
	before := names(t, b, "packs/")
	prune(t, b, PruneOptions{MaxRepack: -1, Rewrite: func(p chunkstore.PackInfo) bool { return p.Kind == pack.Data }})
	same := 0
	for _, name := range names(t, b, "packs/") {
		if slices.Contains(before, name) {
			same++
		}
	}
	if same != len(before)-1 {
		t.Errorf("%d of %d packs are the same", same, len(before))
	}
	healthy(t, b, 1)
	clean(t, b)
}

// TestPruneDamagedRecord: a condemned record that is damaged stops writers and
// pruners, until somebody says that no prune is running.
func TestPruneDamagedRecord(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	snap(t, r, texts(1))
	id, err := r.newID()
	if err != nil {
		t.Fatal(err)
	}
	name := "condemned/" + id.String()
	put(t, r, r.k, name, seal.KindCondemned, seal.ForList, Condemned{V: 1, ID: id})
	p := get(t, b, name)
	p[len(p)/2] ^= 1
	replace(t, b, name, p)
	if _, err := r.Begin(t.Context()); !errors.Is(err, chunk.ErrCorrupt) || !contains(err, "--discard-damaged") {
		t.Errorf("begin: %v", err)
	}
	if _, err := r.Prune(t.Context(), everything); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("prune: %v", err)
	}
	prune(t, b, PruneOptions{DiscardDamaged: true})
	if _, err := b.Get(context.Background(), name, 0, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record: %v", err)
	}
	snap(t, r, texts(2))
	// What a mere writer condemns counts for nothing.
	w := asWriter(t, r)
	r.k.Trust(ed25519.NewKeyFromSeed(w.k.Ring().Write).Public().(ed25519.PublicKey))
	packs := mustListPacks(t, r)
	c := Condemned{V: 1, ID: id}
	for n := range packs {
		c.Packs = append(c.Packs, n.String())
	}
	put(t, r, w.k, name, seal.KindCondemned, seal.ForList, c)
	s := testBegin(t, r)
	if n := store(t, r, s, texts(1)...); n != 0 {
		t.Error("what a mere writer condemned was not leaned on")
	}
	s.Abort(t.Context())
}
