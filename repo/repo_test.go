package repo

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

func TestInitRefuses(t *testing.T) {
	b := backend.NewMem()
	testInit(t, b)
	if _, err := Init(t.Context(), b, testParams(t), testOptions(t)); !errors.Is(err, fs.ErrExist) || !contains(err, "repository already") {
		t.Errorf("a second time: %v", err)
	}
	other := backend.NewMem()
	if err := other.Put(t.Context(), "photos/holiday", []byte("mine")); err != nil {
		t.Fatal(err)
	}
	if _, err := Init(t.Context(), other, testParams(t), testOptions(t)); !errors.Is(err, fs.ErrExist) || !contains(err, "photos/holiday") {
		t.Errorf("not empty: %v", err)
	}
	for _, change := range []func(*InitOptions){
		func(o *InitOptions) { o.FrameSize = 100 }, func(o *InitOptions) { o.FrameSize = 1 << 30 },
		func(o *InitOptions) { o.PackSize = 1000 }, func(o *InitOptions) { o.PackSize = 1 << 40 },
		func(o *InitOptions) { o.Params.Kind = "dice" }, func(o *InitOptions) { o.Params.Avg = 3000 },
	} {
		b, in := backend.NewMem(), testParams(t)
		change(&in)
		if _, err := Init(t.Context(), b, in, testOptions(t)); err == nil {
			t.Errorf("%+v: no error", in)
		}
		if left := names(t, b, ""); len(left) > 0 {
			t.Errorf("%+v: %q are left", in, left)
		}
	}
}

// TestInitAfterInterruption begins where another Init was stopped between its
// key and its config.
func TestInitAfterInterruption(t *testing.T) {
	whole, b := backend.NewMem(), backend.NewMem()
	testInit(t, whole)
	left := names(t, whole, "keys/")[0]
	if err := b.Put(t.Context(), left, get(t, whole, left)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), b, testOptions(t)); !errors.Is(err, ErrNoRepo) {
		t.Errorf("half made: %v", err)
	}
	testInit(t, b)
	if keys := names(t, b, "keys/"); len(keys) != 1 || keys[0] == left {
		t.Errorf("keys %q, the interrupted one was %s", keys, left)
	}
	commit(t, testOpen(t, b), Snapshot{})
}

// TestInitRace makes one repository many times at once: one wins, and its key
// is the one that stays.
func TestInitRace(t *testing.T) {
	for round := range 20 {
		b := backend.NewMem()
		in := testParams(t)
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for range 4 {
			wg.Go(func() {
				r, err := Init(t.Context(), b, in, testOptions(t))
				if err != nil && !errors.Is(err, fs.ErrExist) {
					t.Error(err)
				}
				if err == nil {
					r.Close()
					mu.Lock()
					won++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if keys := names(t, b, "keys/"); won != 1 || len(keys) != 1 {
			t.Fatalf("round %d: %d made a repository, keys %q", round, won, keys)
		}
		testOpen(t, b)
	}
}

func TestInitLike(t *testing.T) {
	first := testInit(t, backend.NewMem())
	in := testParams(t)
	in.Like, in.Password = first, ""
	r, err := Init(t.Context(), backend.NewMem(), in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text := []byte("a chunk")
	if r.Config().Repo == first.Config().Repo {
		t.Error("two repositories of one ID")
	}
	if r.SecretKeys().Data.Sum(text) != first.SecretKeys().Data.Sum(text) || r.Config().Splitter != first.Config().Splitter {
		t.Error("chunks have other names or other cuts")
	}
}

func TestOpenNothing(t *testing.T) {
	if _, err := Open(t.Context(), backend.NewMem(), testOptions(t)); !errors.Is(err, ErrNoRepo) {
		t.Errorf("got %v", err)
	}
}

// newer returns an object as a program of the next version would write it.
func newer(p []byte) []byte {
	q := bytes.Clone(p[:len(p)-32])
	binary.LittleEndian.PutUint16(q[8:], seal.Version+1)
	d := chunk.Digest(q)
	return append(q, d[:]...)
}

// TestNewerFormat is told from damage, in every object that Open reads.
func TestNewerFormat(t *testing.T) {
	for _, prefix := range []string{"config/", "keys/", "snapshots/"} {
		b := backend.NewMem()
		r := testInit(t, b)
		commit(t, r, Snapshot{})
		name := names(t, b, prefix)[0]
		replace(t, b, name, newer(get(t, b, name)))
		again, err := Open(t.Context(), b, testOptions(t))
		if err == nil {
			_, err = again.Snapshots(t.Context())
			again.Close()
		}
		if !errors.Is(err, ErrFormat) || !contains(err, name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConfigOfTheFuture refuses a config whose body says so.
func TestConfigOfTheFuture(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	cfg := r.Config()
	cfg.V = 2
	put(t, r, r.SecretKeys(), "config/2", seal.KindConfig, seal.ForList, &cfg)
	if _, err := Open(t.Context(), b, testOptions(t)); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func TestHighestConfigWins(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	cfg := r.Config()
	for _, n := range []int{2, 10, 9} {
		cfg.PackSize = n << 20
		put(t, r, r.SecretKeys(), fmt.Sprintf("config/%d", n), seal.KindConfig, seal.ForList, &cfg)
	}
	if got := testOpen(t, b).Config().PackSize; got != 10<<20 {
		t.Errorf("pack size %d", got)
	}
}

// addWriter makes another writer known, who may use names that fit the glob,
// and returns its keys.
func addWriter(t testing.TB, r *Repo, glob string) *seal.Keys {
	t.Helper()
	seed := make([]byte, ed25519.SeedSize)
	if _, err := random.Read(seed); err != nil {
		t.Fatal(err)
	}
	ring := *r.SecretKeys().Ring()
	ring.Write = seed
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	put(t, r, r.SecretKeys(), "writers/"+k.Self().String()+"-1", seal.KindWriter, seal.ForList, Writer{V: 1, Public: public, Names: []string{glob}})
	return k
}

// TestWriters lets others sign snapshots of their own names, and nothing else.
func TestWriters(t *testing.T) {
	b := backend.NewMem()
	first := testInit(t, b)
	node := addWriter(t, first, "node*")
	r := testOpen(t, b)
	base := commit(t, r, Snapshot{})
	sign := func(k *seal.Keys, name string) ID {
		rec := *base
		rec.Name = name
		var err error
		if rec.ID, err = r.newID(); err != nil {
			t.Fatal(err)
		}
		put(t, r, k, "snapshots/"+rec.ID.String(), seal.KindSnapshot, seal.ForEpoch, &rec)
		return rec.ID
	}
	good := sign(node, "node7")
	bad := sign(node, "host")
	snaps, err := r.Snapshots(t.Context())
	if err != nil || len(snaps) != 2 || !slices.ContainsFunc(snaps, func(s *Snapshot) bool { return s.ID == good }) {
		t.Errorf("%d snapshots, %v; want the owner's and the node's own", len(snaps), err)
	}
	if _, err := r.record(t.Context(), bad); !errors.Is(err, ErrRefused) || errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("a record under another's name: %v", err)
	}
	if err := b.Remove(t.Context(), "snapshots/"+bad.String()); err != nil {
		t.Fatal(err)
	}
	// Nobody but the owner says who may write, or what the config is: the words
	// of others count for nothing, and verify names them.
	public := make([]byte, ed25519.PublicKeySize)
	forged := "writers/" + seal.WriterOf(public).String() + "-1"
	put(t, r, node, forged, seal.KindWriter, seal.ForList, Writer{V: 1, Public: public, Names: []string{"*"}})
	cfg := r.Config()
	cfg.PackSize = 1 << 20
	put(t, r, node, "config/2", seal.KindConfig, seal.ForList, &cfg)
	again := testOpen(t, b)
	if again.Config().PackSize == 1<<20 {
		t.Error("a writer changed the config")
	}
	if _, ok := again.writers[seal.WriterOf(public).String()]; ok {
		t.Error("a writer made a writer")
	}
}

// TestSnapshots lists what is alive: no tombstones, nothing forgotten, marks
// applied in order, damage named beside the rest.
func TestSnapshots(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	k := r.SecretKeys()
	a := commit(t, r, Snapshot{Label: "a", Tags: []string{"one"}})
	same := commit(t, r, Snapshot{Label: "same-time"})
	early := commit(t, r, Snapshot{Label: "early", Time: start.Add(-time.Hour)})
	gone := commit(t, r, Snapshot{Label: "gone"})
	rotten := commit(t, r, Snapshot{Label: "rotten"})
	put(t, r, k, "forgotten/"+gone.ID.String(), seal.KindForgotten, seal.ForList, Forgotten{V: 1, ID: gone.ID})
	dead, err := r.newID()
	if err != nil {
		t.Fatal(err)
	}
	put(t, r, k, "snapshots/"+dead.String(), seal.KindTombstone, seal.ForList, Tombstone{V: 1, ID: dead})
	for n, m := range map[int]Mark{
		10: {Op: "untag", Value: "two"}, 9: {Op: "tag", Value: "two"}, 1: {Op: "pin"}, 2: {Op: "untag", Value: "one"},
		3: {Op: "tag", Value: "three"}, 4: {Op: "from the future", Value: "x"}, 5: {Op: "expire", Until: start.Add(time.Hour)},
	} {
		m.V, m.ID = 1, a.ID
		put(t, r, k, fmt.Sprintf("marks/%s-%d", a.ID, n), seal.KindMark, seal.ForEpoch, m)
	}
	p := get(t, b, "snapshots/"+rotten.ID.String())
	p[len(p)/2] ^= 1
	replace(t, b, "snapshots/"+rotten.ID.String(), p)

	r = testOpen(t, b)
	for range 2 { // from the backend, and from memory
		snaps, err := r.Snapshots(t.Context())
		if !errors.Is(err, chunk.ErrCorrupt) || !contains(err, rotten.ID.String()) {
			t.Errorf("damaged record: %v", err)
		}
		var got []string
		for _, s := range snaps {
			got = append(got, s.Label+" "+s.Dir)
		}
		want := []string{"early 2026-03-01T11.00.00Z", "a 2026-03-01T12.00.00Z", "same-time 2026-03-01T12.00.00Z-2"}
		if a.ID.String() > same.ID.String() { // of one time the lower ID is first
			want[1], want[2] = "same-time 2026-03-01T12.00.00Z", "a 2026-03-01T12.00.00Z-2"
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		s, err := Find(snaps, a.ID.String())
		if err != nil || !slices.Equal(s.Tags, []string{"three"}) || !s.Pinned || !s.Expires.Equal(start.Add(time.Hour)) {
			t.Errorf("marks: %+v, %v", s, err)
		}
		snaps[0].Tags = append(snaps[0].Tags, "mine") // the caller's own
	}
	_ = early
}

func TestFindAndNames(t *testing.T) {
	at := func(name, label, dir string, id byte) *Snapshot {
		return &Snapshot{Name: name, Label: label, Dir: dir, ID: ID{id, id}}
	}
	snaps := []*Snapshot{
		at("web", "first", "2026-01-01T00.00.00Z", 0x11), at("db", "", "2026-01-02T00.00.00Z", 0x12), at("web", "", "2026-01-03T00.00.00Z", 0x21),
	}
	for arg, want := range map[string]int{
		"latest": 2, "web/latest": 2, "db/latest": 1, "web/first": 0, "web/2026-01-01T00.00.00Z": 0, "11": 0, "2": 2,
		strings.Repeat("12", 2) + strings.Repeat("00", 14): 1,
		"1": -1, "3": -1, "web": -1, "mail/latest": -1, "web/second": -1, "db/": -1, "": -1, "web/": -1,
	} {
		s, err := Find(snaps, arg)
		switch {
		case want >= 0 && (err != nil || s != snaps[want]):
			t.Errorf("%q: got %v, %v", arg, s, err)
		case want < 0 && err == nil:
			t.Errorf("%q: got %s, want an error", arg, s.ID)
		}
	}
	for name, ok := range map[string]bool{
		"web": true, "a.b_c-D9": true, "abc": true, "2026": true, "": false, ".": false, "..": false, "ids": false, "tags": false, "latest": false,
		"a/b": false, "a b": false, "deadbeef": false, "0123456789": false, strings.Repeat("n", 64): true, strings.Repeat("n", 65): false, "ä": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if s, p := SplitPath("web/latest:/a:b"); s != "web/latest" || p != "/a:b" {
		t.Errorf("got %q %q", s, p)
	}
}
