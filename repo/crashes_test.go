package repo

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// mended makes a repository with parity, with two damaged packs that it heals, and
// more ledgers than are merged.
func mended(t *testing.T) *backend.Mem {
	t.Helper()
	b, _ := clocked()
	in := testParams(t)
	in.Parity = 20
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	snap(t, r, texts(1, 2, 3, 4, 5, 6, 7, 8))
	snap(t, r, texts(1, 9, 10, 11))
	for name := range mustListPacks(t, r) {
		if p, _, _ := r.ix.Pack(name); p.Kind == pack.Data {
			damage(t, b, name.Object(), 300)
		}
	}
	return b
}

// TestCrashes: whichever call of these is the last one, or fails, or loses its
// answer: nothing that can be read is lost, doing it again brings it to its end, and
// two prunes leave nothing behind.
func TestCrashes(t *testing.T) {
	quiet := func(RepairStep) {}
	for _, c := range []struct {
		name string
		all  bool // in the end all can be read
		make func(t *testing.T) *backend.Mem
		do   func(ctx context.Context, r *Repo) error
	}{
		{"check heals", true, mended, func(ctx context.Context, r *Repo) error {
			_, err := r.Check(ctx, CheckOptions{ReadData: true, Heal: true}, func(Damage) {})
			return err
		}},
		{"repair", true, mended, func(ctx context.Context, r *Repo) error {
			_, err := r.Repair(ctx, RepairOptions{Index: true, Packs: true, Snapshots: true, ReadData: true}, quiet)
			return err
		}},
		{"repair without parity", false, func(t *testing.T) *backend.Mem {
			b := mended(t)
			for _, name := range names(t, b, "parity/") {
				if err := b.Remove(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
			return b
		}, func(ctx context.Context, r *Repo) error {
			_, err := r.Repair(ctx, RepairOptions{Index: true, Packs: true, Snapshots: true, ReadData: true}, quiet)
			return err
		}},
		{"parity", false, func(t *testing.T) *backend.Mem {
			b, _ := clocked()
			r := testInit(t, b)
			snap(t, r, texts(1, 2, 3))
			if err := r.SetParity(t.Context(), 10); err != nil {
				t.Fatal(err)
			}
			snap(t, testOpen(t, b), texts(4, 5))
			for _, name := range names(t, b, "parity/") {
				damage(t, b, name, 300)
			}
			return b
		}, func(ctx context.Context, r *Repo) error {
			_, err := r.AddParity(ctx, ParityOptions{Renew: true})
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			every := 7
			if os.Getenv("CUTBANK_SLOW") != "" {
				every = 1
			}
			whole := c.make(t)
			for n, kind := 1, 0; ; n, kind = n+every, (kind+1)%3 {
				b := copyMem(t, whole)
				at := start
				b.SetClock(func() time.Time { at = at.Add(time.Millisecond); return at })
				f := backendtest.NewFaulty(b, backendtest.Faults{})
				r := testOpen(t, f)
				f.Set([]backendtest.Faults{{CrashAtCall: n}, {Call: n}, {Call: n, After: true}}[kind])
				err := c.do(t.Context(), r)
				calls := f.Calls()
				reads(t, b, whole, false)
				if err := c.do(t.Context(), testOpen(t, b)); err != nil {
					t.Errorf("again: %v", err)
				}
				at = at.Add(3 * time.Hour)
				for range 2 {
					if _, err := later(t, b, at).Prune(t.Context(), everything); err != nil && !errors.Is(err, chunk.ErrCorrupt) {
						t.Errorf("prune: %v", err)
					}
				}
				reads(t, b, whole, c.all)
				nothingLeft(t, b)
				if t.Failed() {
					t.Fatalf("kind %d at call %d of %d: %v", kind, n, calls, err)
				}
				if calls < n {
					t.Logf("%d calls, every %d. of them", calls, every)
					return
				}
			}
		})
	}
}

// later opens the repository when it is so late.
func later(t *testing.T, b backend.Backend, at time.Time) *Repo {
	t.Helper()
	opt := testOptions(t)
	opt.Now = func() time.Time { return at }
	r, err := Open(t.Context(), b, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// reads checks that each chunk of the texts that one repository can give the other
// can give, too, or all of them.
func reads(t *testing.T, b, was backend.Backend, all bool) {
	t.Helper()
	r, o := testOpen(t, b), testOpen(t, was)
	for _, r := range []*Repo{r, o} {
		if err := r.Sync(t.Context()); err != nil && !unproven(err) {
			t.Fatal(err)
		}
	}
	for i, text := range texts(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) {
		id := r.k.Data.Sum([]byte(text))
		if _, err := o.store.Data(t.Context(), id); err != nil && !all {
			continue
		}
		if _, err := r.store.Data(t.Context(), id); err != nil {
			t.Errorf("text %d: %v", i+1, err)
		}
	}
	if _, err := r.Snapshots(t.Context()); err != nil {
		t.Error(err)
	}
}

// nothingLeft checks that there is nothing that belongs to nothing.
func nothingLeft(t *testing.T, b backend.Backend) {
	t.Helper()
	packs := mustListPacks(t, testOpen(t, b))
	for _, name := range names(t, b, "parity/") {
		if n, ok := parsePackName(strings.TrimPrefix(name, "parity/")); !ok {
			t.Errorf("left: %s", name)
		} else if _, there := packs[n]; !there {
			t.Errorf("left: %s, of a pack that is gone", name)
		}
	}
	for _, prefix := range []string{"marks/", "forgotten/"} {
		if left := names(t, b, prefix); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// TestCopyCrashes: a copy that ended at any call, made again, is whole, and leaves
// nothing behind.
func TestCopyCrashes(t *testing.T) {
	src, dst := likePair(t)
	var a, z [][]byte
	for i := range 20 {
		a = append(a, copyText(i, 3000))
		z = append(z, copyText(i+10, 3000))
	}
	one, two := flat(t, src, a...), flat(t, src, z...)
	old := snap(t, dst, texts(1)) // for prune to have something to do
	whole := copyMem(t, dst.b)
	for n, kind := 1, 0; ; n, kind = n+5, (kind+1)%3 {
		b := copyMem(t, whole)
		at := start
		b.SetClock(func() time.Time { at = at.Add(time.Millisecond); return at })
		f := backendtest.NewFaulty(b, backendtest.Faults{})
		over := func(dst *Repo) error {
			c, _ := NewPackCopier(src, dst, nil)
			for _, s := range []*Snapshot{one, two} {
				have, err := dst.Snapshots(t.Context())
				if err != nil {
					return err
				}
				if dst.Origins(have)[src.OriginOf(s)] != nil {
					continue
				}
				rec, err := src.CopyRecord(t.Context(), s)
				if err != nil {
					return err
				}
				w, err := dst.Begin(t.Context())
				if err != nil {
					return err
				}
				if err := c.Tree(t.Context(), w, rec.Tree, rec.Witness); err != nil {
					w.Abort(t.Context())
					return err
				}
				if err := w.Commit(t.Context(), rec); err != nil {
					return err
				}
				c.Committed(w)
			}
			return nil
		}
		to := testOpen(t, f)
		f.Set([]backendtest.Faults{{CrashAtCall: n}, {Call: n}, {Call: n, After: true}}[kind])
		err := over(to)
		calls := f.Calls()
		if err := over(testOpen(t, b)); err != nil {
			t.Errorf("again: %v", err)
		}
		healthy(t, b, 3)
		forget(t, b, old)
		at = at.Add(3 * time.Hour)
		for range 2 {
			if _, err := later(t, b, at).Prune(t.Context(), everything); err != nil {
				t.Errorf("prune: %v", err)
			}
		}
		healthy(t, b, 2)
		clean(t, b)
		nothingLeft(t, b)
		if t.Failed() {
			t.Fatalf("kind %d at call %d of %d: %v", kind, n, calls, err)
		}
		if calls < n {
			return
		}
	}
}
