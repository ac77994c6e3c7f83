package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// plant puts a key that nobody signed.
func plant(t testing.TB, b backend.Backend, f keyFile) {
	t.Helper()
	body, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	name := keyName(f.ID)
	if err := errors.Join(b.Remove(t.Context(), name), b.Put(t.Context(), name, seal.SealClear(seal.KindKey, body))); err != nil {
		t.Fatal(err)
	}
}

// secretsIn names the keys that hold the repository's secrets for all to read.
func secretsIn(t testing.TB, b backend.Backend, r *Repo) (open []string) {
	t.Helper()
	list, err := json.Marshal(r.k.Ring().List)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, b, "keys/") {
		if f, err := parseKey(name, get(t, b, name)); err == nil && bytes.Contains(f.Ring, list) {
			open = append(open, name)
		}
	}
	return open
}

// TestPlantedOpenKey: who has only the storage puts a key there that needs no
// password, in a place of its own or in that of the key in use. Changing the mode
// gives every key its ring anew, and must not write it for all to read.
func TestPlantedOpenKey(t *testing.T) {
	save := func([]byte) error { return nil }
	for _, inPlace := range []bool{false, true} {
		for _, drop := range []bool{false, true} {
			t.Run(fmt.Sprintf("in the place of a key=%v drop=%v", inPlace, drop), func(t *testing.T) {
				b := backend.NewMem()
				twoPasswords(t, b)
				r, _, err := with(t, b, "one")
				if err != nil {
					t.Fatal(err)
				}
				id := sampleID(0xee)
				if inPlace {
					id = r.key
				}
				plant(t, b, keyFile{V: 1, ID: id, Created: start, KDF: "none", Ring: []byte("{}")})
				before := names(t, b, "")
				_, err = r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: save, DropKeys: drop})
				if drop != (err == nil) || !drop && (!contains(err, id.String()[:8]) || len(names(t, b, "")) != len(before)) {
					t.Errorf("with a planted key: %v", err)
				}
				if open := secretsIn(t, b, r); len(open) > 0 {
					t.Errorf("the secrets lie open in %v", open)
				}
				if drop && !inPlace {
					for _, password := range []string{"one", "two"} {
						if r, _, err := with(t, b, password); err != nil || r.ownerOnly("x") == nil {
							t.Errorf("%s: %v", password, err)
						}
					}
				}
			})
		}
	}
}

// TestOpenKeyStaysOpen: a repository without a password keeps its one key, also
// one that an older program did not sign.
func TestOpenKeyStaysOpen(t *testing.T) {
	for _, signed := range []bool{true, false} {
		b := backend.NewMem()
		r := testInit(t, b)
		if !signed {
			f, err := parseKey(keyName(r.key), get(t, b, keyName(r.key)))
			if err != nil {
				t.Fatal(err)
			}
			f.Public = nil
			plant(t, b, *f)
		}
		r = testOpen(t, b)
		changes, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: func([]byte) error { return nil }})
		if err != nil || len(changes) != 1 || changes[0].Dropped {
			t.Errorf("signed %v: %+v, %v", signed, changes, err)
		}
		if testOpen(t, b).ownerOnly("x") == nil {
			t.Errorf("signed %v: still the owner", signed)
		}
	}
}

// TestRemovedKeyPutBack: who had a password that was dropped, and a copy of the
// storage from before, puts its key back. Changing the mode gives it nothing.
func TestRemovedKeyPutBack(t *testing.T) {
	b := backend.NewMem()
	twoPasswords(t, b)
	two, _, err := with(t, b, "two")
	if err != nil {
		t.Fatal(err)
	}
	name := keyName(two.key)
	kept := get(t, b, name)
	r, _, err := with(t, b, "one")
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, r, two.key.String())
	if err := b.Put(t.Context(), name, kept); err != nil {
		t.Fatal(err)
	}
	var cred []byte
	changes, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: func(p []byte) error { cred = p; return nil }})
	if err != nil || len(changes) != 2 {
		t.Fatalf("%+v, %v", changes, err)
	}
	for _, c := range changes {
		if c.Dropped != (c.ID == two.key) {
			t.Errorf("%+v", c)
		}
	}
	if _, _, err := with(t, b, "two"); !errors.Is(err, ErrKey) {
		t.Errorf("the dropped password: %v", err)
	}
	if err := b.Put(t.Context(), name, kept); err != nil {
		t.Fatal(err)
	}
	if _, err := mustOpenAs(t, b, cred).SetAppendOnly(t.Context(), false, AppendOnlyOptions{}); err != nil {
		t.Fatal(err)
	}
	if r, _, err := with(t, b, "two"); err == nil && r.k.Opens(2) {
		t.Error("the dropped password opens what is new")
	}
	if r, _, err := with(t, b, "one"); err != nil || !r.k.Opens(2) {
		t.Errorf("the other one: %v", err)
	}
}

// TestLastKnownKey: a key that somebody has put there is no reason to let the
// only password go.
func TestLastKnownKey(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	plant(t, b, keyFile{V: 1, ID: sampleID(0xee), KDF: "argon2id", Passes: 1, Memory: 64, Threads: 1, Ring: make([]byte, 40)})
	if _, err := r.RemoveKey(t.Context(), r.key.String()); err == nil || len(names(t, b, "keys/")) != 2 {
		t.Error("the only key that opens was removed")
	}
	if _, err := r.RemoveKey(t.Context(), sampleID(0xee).String()); err != nil {
		t.Error(err)
	}
}

// TestKeyRole: a key's file says what its ring is for, and nobody signs that for
// who does not know the owner yet.
func TestKeyRole(t *testing.T) {
	b := backend.NewMem()
	r := twoPasswords(t, b)
	commit(t, r, Snapshot{})
	if _, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: func([]byte) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(t, b, "keys/") {
		f, err := parseKey(name, get(t, b, name))
		if err != nil {
			continue // a grant
		}
		f.Role = roleWriter
		plant(t, b, *f)
	}
	again, _, err := with(t, b, "one")
	if err != nil || again.WriteOnly() || count(t, again) != 1 {
		t.Errorf("the repository looks empty: %v", err)
	}
}

// TestKeyOrder: a key that takes minutes to try, or gigabytes to read, keeps
// nobody waiting who has another.
func TestKeyOrder(t *testing.T) {
	b := backend.NewMem()
	twoPasswords(t, b)
	plant(t, b, keyFile{V: 1, ID: ID{}, KDF: "argon2id", Passes: 64, Memory: 2 << 20, Threads: 1, Ring: make([]byte, 40)})
	large := keyName(sampleID(0xee))
	if err := b.Put(t.Context(), large, make([]byte, maxCredential+1)); err != nil {
		t.Fatal(err)
	}
	files, damaged, err := readKeys(t.Context(), b)
	if err != nil || len(files) != 3 || files[2].ID != (ID{}) || !errors.Is(damaged, chunk.ErrCorrupt) || !contains(damaged, large) {
		t.Fatalf("%d keys, %v, %v", len(files), damaged, err)
	}
	r, _, err := with(t, b, "one")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := r.Keys(t.Context()); len(list) != 3 || !contains(err, large) {
		t.Errorf("%d keys, %v", len(list), err)
	}
}
