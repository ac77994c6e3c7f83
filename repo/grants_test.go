package repo

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// TestFrozenGrant opens a key and what it was given, as they were made when key
// grants were new. The files never change.
func TestFrozenGrant(t *testing.T) {
	ring := frozenRing(t)
	ring.Repo = sampleID(0xab).String()
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	id, password := sampleID(3), "correct horse \u00e9"
	r := &Repo{k: k, opt: testOptions(t), grants: map[string]bool{}, b: backend.NewMem()}
	older := *ring
	older.Epochs = ring.Epochs[:1]
	file := frozen(t, "v1-key-public.bin", func() []byte {
		ko, err := older.Open()
		if err != nil {
			t.Fatal(err)
		}
		p, _, err := newKey(ko, &older, id, password, "label", sampleTime(1), random)
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
	if err := r.b.Put(t.Context(), keyName(id), file); err != nil {
		t.Fatal(err)
	}
	f, err := parseKey(keyName(id), file)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ownersKey(f); err != nil || f.Epoch != ring.Epochs[0].N {
		t.Errorf("%+v: %v", f, err)
	}
	u := unlockKey(t, r.b, id, password)
	if string(u.recipient.Public()) != string(f.Public) {
		t.Error("the password comes to another key pair")
	}
	grant := frozen(t, "v1-key-grant.bin", func() []byte {
		_, p, err := r.sealGrant(keyOwner{id, f.Public, f.Label}, ring.Epochs)
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
	newest := ring.Epochs[len(ring.Epochs)-1].N
	if err := r.b.Put(t.Context(), grantName(id, newest), grant); err != nil {
		t.Fatal(err)
	}
	if r.k, err = u.ring.Open(); err != nil || r.k.Opens(newest) {
		t.Fatalf("%v, epoch %d opens already", err, newest)
	}
	r.use(t.Context(), u)
	if !r.k.Opens(newest) {
		t.Error("the grant does not open")
	}
}

// TestRotateBesideSpare: who has a dropped password's ring, and so the owner's
// seed, opens the spare keys of all passwords. No later epoch may lie under one:
// not after the owner puts other rings into the keys, in or out of append-only
// mode.
func TestRotateBesideSpare(t *testing.T) {
	b := backend.NewMem()
	twoPasswords(t, b)
	r, _, err := with(t, b, "one")
	if err != nil {
		t.Fatal(err)
	}
	leaked, err := r.k.Ring().Open()
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, r)
	var cred []byte
	if _, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: func(p []byte) error { cred = p; return nil }}); err != nil {
		t.Fatal(err)
	}
	search := func(when string) {
		t.Helper()
		spares := 0
		for _, name := range names(t, b, "keys/") {
			if _, _, grant := grantID(name); grant {
				continue
			}
			f, err := parseKey(name, get(t, b, name))
			if err != nil {
				t.Fatal(err)
			}
			spare, err := f.spare(leaked)
			if err != nil {
				t.Fatal(err)
			}
			p, err := f.openBox(spare, f.Ring)
			if errors.Is(err, ErrKey) {
				continue
			}
			spares++
			ring := &seal.Ring{}
			if err := json.Unmarshal(p, ring); err != nil {
				t.Fatal(err)
			}
			for _, e := range ring.Epochs {
				if e.N > 1 && len(e.Private) > 0 {
					t.Errorf("%s: %s gives epoch %d to who has an old ring", when, name, e.N)
				}
			}
		}
		if spares == 0 {
			t.Errorf("%s: no key was opened: the test is broken", when)
		}
	}
	search("in append-only mode")
	commit(t, mustOpenAs(t, b, cred), Snapshot{Name: "second"}, "text")
	two, _, err := with(t, b, "two")
	if err != nil {
		t.Fatal(err)
	}
	wantReads(t, "in append-only mode", two, 1, "text")
	keeper := mustOpenAs(t, b, cred)
	if res := rotate(t, keeper); len(res.Granted) != 3 || len(res.Left) > 0 {
		t.Errorf("rotated with the owner's credential: %+v", res)
	}
	commit(t, keeper, Snapshot{Name: "third"}, "more")
	wantReads(t, "rotated in append-only mode", two, 2, "text", "more")
	if len(two.k.Ring().Seed) > 0 {
		t.Error("a rotation gave the owner's seed")
	}
	keeper = mustOpenAs(t, b, cred)
	wantReads(t, "the credential", keeper, 2, "text", "more")
	if _, err := keeper.SetAppendOnly(t.Context(), false, AppendOnlyOptions{}); err != nil {
		t.Fatal(err)
	}
	search("out of it")
	if two, _, err = with(t, b, "two"); err != nil {
		t.Fatal(err)
	}
	wantReads(t, "out of append-only mode", two, 2, "text", "more")
}
