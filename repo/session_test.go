package repo

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// TestProtocol watches a writer: each step of the protocol comes after the one
// before. Each of these orders, swapped, loses data.
func TestProtocol(t *testing.T) {
	mem := backend.NewMem()
	testInit(t, mem)
	rec := backendtest.NewRecorder(mem)
	r := testOpen(t, rec)
	rec.Reset()
	commit(t, r, Snapshot{}, "a chunk")
	var ops []string
	for _, op := range rec.Ops() {
		first, _, _ := strings.Cut(op.Name, "/")
		ops = append(ops, op.Verb+" "+first)
	}
	at := -1
	for _, step := range []string{
		"put intents", "list condemned", "list packs", "put packs", "put index", "put snapshots", "remove intents",
	} {
		i := slices.Index(ops, step)
		if i <= at {
			t.Fatalf("%q is not after what it must follow: %q", step, ops)
		}
		at = i
	}
	if lastOf(ops, "put packs") > slices.Index(ops, "put index") {
		t.Errorf("a pack came after the segment that should list it: %q", ops)
	}
}

// TestCondemnedPacks are not leaned on: what they hold is stored anew.
func TestCondemnedPacks(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	commit(t, r, Snapshot{}, "old chunk")
	s := testBegin(t, r)
	if n := store(t, r, s, "old chunk", "new chunk"); n != 1 {
		t.Errorf("%d chunks stored, want the new one only", n)
	}
	s.Abort(t.Context())
	var all []string
	for _, name := range names(t, b, "packs/") {
		n, _ := pack.ParseObject(name)
		all = append(all, n.String())
	}
	id, err := r.newID()
	if err != nil {
		t.Fatal(err)
	}
	put(t, r, r.SecretKeys(), "condemned/"+id.String(), seal.KindCondemned, seal.ForList, Condemned{V: 1, ID: id, Packs: all})
	s = testBegin(t, r)
	if n := store(t, r, s, "old chunk", "new chunk"); n != 2 {
		t.Errorf("%d chunks stored, want both: the others are condemned", n)
	}
	s.Abort(t.Context())
}

// TestVanishedPacks are not leaned on either, whatever the index says.
func TestVanishedPacks(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	commit(t, r, Snapshot{}, "old chunk")
	for _, name := range names(t, b, "packs/") {
		if err := b.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	s := testBegin(t, r)
	defer s.Abort(t.Context())
	if n := store(t, r, s, "old chunk"); n != 1 {
		t.Error("a chunk that is gone counts as stored")
	}
}

// TestDeclaredDead loses the race for its own name: it says so, and what it
// stored is adopted by the next.
func TestDeclaredDead(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	s := testBegin(t, r)
	store(t, r, s, "much work")
	put(t, r, r.SecretKeys(), "snapshots/"+s.ID.String(), seal.KindTombstone, seal.ForList, Tombstone{V: 1, ID: s.ID, Time: start})
	err := s.Commit(t.Context(), &Snapshot{Name: "host", Time: start, Tree: emptyTree(t, r, s)})
	if !errors.Is(err, ErrDead) {
		t.Fatalf("got %v", err)
	}
	if left := names(t, b, "intents/"); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	if snaps, err := r.Snapshots(t.Context()); err != nil || len(snaps) > 0 {
		t.Errorf("%d snapshots, %v", len(snaps), err)
	}
	again := testBegin(t, testOpen(t, b))
	defer again.Abort(t.Context())
	if n := store(t, r, again, "much work"); n != 0 {
		t.Error("what the dead one stored is stored again")
	}
}

// TestLostAnswer of the commit is no failure, nor does it lose the intent.
func TestLostAnswer(t *testing.T) {
	mem := backend.NewMem()
	testInit(t, mem)
	f := &losesCommit{Backend: mem}
	r := testOpen(t, f)
	commit(t, r, Snapshot{})
	if f.lost != 1 {
		t.Fatalf("%d answers were lost", f.lost)
	}
	if left := names(t, mem, "intents/"); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	// If nobody can tell whether it was committed, the intent must stay: a
	// pruner waits for it.
	f.blind = true
	s := testBegin(t, r)
	err := s.Commit(t.Context(), &Snapshot{Name: "host", Time: start, Tree: emptyTree(t, r, s)})
	if !contains(err, "unclear") {
		t.Errorf("got %v", err)
	}
	if left := names(t, mem, "intents/"); len(left) != 1 {
		t.Errorf("intents %q, want that of the unclear commit", left)
	}
}

// losesCommit stores records and says that it did not; blind it cannot read
// them either.
type losesCommit struct {
	backend.Backend
	lost  int
	blind bool
}

var errLost = errors.New("connection lost")

func (l *losesCommit) Put(ctx context.Context, name string, p []byte) error {
	err := l.Backend.Put(ctx, name, p)
	if err == nil && strings.HasPrefix(name, "snapshots/") {
		l.lost++
		return errLost
	}
	return err
}

func (l *losesCommit) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if l.blind && strings.HasPrefix(name, "snapshots/") {
		return nil, errLost
	}
	return l.Backend.Get(ctx, name, off, n)
}

// TestHeartbeats come while a session lives, and go with it.
func TestHeartbeats(t *testing.T) {
	b := backend.NewMem()
	testInit(t, b)
	opt := testOptions(t)
	opt.Heartbeat = time.Millisecond
	r, err := Open(t.Context(), b, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := testBegin(t, r)
	for deadline := time.Now().Add(10 * time.Second); len(names(t, b, intentName(s.ID)+".")) < 3; {
		if time.Now().After(deadline) {
			t.Fatal("no heartbeats")
		}
		time.Sleep(time.Millisecond)
	}
	s.Abort(t.Context())
	if left := names(t, b, "intents/"); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
}

// TestAbortKeepsTheWork for the next session, and makes no snapshot.
func TestAbortKeepsTheWork(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	s := testBegin(t, r)
	store(t, r, s, "work")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Abort(ctx) // Ctrl-C: tidying up is done all the same
	if left := names(t, b, "intents/"); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	if len(names(t, b, "snapshots/")) > 0 {
		t.Error("there is a record")
	}
	s = testBegin(t, r)
	defer s.Abort(t.Context())
	if n := store(t, r, s, "work"); n != 0 {
		t.Error("the work is done again")
	}
}

// TestAdoption takes packs without a segment, leaves damaged ones alone, and
// publishes what it took.
func TestAdoption(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	commit(t, r, Snapshot{}, "one")
	kept := names(t, b, "packs/")
	commit(t, r, Snapshot{}, "two")
	for _, name := range names(t, b, "index/") {
		if err := b.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names(t, b, "packs/") {
		if !slices.Contains(kept, name) {
			p := get(t, b, name)
			p[len(p)-200] ^= 1
			replace(t, b, name, p)
		}
	}
	r = testOpen(t, b)
	s := testBegin(t, r)
	if n := store(t, r, s, "one", "two"); n != 1 {
		t.Errorf("%d chunks stored, want the one whose pack is damaged", n)
	}
	if len(names(t, b, "index/")) == 0 {
		t.Error("what was adopted was not published")
	}
	s.Abort(t.Context())
	fresh := testOpen(t, b)
	if _, err := fresh.Index().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, err := fresh.Store().Data(t.Context(), r.SecretKeys().Data.Sum([]byte("one"))); err != nil || string(p) != "one" {
		t.Errorf("adopted chunk: %q, %v", p, err)
	}
}

func lastOf(list []string, s string) int {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == s {
			return i
		}
	}
	return -1
}
