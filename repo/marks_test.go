package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func one(t testing.TB, r *Repo, id ID) *Snapshot {
	t.Helper()
	s, err := r.Resolve(t.Context(), id.String())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAddMark says one thing after the other, and each process sees it.
func TestAddMark(t *testing.T) {
	b := backend.NewMem()
	r, other := testInit(t, b), testOpen(t, b)
	rec := commit(t, r, Snapshot{Tags: []string{"born"}})
	until := start.Add(time.Hour)
	for i, tt := range []struct {
		m    Mark
		want Snapshot
	}{
		{Mark{Op: MarkTag, Value: "gold"}, Snapshot{Tags: []string{"born", "gold"}}},
		{Mark{Op: MarkTag, Value: "gold"}, Snapshot{Tags: []string{"born", "gold"}}},
		{Mark{Op: MarkUntag, Value: "born"}, Snapshot{Tags: []string{"gold"}}},
		{Mark{Op: MarkUntag, Value: "2026-03-01T12.00.00Z"}, Snapshot{Tags: []string{"gold"}}}, // what could not be added may be removed
		{Mark{Op: MarkPin}, Snapshot{Tags: []string{"gold"}, Pinned: true}},
		{Mark{Op: MarkExpire, Until: until}, Snapshot{Tags: []string{"gold"}, Pinned: true, Expires: until}},
		{Mark{Op: MarkUnpin}, Snapshot{Tags: []string{"gold"}, Expires: until}},
		{Mark{Op: MarkExpire}, Snapshot{Tags: []string{"gold"}}},
		{Mark{Op: MarkUntag, Value: "gold"}, Snapshot{}},
		{Mark{Op: MarkTag, Value: "eleven"}, Snapshot{Tags: []string{"eleven"}}},
		{Mark{Op: MarkUntag, Value: "eleven"}, Snapshot{}}, // by number, not by name
	} {
		if err := []*Repo{r, other}[i%2].AddMark(t.Context(), rec.ID, tt.m); err != nil {
			t.Fatalf("%+v: %v", tt.m, err)
		}
		for _, r := range []*Repo{r, other, testOpen(t, b)} {
			if s := one(t, r, rec.ID); !slices.Equal(s.Tags, tt.want.Tags) || s.Pinned != tt.want.Pinned || !s.Expires.Equal(tt.want.Expires) || s.MarkErr != nil {
				t.Fatalf("after mark %d, %+v: %q, pinned %v, expires %s, %v", i+1, tt.m, s.Tags, s.Pinned, s.Expires, s.MarkErr)
			}
		}
	}
	if got := names(t, b, "marks/"); len(got) != 11 {
		t.Errorf("marks: %q", got)
	}
}

// TestAddMarkRefuses: nothing is written that could not be read, or that is not
// for this one to say.
func TestAddMarkRefuses(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	rec := commit(t, r, Snapshot{Name: "node1"})
	for _, m := range []Mark{
		{}, {Op: "hide"}, {Op: MarkTag}, {Op: MarkTag, Value: "a/b"}, {Op: MarkTag, Value: "latest"}, {Op: MarkTag, Value: "2026-03-01T12.00.00Z"},
		{Op: MarkUntag}, {Op: MarkPin, Value: "x"}, {Op: MarkExpire, Value: "x"}, {Op: MarkPin, Until: start},
	} {
		if err := r.AddMark(t.Context(), rec.ID, m); err == nil {
			t.Errorf("%+v: no error", m)
		}
	}
	if err := r.AddMark(t.Context(), ID{1}, Mark{Op: MarkPin}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such snapshot: %v", err)
	}
	node := testOpen(t, b)
	node.k = addWriter(t, r, "node*")
	if err := node.AddMark(t.Context(), rec.ID, Mark{Op: MarkPin}); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("a writer's own mark: %v", err)
	}
	if got := names(t, b, "marks/"); len(got) != 0 {
		t.Errorf("written: %q", got)
	}
}

// TestAddMarkTogether has many say something of one snapshot at once.
func TestAddMarkTogether(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	rec := commit(t, r, Snapshot{})
	const n = 24
	var wg sync.WaitGroup
	for i := range n {
		r := testOpen(t, b)
		wg.Go(func() {
			if err := r.AddMark(t.Context(), rec.ID, Mark{Op: MarkTag, Value: fmt.Sprint("tag", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s := one(t, r, rec.ID); len(s.Tags) != n {
		t.Errorf("of %d tags these arrived: %q", n, s.Tags)
	}
}

// deaf is a backend whose answer to a Put is lost, so that it is repeated.
type deaf struct{ backend.Backend }

func (d deaf) Put(ctx context.Context, name string, p []byte) error {
	if err := d.Backend.Put(ctx, name, p); err != nil {
		return err
	}
	return d.Backend.Put(ctx, name, p)
}

func TestAddMarkLostAnswer(t *testing.T) {
	b := backend.NewMem()
	rec := commit(t, testInit(t, b), Snapshot{})
	r := testOpen(t, deaf{b})
	for range 2 {
		if err := r.AddMark(t.Context(), rec.ID, Mark{Op: MarkPin}); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, b, "marks/"); len(got) != 2 {
		t.Errorf("two marks are %q", got)
	}
}

// TestMarksJunk: junk among the marks is named, keeps the snapshot from being
// forgotten by a policy, and neither hides what was said nor keeps anybody from
// saying more.
func TestMarksJunk(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	rec, clean := commit(t, r, Snapshot{Name: "node1"}), commit(t, r, Snapshot{Name: "node1"})
	mark := func(op string) {
		t.Helper()
		if err := r.AddMark(t.Context(), rec.ID, Mark{Op: op}); err != nil {
			t.Fatal(err)
		}
	}
	mark(MarkPin)
	base := "marks/" + rec.ID.String()
	node := addWriter(t, r, "node*")
	put(t, r, node, base+"-2", seal.KindMark, seal.ForEpoch, Mark{V: 1, ID: rec.ID, Op: MarkUnpin})
	for _, name := range []string{base + "-3", base + "-9223372036854775807", base + "-07", base + "-x", base, "marks/x"} {
		if err := b.Put(t.Context(), name, []byte("junk")); err != nil {
			t.Fatal(err)
		}
	}
	copied := get(t, b, base+"-1") // true for its name only
	if err := b.Put(t.Context(), "marks/"+clean.ID.String()+"-1", copied); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Repo{r, testOpen(t, b)} {
		snaps, err := r.Snapshots(t.Context())
		if !errors.Is(err, chunk.ErrCorrupt) || len(snaps) != 2 {
			t.Fatalf("%d snapshots, %v", len(snaps), err)
		}
		for _, s := range snaps {
			if s.MarkErr == nil || s.Pinned != (s.ID == rec.ID) {
				t.Errorf("%s: pinned %v, %v", s.ID, s.Pinned, s.MarkErr)
			}
		}
		if got := survivors(snaps, Policy{Last: 1}, start); len(got) != 2 {
			t.Errorf("%d stay", len(got))
		}
	}
	mark(MarkUnpin)
	snaps, _ := testOpen(t, b).Snapshots(t.Context())
	for _, s := range snaps {
		if s.Pinned {
			t.Errorf("%s is pinned still", s.ID)
		}
	}
}
