package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// entry reads "3 ok chunks" or "4 bad hash": a day, a result, a depth.
func entry(t *testing.T, name pack.Name, s string) LedgerEntry {
	t.Helper()
	var at int
	var ok, depth string
	if _, err := fmt.Sscan(s, &at, &ok, &depth); err != nil {
		t.Fatal(err)
	}
	e := LedgerEntry{Pack: name.String(), Time: start.Add(time.Duration(at) * oneDay), Depth: depth, OK: ok == "ok"}
	if !e.OK {
		e.What = s
	}
	return e
}

func text(e LedgerEntry) string {
	ok := "ok"
	if !e.OK {
		ok = "bad"
	}
	return fmt.Sprintf("%d %s %s", int(e.Time.Sub(start)/oneDay), ok, e.Depth)
}

// TestWhatCounts puts entries in every order, each into a ledger of its own.
func TestWhatCounts(t *testing.T) {
	for _, tt := range []struct {
		all  string
		want string
	}{
		{"1 ok chunks", "1 ok chunks"},
		{"1 ok chunks, 2 ok chunks", "2 ok chunks"},
		{"1 ok chunks, 2 ok hash", "1 ok chunks"},                // deeper
		{"1 ok hash, 2 ok chunks", "2 ok chunks"},                //
		{"1 ok chunks, 2 bad hash", "2 bad hash"},                // newer damage hides all
		{"1 ok chunks, 2 bad frames, 3 ok hash", "2 bad frames"}, // not looked as deep
		{"2 bad frames, 3 ok frames", "3 ok frames"},
		{"1 bad chunks, 2 ok chunks", "2 ok chunks"},                          // whole again
		{"1 bad chunks, 2 bad hash, 3 ok hash", "1 bad chunks"},               // one of two is refuted
		{"1 ok chunks, 2 bad hash, 3 ok hash", "3 ok hash"},                   // what was before the damage is void
		{"1 ok chunks, 1 bad hash", "1 bad hash"},                             // of one moment
		{"1 ok chunks, 2 ok smell", "1 ok chunks"},                            // a depth of later
		{"1 bad smell, 2 ok frames", "1 bad smell"},                           //
		{"1 bad smell, 2 ok chunks", "2 ok chunks"},                           //
		{"1 bad hash, 2 ok hash, 3 bad hash, 4 ok chunks", "4 ok chunks"},     //
		{"5 bad hash, 1 bad chunks, 2 ok chunks, 6 ok frames", "6 ok frames"}, //
	} {
		parts := strings.Split(tt.all, ", ")
		for round := range len(parts) {
			b := backend.NewMem()
			r := testInit(t, b)
			name := pack.Name{1, 2, 3}
			for i := range parts {
				if err := r.addLedger(t.Context(), []LedgerEntry{entry(t, name, parts[(i+round)%len(parts)])}); err != nil {
					t.Fatal(err)
				}
			}
			got, err := r.Verified(t.Context())
			if err != nil || len(got) != 1 || text(got[name]) != tt.want {
				t.Errorf("%s, from the %d. on: %s, %v, want %s", tt.all, round, text(got[name]), err, tt.want)
			}
			// A merge changes nothing of it.
			if err := b.Put(t.Context(), name.Object(), []byte("x")); err != nil {
				t.Fatal(err)
			}
			forceMerge(t, r)
			again, err := r.Verified(t.Context())
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("%s, from the %d. on: merged %v, %v, was %v", tt.all, round, again, err, got)
			}
		}
	}
}

// forceMerge adds empty ledgers until they are merged.
func forceMerge(t *testing.T, r *Repo) {
	t.Helper()
	for i := range ledgerObjects + 1 {
		name := ID{0xff, byte(i)}
		put(t, r, r.SecretKeys(), "ledger/"+name.String(), seal.KindLedger, seal.ForList, Ledger{V: 1})
	}
	if err := r.mergeLedgers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := names(t, r.Backend(), "ledger/"); len(left) > 1 {
		t.Fatalf("%d ledgers are left", len(left))
	}
}

// TestLedgerOfOthers: only what the owner signed counts, and only what fits.
func TestLedgerOfOthers(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	node := addWriter(t, r, "node*")
	r = testOpen(t, b)
	name := pack.Name{1}
	good := entry(t, name, "1 ok chunks")
	ledger := func(e ...LedgerEntry) Ledger { return Ledger{V: 1, Entries: e} }
	put(t, r, r.SecretKeys(), "ledger/"+ID{1}.String(), seal.KindLedger, seal.ForList, ledger(good))
	put(t, r, node, "ledger/"+ID{2}.String(), seal.KindLedger, seal.ForList, ledger(entry(t, name, "2 bad chunks"), entry(t, pack.Name{2}, "2 ok chunks")))
	put(t, r, r.SecretKeys(), "ledger/"+ID{3}.String(), seal.KindMark, seal.ForList, ledger(entry(t, name, "3 bad chunks")))
	put(t, r, r.SecretKeys(), "ledger/"+ID{4}.String(), seal.KindLedger, seal.ForList, Ledger{V: 2, Entries: []LedgerEntry{entry(t, name, "4 bad chunks")}})
	if err := b.Put(t.Context(), "ledger/"+ID{5}.String(), []byte("junk")); err != nil {
		t.Fatal(err)
	}
	odd := ledger(LedgerEntry{}, LedgerEntry{Pack: "x", Time: start}, LedgerEntry{Pack: strings.Repeat("ä", 16), Time: start},
		LedgerEntry{Pack: strings.ToUpper(pack.Name{0xab}.String()), Time: start}, LedgerEntry{Pack: name.String()})
	put(t, r, r.SecretKeys(), "ledger/"+ID{6}.String(), seal.KindLedger, seal.ForList, odd)
	got, err := r.Verified(t.Context())
	if want := map[pack.Name]LedgerEntry{name: good}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	r.k = node
	if err := r.addLedger(t.Context(), []LedgerEntry{good}); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("a writer's ledger: %v", err)
	}
	before := names(t, b, "ledger/")
	if err := r.mergeLedgers(t.Context()); err != nil || !slices.Equal(slices.Sorted(slices.Values(names(t, b, "ledger/"))), slices.Sorted(slices.Values(before))) {
		t.Errorf("a writer merged: %v", err)
	}
}

// TestClockAhead: a verifier whose clock was ahead says the last word no longer
// than until the next one looks.
func TestClockAhead(t *testing.T) {
	b := backend.NewMem()
	now := start
	b.SetClock(func() time.Time { return now })
	r := testInit(t, b)
	name := pack.Name{1}
	if err := r.addLedger(t.Context(), []LedgerEntry{entry(t, name, "400 ok chunks")}); err != nil {
		t.Fatal(err)
	}
	now = start.Add(oneDay)
	if err := r.addLedger(t.Context(), []LedgerEntry{entry(t, name, "1 bad chunks")}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Verified(t.Context())
	if err != nil || got[name].OK {
		t.Errorf("%v, %v", got, err)
	}
}

// TestMergeDropsWhatIsGone, and removes no ledger that it has not read.
func TestMergeDropsWhatIsGone(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	var there, all []LedgerEntry
	for i := range 3 * ledgerSpare {
		name := pack.Name{1, byte(i), byte(i >> 8)}
		e := entry(t, name, "1 ok chunks")
		all = append(all, e)
		if i%100 == 0 {
			there = append(there, e)
			if err := b.Put(t.Context(), name.Object(), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	for part := range slices.Chunk(all, ledgerSpare) {
		if err := r.addLedger(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	late := entry(t, pack.Name{1}, "7 bad hash")
	r.b = &before{Backend: b, verb: "list", name: "packs/", do: func() {
		put(t, r, r.SecretKeys(), "ledger/"+ID{9}.String(), seal.KindLedger, seal.ForList, Ledger{V: 1, Entries: []LedgerEntry{late}})
	}}
	if err := r.mergeLedgers(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := names(t, b, "ledger/"); len(left) != 2 {
		t.Errorf("%q are left", left)
	}
	got, err := r.Verified(t.Context())
	if err != nil || len(got) != len(there) || text(got[pack.Name{1}]) != "7 bad hash" {
		t.Errorf("%d packs, want %d; %v, %v", len(got), len(there), got[pack.Name{1}], err)
	}
	for range 3 { // few that are of use stay as they are
		if err := r.mergeLedgers(t.Context()); err != nil || len(names(t, b, "ledger/")) != 2 {
			t.Errorf("%d ledgers, %v", len(names(t, b, "ledger/")), err)
		}
	}
}

// TestMergeInterrupted at each of its steps loses nothing.
func TestMergeInterrupted(t *testing.T) {
	for fail := range ledgerObjects + 5 {
		b := backend.NewMem()
		r := testInit(t, b)
		var want []string
		for i := range ledgerObjects + 1 {
			name := pack.Name{1, byte(i)}
			if err := errors.Join(b.Put(t.Context(), name.Object(), nil), r.addLedger(t.Context(), []LedgerEntry{entry(t, name, "1 ok chunks")})); err != nil {
				t.Fatal(err)
			}
			want = append(want, name.String())
		}
		r.b = &failing{Backend: b, left: fail}
		err := r.mergeLedgers(t.Context())
		r.b = b
		got, verr := r.Verified(t.Context())
		if verr != nil || len(got) != len(want) {
			t.Errorf("stopped after %d changes (%v): %d of %d packs are known, %v", fail, err, len(got), len(want), verr)
		}
		if (fail > ledgerObjects+1) != (err == nil) {
			t.Errorf("stopped after %d changes: %v", fail, err)
		}
	}
}

func TestCoverage(t *testing.T) {
	now := start.Add(100 * oneDay)
	packs, verified := map[pack.Name]int64{}, map[pack.Name]LedgerEntry{}
	for i, s := range []string{"100 ok chunks", "99 ok chunks", "93 ok chunks", "92 ok chunks", "70 ok chunks", "50 ok chunks", "9 ok chunks", "0 ok chunks",
		"100 ok frames", "101 ok chunks", "", "100 bad hash", "1 bad chunks"} {
		name := pack.Name{byte(i + 1)}
		packs[name] = 1 << i
		if s != "" {
			verified[name] = entry(t, name, s)
		}
	}
	verified[pack.Name{0xff}] = entry(t, pack.Name{0xff}, "1 ok chunks") // is no more
	c := coverage(packs, verified, now)
	var got []string
	for _, g := range c.Groups {
		got = append(got, fmt.Sprintf("%s %d %b", g.Name, g.Packs, g.Bytes))
	}
	want := []string{"1d 2 11", "7d 1 100", "30d 2 11000", "90d 1 100000", "older 2 11000000", "never 3 11100000000", "damaged 2 1100000000000"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if c.Packs != 13 || c.Bytes != 1<<13-1 || !c.Oldest.Equal(start) {
		t.Errorf("%d packs, %d bytes, oldest %s", c.Packs, c.Bytes, c.Oldest)
	}
	if c := coverage(nil, nil, now); c.Packs != 0 || !c.Oldest.IsZero() {
		t.Errorf("of nothing: %+v", c)
	}
}

// TestLedgerGone between listing and reading is no error.
func TestLedgerGone(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	if err := r.addLedger(t.Context(), []LedgerEntry{entry(t, pack.Name{1}, "1 ok chunks")}); err != nil {
		t.Fatal(err)
	}
	name := names(t, b, "ledger/")[0]
	r.b = &before{Backend: b, verb: "get", name: name, do: func() {
		if err := b.Remove(t.Context(), name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}}
	if got, err := r.Verified(t.Context()); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
