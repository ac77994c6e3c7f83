package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// network is a place in which a Put may be done later than it is answered, or once
// more: put by hand.
type network struct {
	*backend.Mem
	now    time.Time
	answer func(name string, p []byte) error // of a Put that is not done; nil: it is
}

func newNetwork() *network {
	n := &network{Mem: backend.NewMem(), now: start}
	n.SetClock(func() time.Time { return n.now })
	return n
}

func (n *network) Late() time.Duration { return time.Hour }

func (n *network) Put(ctx context.Context, name string, p []byte) error {
	if n.answer != nil {
		if err := n.answer(name, p); err != nil {
			return err
		}
	}
	return n.Mem.Put(ctx, name, p)
}

// arrive does a Put that was under way.
func (n *network) arrive(t *testing.T, name string, p []byte) {
	t.Helper()
	if err := n.Mem.Put(t.Context(), name, p); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
}

// again puts the same at once, three times.
func again(b backend.Backend) backend.Backend {
	return backend.Retry(b, func(n int, _ error) (time.Duration, bool) { return 0, n < 3 }, backend.PutAgain)
}

// TestCommitUnclearThenClear: what the last attempt was told says nothing of the
// first, whose record comes when the writer has given up.
func TestCommitUnclearThenClear(t *testing.T) {
	for _, last := range []error{
		fs.ErrPermission, fmt.Errorf("slow down: %w", backend.ErrNotDone),
	} {
		n := newNetwork()
		testInit(t, n)
		r := testOpen(t, again(n))
		s := testBegin(t, r)
		store(t, r, s, "a chunk")
		tree := emptyTree(t, r, s)
		name, held := "snapshots/"+s.ID.String(), []byte(nil)
		n.answer = func(put string, p []byte) error {
			switch {
			case put != name:
				return nil
			case held == nil:
				held = bytes.Clone(p)
				return errLost
			}
			return last
		}
		err := s.Commit(t.Context(), &Snapshot{Name: "host", Time: start, Tree: tree})
		if !contains(err, "unclear") || !errors.Is(err, backend.ErrUnclear) {
			t.Errorf("%v after a lost answer: got %v", last, err)
		}
		if left := names(t, n, intentName(s.ID)); len(left) != 1 {
			t.Errorf("%v: intents %q, want that of the unclear commit", last, left)
		}
		// A prune that runs now waits for it.
		n.answer = nil
		if res, err := testOpen(t, n).Prune(t.Context(), PruneOptions{}); err != nil || res.Removed.Packs > 0 {
			t.Errorf("%v: prune removed %d packs, %v", last, res.Removed.Packs, err)
		}
		n.arrive(t, name, held)
		if snaps, err := testOpen(t, n).Snapshots(t.Context()); err != nil || len(snaps) != 1 {
			t.Errorf("%v: %d snapshots, %v", last, len(snaps), err)
		}
	}
	// All attempts were refused: nothing will come, and nobody has to wait.
	n := newNetwork()
	testInit(t, n)
	r := testOpen(t, again(n))
	s := testBegin(t, r)
	tree := emptyTree(t, r, s)
	n.answer = func(put string, _ []byte) error {
		if strings.HasPrefix(put, "snapshots/") {
			return backend.ErrNotDone
		}
		return nil
	}
	if err := s.Commit(t.Context(), &Snapshot{Name: "host", Time: start, Tree: tree}); !errors.Is(err, backend.ErrNotDone) {
		t.Errorf("all refused: got %v", err)
	}
	if left := names(t, n, "intents/"); len(left) > 0 {
		t.Errorf("all refused: %q are left", left)
	}
}

// TestLateRecord comes when the snapshot was committed, by another attempt, and
// forgotten: it does not live again.
func TestLateRecord(t *testing.T) {
	n := newNetwork()
	r := testInit(t, n)
	keep, gone := commit(t, r, Snapshot{}, "kept"), commit(t, r, Snapshot{}, "only here")
	name := "snapshots/" + gone.ID.String()
	held := get(t, n.Mem, name)
	res, err := r.Forget(t.Context(), []ID{gone.ID})
	if err != nil || !slices.Equal(res.Hidden, []ID{gone.ID}) {
		t.Errorf("forgotten while it was young: %+v, %v", res, err)
	}
	live := func(when string, want ...ID) {
		t.Helper()
		n.arrive(t, name, held)
		snaps, err := testOpen(t, n).Snapshots(t.Context())
		var ids []ID
		for _, s := range snaps {
			ids = append(ids, s.ID)
		}
		if err != nil || !slices.Equal(ids, want) {
			t.Errorf("%s: snapshots %v, %v, want %v", when, ids, err, want)
		}
	}
	live("at once", keep.ID)
	if _, err := testOpen(t, n).Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	live("after prune", keep.ID)
	// Later nothing can come, and nothing is left.
	n.now = n.now.Add(2 * time.Hour)
	newer := commit(t, r, Snapshot{Time: start.Add(time.Hour)})
	if _, err := testOpen(t, n).Prune(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := append(names(t, n, name), names(t, n, "forgotten/")...); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	res, err = r.Forget(t.Context(), []ID{keep.ID, newer.ID})
	if err != nil || !slices.Equal(res.Removed, []ID{keep.ID}) || !slices.Equal(res.Hidden, []ID{newer.ID}) {
		t.Errorf("an old one and a young one: %+v, %v", res, err)
	}
}

// TestLatePack comes back when prune has removed it, by a Put that was sent twice:
// nobody leans on it, for there are indexes that deny it, and a Remove that was sent
// twice may follow.
func TestLatePack(t *testing.T) {
	n := newNetwork()
	r := testInit(t, n)
	rec := commit(t, r, Snapshot{}, "a chunk")
	held := map[string][]byte{}
	for _, name := range names(t, n, "packs/") {
		held[name] = get(t, n.Mem, name)
	}
	n.now = n.now.Add(2 * time.Hour) // for forget
	commit(t, r, Snapshot{Time: start.Add(time.Hour)})
	prune := func() {
		t.Helper()
		if _, err := testOpen(t, n).Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.Forget(t.Context(), []ID{rec.ID}); err != nil {
		t.Fatal(err)
	}
	prune()
	for name, p := range held {
		if len(names(t, n, name)) > 0 {
			delete(held, name) // of the tree that both have
			continue
		}
		n.arrive(t, name, p)
	}
	if len(held) == 0 {
		t.Fatal("prune has removed nothing")
	}
	w := testOpen(t, n)
	s := testBegin(t, w)
	if store(t, w, s, "a chunk") != 1 {
		t.Error("a pack that came back is leaned on")
	}
	s.Abort(t.Context())
	condemned := names(t, n, "condemned/")
	if len(condemned) == 0 {
		t.Error("the condemned record is gone while its packs may come back")
	}
	n.now = n.now.Add(2 * time.Hour)
	commit(t, testOpen(t, n), Snapshot{Time: start.Add(3 * time.Hour)}, "another")
	prune()
	for name := range held {
		if len(names(t, n, name)) > 0 {
			t.Errorf("%s came back and stays", name)
		}
	}
	for _, name := range condemned {
		if len(names(t, n, name)) > 0 {
			t.Errorf("%s is left", name)
		}
	}
}

// TestLateInit: what an Init put that was given up comes when another has made a
// repository there, or when there is none.
func TestLateInit(t *testing.T) {
	for _, prefix := range []string{"keys/", "config/"} {
		for round := range 8 { // of two keys the one with the lower ID is tried first
			n := newNetwork()
			var name string
			var held []byte
			n.answer = func(put string, p []byte) error {
				if !strings.HasPrefix(put, prefix) {
					return nil
				}
				name, held = put, bytes.Clone(p)
				return errLost
			}
			if _, err := Init(t.Context(), n, testParams(t), testOptions(t)); !errors.Is(err, errLost) {
				t.Fatalf("%s: got %v", prefix, err)
			}
			n.answer = nil
			if round%2 == 0 || prefix == "keys/" {
				testInit(t, n)
			}
			n.arrive(t, name, held)
			commit(t, testOpen(t, n), Snapshot{})
			if keys := names(t, n, "keys/"); prefix == "config/" && len(keys) != 1 {
				t.Errorf("keys %q", keys)
			}
		}
	}
}

// TestAddKeyLostAnswer is no failure: the key is there.
func TestAddKeyLostAnswer(t *testing.T) {
	n := newNetwork()
	r := testInit(t, n)
	n.answer = func(put string, p []byte) error {
		n.arrive(t, put, p)
		return errLost
	}
	id, err := r.AddKey(t.Context(), "hunter2", "")
	if err != nil || len(names(t, n, keyName(id))) != 1 {
		t.Errorf("got %v", err)
	}
}

// TestMarksUnfenced says two things at once where create-if-absent is not kept:
// both are heard.
func TestMarksUnfenced(t *testing.T) {
	in := testParams(t)
	in.NoFencing = true
	b := &meantime{careless: careless{backend.NewMem()}}
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rec := commit(t, r, Snapshot{})
	other := testOpen(t, b)
	b.before = func() {
		if err := other.AddMark(t.Context(), rec.ID, Mark{Op: MarkPin}); err != nil {
			t.Error(err)
		}
	}
	if err := r.AddMark(t.Context(), rec.ID, Mark{Op: MarkTag, Value: "weekly"}); err != nil {
		t.Fatal(err)
	}
	snaps, err := testOpen(t, b).Snapshots(t.Context())
	if err != nil || len(snaps) != 1 || !snaps[0].Pinned || !slices.Equal(snaps[0].Tags, []string{"weekly"}) {
		t.Errorf("got %+v, %v", snaps, err)
	}
}

// meantime calls before, once, between the look for a mark's name and its Put.
type meantime struct {
	careless
	before func()
}

func (m *meantime) Put(ctx context.Context, name string, p []byte) error {
	if before := m.before; before != nil && strings.HasPrefix(name, "marks/") {
		m.before = nil
		before()
	}
	return m.careless.Put(ctx, name, p)
}

func TestSettled(t *testing.T) {
	for _, tt := range []struct {
		put   time.Time
		after time.Duration
		late  time.Duration
		want  bool
	}{
		{start, 0, 0, true}, {start, -time.Hour, 0, true}, {start, time.Hour, time.Hour, false}, {start, time.Hour + 1, time.Hour, true},
		{time.Time{}, 0, 0, true}, {time.Time{}, 1 << 62, time.Hour, false}, {time.Unix(0, 0), 1 << 62, time.Hour, false},
	} {
		if got := settled(tt.put, tt.put.Add(tt.after), tt.late); got != tt.want {
			t.Errorf("%s, %s later, late by %s: got %v", tt.put, tt.after, tt.late, got)
		}
	}
}

// TestInitKeyUnclear: a first key of which nobody knows whether it came is put again,
// and is the only one.
func TestInitKeyUnclear(t *testing.T) {
	for _, done := range []bool{false, true} {
		n := newNetwork()
		lost := 0
		n.answer = func(name string, p []byte) error {
			if lost == 2 || !strings.HasPrefix(name, "keys/") {
				return nil
			}
			if lost++; done {
				n.arrive(t, name, p)
			}
			return errLost
		}
		var b backend.Backend = n
		if done {
			b = again(n)
		}
		testInit(t, b)
		keys := 0
		for info, err := range n.List(t.Context(), "keys/") {
			if err != nil {
				t.Fatal(err, info)
			}
			keys++
		}
		if lost == 0 || keys != 1 {
			t.Errorf("done %v: %d answers lost, %d keys", done, lost, keys)
		}
	}
}
