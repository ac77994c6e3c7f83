package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// beside is a backend in which something happens around calls. Hooks that are nil
// do nothing.
type beside struct {
	backend.Backend
	list    func(prefix string, found []backend.Info) []backend.Info // changes what a listing shows
	put     func(ctx context.Context, name string, p []byte) error   // in the place of Put
	removed func(name string)                                        // after a Remove
	lag     time.Duration
}

func (h *beside) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		var found []backend.Info
		for info, err := range h.Backend.List(ctx, prefix) {
			if err != nil {
				yield(info, err)
				return
			}
			found = append(found, info)
		}
		if h.list != nil {
			found = h.list(prefix, found)
		}
		for _, info := range found {
			if !yield(info, nil) {
				return
			}
		}
	}
}

func (h *beside) Put(ctx context.Context, name string, p []byte) error {
	if h.put != nil {
		return h.put(ctx, name, p)
	}
	return h.Backend.Put(ctx, name, p)
}

func (h *beside) Remove(ctx context.Context, name string) error {
	err := h.Backend.Remove(ctx, name)
	if h.removed != nil {
		h.removed(name)
	}
	return err
}

func (h *beside) Lag() time.Duration { return h.lag }

// TestPruneTornListing: a listing that runs while another prune begins may show
// what that waits for and not the record itself. The record must not be ended by
// who does not know its packs.
func TestPruneTornListing(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	snap(t, r, texts(1, 2, 3))
	id, err := r.newID()
	if err != nil {
		t.Fatal(err)
	}
	base := "condemned/" + id.String()
	c := Condemned{V: 1, ID: id}
	for n := range mustListPacks(t, r) {
		c.Packs = append(c.Packs, n.String())
	}
	put(t, r, r.k, base, seal.KindCondemned, seal.ForList, c)
	put(t, r, r.k, base+".1", seal.KindCondemned, seal.ForList, Condemned{V: 1, ID: id})
	first := true
	h := &beside{Backend: b, list: func(prefix string, found []backend.Info) []backend.Info {
		if prefix == "condemned/" && first {
			first = false
			found = slices.DeleteFunc(found, func(i backend.Info) bool { return i.Name == base })
		}
		return found
	}}
	if _, err := testOpen(t, h).Prune(t.Context(), everything); err != nil {
		t.Fatal(err)
	}
	if len(names(t, b, base)) == 0 {
		t.Error("a condemned record is gone, its packs are there")
	}
	prune(t, b, everything)
	healthy(t, b, 1)
	clean(t, b)
}

// TestPruneStaleListing: where a listing may show for a while what was removed, a
// writer that begins behind a prune must not lean on packs that are gone.
func TestPruneStaleListing(t *testing.T) {
	const lag = 150 * time.Millisecond
	b, _ := clocked()
	first := snap(t, testInit(t, b), texts(1, 2, 3))
	forget(t, b, first)
	var mu sync.Mutex
	gone := map[string]time.Time{}
	all, came := map[string]backend.Info{}, map[string]time.Time{}
	h := &beside{Backend: b, lag: lag, put: func(ctx context.Context, name string, p []byte) error {
		mu.Lock()
		came[name] = time.Now()
		mu.Unlock()
		return b.Put(ctx, name, p)
	}}
	h.list = func(prefix string, found []backend.Info) []backend.Info {
		mu.Lock()
		defer mu.Unlock()
		if prefix == "index/" {
			return slices.DeleteFunc(found, func(i backend.Info) bool { return time.Since(came[i.Name]) < lag })
		}
		if prefix != "packs/" {
			return found
		}
		for _, info := range found {
			all[info.Name] = info
		}
		for name, at := range gone {
			if time.Since(at) < lag {
				found = append(found, all[name])
			}
		}
		return found
	}
	begun := make(chan *Session)
	announced := make(chan struct{})
	w := testOpen(t, &beside{Backend: h, lag: lag, put: func(ctx context.Context, name string, p []byte) error {
		err := h.Put(ctx, name, p)
		if strings.HasPrefix(name, "intents/") {
			close(announced)
		}
		return err
	}})
	var once sync.Once
	p := testOpen(t, &beside{Backend: h, lag: lag, removed: func(name string) {
		if !strings.HasPrefix(name, "packs/") {
			return
		}
		once.Do(func() {
			go func() {
				s, err := w.Begin(t.Context())
				if err != nil {
					t.Error(err)
				}
				begun <- s
			}()
			<-announced
			time.Sleep(lag / 2)
		})
		mu.Lock()
		gone[name] = time.Now()
		mu.Unlock()
	}})
	if _, err := p.Prune(t.Context(), everything); err != nil {
		t.Error(err)
	}
	s := <-begun
	finish(t, w, s, texts(1, 2, 3))
	healthy(t, b, 1)
}

// TestLedgerMergedMeanwhile: who reads the ledgers while they are merged misses
// nothing.
func TestLedgerMergedMeanwhile(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	snap(t, r, texts(1))
	all := sortedNames(mustListPacks(t, r))
	for i := range ledgerObjects + 2 {
		e := LedgerEntry{Pack: all[0].String(), Time: start.Add(time.Duration(i)), Depth: DepthHash, What: "damaged"}
		if err := r.addLedger(t.Context(), []LedgerEntry{e}); err != nil {
			t.Fatal(err)
		}
	}
	merged := false
	h := &beside{Backend: b, list: func(prefix string, found []backend.Info) []backend.Info {
		if prefix == "ledger/" && !merged {
			merged = true
			if err := r.mergeLedgers(t.Context()); err != nil {
				t.Error(err)
			}
		}
		return found
	}}
	v, err := testOpen(t, h).Verified(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !merged || len(names(t, b, "ledger/")) != 1 {
		t.Fatalf("not merged: %v", names(t, b, "ledger/"))
	}
	if e, ok := v[all[0]]; !ok || e.OK {
		t.Errorf("a damaged pack is %+v, %v", e, ok)
	}
}

// TestPruneAbandoned: what a crashed writer left is freed, also if there is
// nothing else to prune.
func TestPruneAbandoned(t *testing.T) {
	b, now := clocked()
	r := testInit(t, b)
	snap(t, r, texts(1))
	crashed := testOpen(t, b)
	s := testBegin(t, crashed)
	store(t, crashed, s, texts(40, 41)...)
	s.Writer.Close()
	s.halt()
	before := len(names(t, b, "packs/"))
	if res := prune(t, b, everything); res.AtWork.Packs == 0 || len(names(t, b, "packs/")) != before {
		t.Errorf("beside a writer at work: %+v", res)
	}
	*now = now.Add(2 * time.Hour)
	late := func() {
		opt := testOptions(t)
		opt.Now = func() time.Time { return *now }
		r, err := Open(t.Context(), b, opt)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Prune(t.Context(), everything); err != nil {
			t.Fatal(err)
		}
	}
	late()
	late()
	if n := len(names(t, b, "packs/")); n >= before {
		t.Errorf("%d packs, of %d", n, before)
	}
	clean(t, b)
	healthy(t, b, 1)
}

// TestRepairUnknownDamage: a page that a donor has is stored although a pack that
// nobody knows as damaged lists it, and stays there when prune has run.
func TestRepairUnknownDamage(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	s := snap(t, r, texts(1, 2, 3))
	donor := testOpen(t, copyMem(t, b))
	for name := range mustListPacks(t, r) {
		if p, ok, _ := r.ix.Pack(name); ok && p.Kind == pack.Meta {
			tr, err := r.readTrailer(t.Context(), name, p.Size)
			if err != nil {
				t.Fatal(err)
			}
			o := get(t, b, name.Object())
			o[tr.Frames[0].Off+tr.Frames[0].Stored/2] ^= 1
			replace(t, b, name.Object(), o)
		}
	}
	from := Donor{Name: "copy", Get: func(ctx context.Context, kind pack.Kind, id chunk.ID) ([]byte, error) {
		if kind == pack.Meta {
			return donor.store.Page(ctx, id)
		}
		return donor.store.Data(ctx, id)
	}}
	if err := donor.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := testOpen(t, b).Repair(t.Context(), RepairOptions{Snapshots: true, Donors: []Donor{from}}, func(RepairStep) {})
	if err != nil || res.Found == 0 || res.Lost > 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	for range 2 {
		fresh := testOpen(t, b)
		if err := fresh.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := fresh.store.Page(t.Context(), s.Tree.ID); err != nil {
			t.Errorf("what was found is lost: %v", err)
		}
		prune(t, b, everything)
		prune(t, b, everything)
	}
	healthy(t, b, 1)
}

// TestCommitCancelled: a Put that was cancelled may still arrive. Its writer's
// intent has to keep what it leans on.
func TestCommitCancelled(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	first := snap(t, r, texts(1, 2, 3))
	forget(t, b, first)
	var arrive func()
	ctx, cancel := context.WithCancel(t.Context())
	w := testOpen(t, &beside{Backend: b, put: func(c context.Context, name string, p []byte) error {
		if !strings.HasPrefix(name, "snapshots/") {
			return b.Put(c, name, p)
		}
		p = slices.Clone(p)
		arrive = func() {
			if err := b.Put(context.Background(), name, p); err != nil {
				t.Error(err)
			}
		}
		cancel()
		return fmt.Errorf("put: %w", c.Err())
	}})
	s := testBegin(t, w)
	store(t, w, s, texts(1, 2, 3)...)
	err := s.Commit(ctx, &Snapshot{Name: "host", Time: start, Tree: treeOf(t, w, s, texts(1, 2, 3))})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	prune(t, b, everything)
	arrive()
	healthy(t, b, 1)
	// One that is cancelled before its Put leaves nothing behind.
	ctx, cancel = context.WithCancel(t.Context())
	s = testBegin(t, r)
	rec := &Snapshot{Name: "host", Time: start, Tree: treeOf(t, r, s, texts(1))}
	cancel()
	if err := s.Commit(ctx, rec); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if left := names(t, b, intentName(s.ID)); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestPruneCutShort: a pack that lost its end is no place to leave chunks to.
func TestPruneCutShort(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	snap(t, r, texts(1, 2, 3, 4, 5, 6))
	var first pack.Name
	for name := range mustListPacks(t, r) {
		if p, _, _ := r.ix.Pack(name); p.Kind == pack.Data {
			first = name
		}
	}
	// A second pack holds the same.
	s, err := r.begin(t.Context(), func(n pack.Name) bool { return n != first })
	if err != nil {
		t.Fatal(err)
	}
	finish(t, r, s, texts(1, 2, 3, 4, 5, 6))
	whole := map[pack.Name][]byte{}
	for name := range mustListPacks(t, r) {
		if p, _, _ := r.ix.Pack(name); p.Kind == pack.Data {
			whole[name] = get(t, b, name.Object())
		}
	}
	if len(whole) != 2 {
		t.Fatalf("%d data packs", len(whole))
	}
	for i := range 10 { // the order in which packs are looked at is up to chance
		name := sortedNames(whole)[i%2]
		c := copyMem(t, b)
		o := get(t, c, name.Object())
		replace(t, c, name.Object(), o[:len(o)/8])
		for range 2 {
			prune(t, c, everything)
		}
		fresh := testOpen(t, c)
		if err := fresh.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, text := range texts(1, 2, 3, 4, 5, 6) {
			if _, err := fresh.store.Data(t.Context(), r.k.Data.Sum([]byte(text))); err != nil {
				t.Fatalf("pack %s was cut short, the other was whole: %v", name, err)
			}
		}
		clean(t, c)
	}
}

// TestPruneForgottenMeanwhile: what was forgotten, and removed by another prune,
// while this one looks is not said to be lost.
func TestPruneForgottenMeanwhile(t *testing.T) {
	b, _ := clocked()
	r := testInit(t, b)
	snap(t, r, texts(1))
	gone := snap(t, r, texts(2, 3))
	done := false
	h := &beside{Backend: b, list: func(prefix string, found []backend.Info) []backend.Info {
		if prefix == "ledger/" && !done { // it has marked
			done = true
			forget(t, b, gone)
			prune(t, b, everything)
		}
		return found
	}}
	res, err := testOpen(t, h).Prune(t.Context(), everything)
	if err != nil || res.Homeless > 0 || !done {
		t.Errorf("%+v, %v", res, err)
	}
	healthy(t, b, 1)
}

// TestAdoptionIsPublishedBitByBit: who adopts many packs does not hold what all of
// them list.
func TestAdoptionIsPublishedBitByBit(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	n := publishBatch + 10
	for i := range uint64(n) {
		s := testBegin(t, r)
		store(t, r, s, texts(i)...)
		s.Abort(t.Context())
	}
	for _, name := range names(t, b, "index/") {
		if err := b.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	rec := backendtest.NewRecorder(b)
	testBegin(t, testOpen(t, rec)).Abort(t.Context())
	first, last := -1, -1
	for i, op := range rec.Ops() {
		switch {
		case op.Verb == "put" && strings.HasPrefix(op.Name, "index/") && first < 0:
			first = i
		case op.Verb == "get" && strings.HasPrefix(op.Name, "packs/"):
			last = i
		}
	}
	if first < 0 || first > last {
		t.Errorf("the first segment was put at call %d, the last pack was read at %d", first, last)
	}
}

// flaky spoils what the n-th Get of a segment returns.
type flaky struct {
	backend.Backend
	mu   sync.Mutex
	n    int
	gets map[string]int
}

func (f *flaky) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	p, err := f.Backend.Get(ctx, name, off, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && strings.HasPrefix(name, "index/") {
		if f.gets[name]++; f.gets[name] == f.n {
			p[len(p)/2] ^= 1
		}
	}
	return p, err
}

// TestRepairFlakySegment: a segment that is removed as damaged leaves no pack
// unlisted, also if it could be read before.
func TestRepairFlakySegment(t *testing.T) {
	for n := 1; n <= 4; n++ {
		b, _ := clocked()
		r := testInit(t, b)
		snap(t, r, texts(1, 2, 3))
		f := &flaky{Backend: b, n: n, gets: map[string]int{}}
		r = testOpen(t, f)
		if _, err := r.Repair(t.Context(), RepairOptions{Index: true}, func(RepairStep) {}); err != nil {
			t.Fatal(err)
		}
		clean(t, b)
	}
}

// TestRepairKeepsNewerNotes: a mark that is sealed for an epoch that this key was
// not given is not damaged.
func TestRepairKeepsNewerNotes(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	s := snap(t, r, texts(1))
	ring := *r.k.Ring()
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	old, err := open(t.Context(), b, k, r.key, testOptions(t)) // is given nothing
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := r.RotateKeys(t.Context(), RotateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.AddMark(t.Context(), s.ID, Mark{Op: MarkPin}); err != nil {
		t.Fatal(err)
	}
	damage(t, b, "marks/"+s.ID.String()+"-1", 1)
	if err := r.AddMark(t.Context(), s.ID, Mark{Op: MarkPin}); err != nil {
		t.Fatal(err)
	}
	before := names(t, b, "marks/")
	res, err := old.Repair(t.Context(), RepairOptions{Notes: true}, func(RepairStep) {})
	if left := names(t, b, "marks/"); err != nil || res.Notes != 1 || len(left) != len(before)-1 {
		t.Errorf("%+v, %v: %v became %v", res, err, before, left)
	}
}
