package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// cheapKey adds a password whose key derivation takes no time.
func cheapKey(t testing.TB, r *Repo, password string) {
	t.Helper()
	id, err := r.newID()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := json.Marshal(r.k.Ring())
	if err != nil {
		t.Fatal(err)
	}
	f := keyFile{V: 1, ID: id, Label: password, KDF: "argon2id", Salt: []byte("salt of " + password), Passes: 1, Memory: 64, Threads: 1, Epoch: r.k.Newest()}
	stretched, err := f.stretch(password)
	if err != nil {
		t.Fatal(err)
	}
	if f.Ring, err = f.lock(stretched, ring, random); err != nil {
		t.Fatal(err)
	}
	rec, err := f.recipient(stretched)
	if err != nil {
		t.Fatal(err)
	}
	f.Public = rec.Public()
	if err := f.setSpare(r.k, spareKey(stretched), random); err != nil {
		t.Fatal(err)
	}
	put(t, r, r.k, keyName(id), seal.KindKey, seal.Clear, f)
}

// twoPasswords makes a repository with the passwords one and two.
func twoPasswords(t testing.TB, b backend.Backend) *Repo {
	t.Helper()
	r := testInit(t, b)
	cheapKey(t, r, "one")
	cheapKey(t, r, "two")
	if err := b.Remove(t.Context(), keyName(r.key)); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestAppendOnly: the same passwords open, read and add, and are no owner; the
// credential is; and all of it can be taken back.
func TestAppendOnly(t *testing.T) {
	b := backend.NewMem()
	owner := twoPasswords(t, b)
	first := commit(t, owner, Snapshot{}, "a chunk")
	if _, err := owner.SetAppendOnly(t.Context(), true, AppendOnlyOptions{}); err == nil {
		t.Fatal("the owner's ring was kept nowhere")
	}
	if changes, err := owner.SetAppendOnly(t.Context(), true, AppendOnlyOptions{DryRun: true}); err != nil || len(changes) != 2 || len(names(t, b, "writers/")) != 0 {
		t.Fatalf("dry run: %+v, %v", changes, err)
	}
	var cred []byte
	changes, err := owner.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: func(p []byte) error { cred = p; return nil }})
	if err != nil || len(changes) != 2 {
		t.Fatalf("%+v, %v", changes, err)
	}
	var packer ID
	for _, password := range []string{"one", "two"} {
		r, _, err := with(t, b, password)
		if err != nil {
			t.Fatalf("%s: %v", password, err)
		}
		if !r.cfg.AppendOnly || len(r.k.Ring().Seed) != 0 || r.WriteOnly() {
			t.Errorf("%s: append-only %v, a seed of %d bytes", password, r.cfg.AppendOnly, len(r.k.Ring().Seed))
		}
		if got, err := r.store.Data(t.Context(), r.k.Data.Sum([]byte("a chunk"))); err != nil && r.Sync(t.Context()) != nil {
			t.Errorf("%s reads %q, %v", password, got, err)
		}
		s := commit(t, r, Snapshot{Name: "by-" + password}, "by "+password)
		packer = s.ID
		for what, err := range map[string]error{
			"forget": func() error { _, err := r.Forget(t.Context(), []ID{first.ID}); return err }(),
			"mark":   r.AddMark(t.Context(), first.ID, Mark{Op: MarkPin}),
			"writer": func() error {
				_, err := r.AddWriter(t.Context(), NewWriter{Names: []string{"*"}}, func([]byte) error { return nil })
				return err
			}(),
			"key":  func() error { _, err := r.AddKey(t.Context(), "x", ""); return err }(),
			"mode": func() error { _, err := r.SetAppendOnly(t.Context(), false, AppendOnlyOptions{}); return err }(),
		} {
			if !errors.Is(err, seal.ErrNoKey) {
				t.Errorf("%s: %s: %v", password, what, err)
			}
		}
	}
	if _, _, err := with(t, b, "three"); !errors.Is(err, ErrKey) {
		t.Errorf("another password: %v", err)
	}
	keeper := mustOpenAs(t, b, cred)
	if n := count(t, keeper); n != 3 {
		t.Errorf("%d snapshots", n)
	}
	// What the members stored is leaned on at once.
	s := testBegin(t, keeper)
	if known, err := s.Writer.Known(keeper.k.Data.Sum([]byte("by one"))); !known || err != nil {
		t.Errorf("the members are not trusted: %v", err)
	}
	s.Abort(t.Context())
	if _, err := keeper.AddKey(t.Context(), "three", ""); err != nil {
		t.Fatal(err)
	}
	r, _, err := with(t, b, "three")
	if err != nil || len(r.k.Ring().Seed) != 0 {
		t.Errorf("a new password is the owner's: %v", err)
	}
	if changes, err := keeper.SetAppendOnly(t.Context(), true, AppendOnlyOptions{}); err != nil || len(changes) != 0 {
		t.Errorf("once more: %+v, %v", changes, err)
	}
	if _, err := keeper.Forget(t.Context(), []ID{packer}); err != nil {
		t.Errorf("the owner forgets: %v", err)
	}
	if changes, err := keeper.SetAppendOnly(t.Context(), false, AppendOnlyOptions{}); err != nil || len(changes) != 3 {
		t.Fatalf("off: %+v, %v", changes, err)
	}
	for _, password := range []string{"one", "two", "three"} {
		r, _, err := with(t, b, password)
		if err != nil || r.cfg.AppendOnly || r.ownerOnly("x") != nil || count(t, r) != 2 {
			t.Errorf("%s: %v", password, err)
		}
	}
	res, err := keeper.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("damage: %s %v", d.Object, d.Err) })
	if err != nil || len(res.Refused) != 0 {
		t.Errorf("check: %v, %v", res.Refused, err)
	}
}

// TestAppendOnlyInterrupted stops at every Put and Remove: some key opens at any
// time with each password, and going on with the credential ends it.
func TestAppendOnlyInterrupted(t *testing.T) {
	for stop := 0; ; stop++ {
		mem := backend.NewMem()
		twoPasswords(t, mem)
		b := &stopping{Backend: mem, left: stop}
		owner, _, err := with(t, b, "one")
		if err != nil {
			t.Fatal(err)
		}
		var cred []byte
		_, err = owner.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: func(p []byte) error { cred = p; return nil }})
		for _, password := range []string{"one", "two"} {
			if _, _, err := with(t, mem, password); err != nil {
				t.Fatalf("stopped after %d: %s: %v", stop, password, err)
			}
		}
		done := err == nil
		if _, err := mustOpenAs(t, mem, cred).SetAppendOnly(t.Context(), true, AppendOnlyOptions{}); err != nil {
			t.Fatalf("stopped after %d: going on: %v", stop, err)
		}
		for _, password := range []string{"one", "two"} {
			r, _, err := with(t, mem, password)
			if err != nil || !r.cfg.AppendOnly || len(r.k.Ring().Seed) != 0 {
				t.Fatalf("stopped after %d: %s: %v", stop, password, err)
			}
		}
		for _, name := range names(t, mem, "keys/") {
			if f, err := parseKey(name, get(t, mem, name)); err == nil && f.Role != roleMember {
				t.Errorf("stopped after %d: %s is the owner's", stop, name)
			}
		}
		if done {
			if stop < 6 {
				t.Errorf("it took %d changes only", stop)
			}
			return
		}
	}
}

var errStopped = errors.New("stopped")

// stopping fails all changes but the first ones.
type stopping struct {
	backend.Backend
	left int
}

func (s *stopping) change() error {
	if s.left == 0 {
		return errStopped
	}
	s.left--
	return nil
}

func (s *stopping) Put(ctx context.Context, name string, p []byte) error {
	if err := s.change(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return s.Backend.Put(ctx, name, p)
}

func (s *stopping) Remove(ctx context.Context, name string) error {
	if err := s.change(); err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return s.Backend.Remove(ctx, name)
}

// TestPlantedGivenKey: who has only the storage, and so a key's public half and
// salt, cannot make a key that the password opens.
func TestPlantedGivenKey(t *testing.T) {
	b := backend.NewMem()
	r := twoPasswords(t, b)
	theirs := backend.NewMem()
	attacker := testInit(t, theirs)
	for _, name := range names(t, b, "keys/") {
		f, err := parseKey(name, get(t, b, name))
		if err != nil {
			t.Fatal(err)
		}
		evil := *f
		evil.KDF = kdfGiven
		if evil.Ring, err = seal.SealTo(f.Public, name, []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
		if _, err := evil.unwrap("one"); !errors.Is(err, ErrKey) {
			t.Errorf("sealed for the public half: %v", err)
		}
		if evil.Ring, err = evil.lock(chunk.Derive("guess"), []byte(`{}`), random); err != nil {
			t.Fatal(err)
		}
		if _, err := evil.unwrap("one"); !errors.Is(err, ErrKey) {
			t.Errorf("sealed with a guess: %v", err)
		}
		if _, err := f.spare(attacker.k); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("another's seed opens the spare key: %v", err)
		}
		spare, err := f.spare(r.k)
		if err != nil || spare == ([32]byte{}) {
			t.Errorf("the owner's spare key: %v", err)
		}
	}
}

// TestOlderKeys: a key that no owner's signature vouches for is changed with its
// password, if that is the one in use, and else only dropped.
func TestOlderKeys(t *testing.T) {
	b := backend.NewMem()
	twoPasswords(t, b)
	for _, name := range names(t, b, "keys/") {
		f, err := parseKey(name, get(t, b, name))
		if err != nil {
			t.Fatal(err)
		}
		f.Public, f.Spare, f.Epoch = nil, nil, 0
		body, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, b, name, seal.SealClear(seal.KindKey, body))
	}
	save := func([]byte) error { return nil }
	r, _, err := with(t, b, "one")
	if err != nil {
		t.Fatal(err)
	}
	before := names(t, b, "")
	if _, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: save}); err == nil || len(names(t, b, "")) != len(before) {
		t.Errorf("a key that nobody can change: %v", err)
	}
	changes, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Save: save, DropKeys: true})
	if err != nil || len(changes) != 2 || changes[0].Dropped == changes[1].Dropped {
		t.Fatalf("%+v, %v", changes, err)
	}
	if r, _, err := with(t, b, "one"); err != nil || r.ownerOnly("x") == nil {
		t.Errorf("one: %v", err)
	}
	if _, _, err := with(t, b, "two"); !errors.Is(err, ErrKey) {
		t.Errorf("two was to be dropped: %v", err)
	}
}

// TestFrozenGivenKey opens a key that was put in another one's place when the
// format was made. The file never changes.
func TestFrozenGivenKey(t *testing.T) {
	full := frozenRing(t)
	k, err := full.Open()
	if err != nil {
		t.Fatal(err)
	}
	f := keyFile{V: 1, ID: sampleID(5), Created: sampleTime(1), Label: "label", Role: roleMember, KDF: kdfGiven, Salt: bytes.Repeat([]byte{8}, 32), Passes: 1, Memory: 64, Threads: 1}
	stretched, err := f.stretch("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	rec, err := f.recipient(stretched)
	if err != nil {
		t.Fatal(err)
	}
	want := writeOnlyRing(full, membersSeed(full, 0))
	p := frozen(t, "v1-key-given.bin", func() []byte {
		rng := rand.NewChaCha8([32]byte{6})
		plain, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		f.Public = rec.Public()
		if f.Ring, err = f.lock(spareKey(stretched), plain, rng); err != nil {
			t.Fatal(err)
		}
		if err := f.setSpare(k, spareKey(stretched), rng); err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.Seal(keyName(f.ID), seal.KindKey, seal.Clear, body, rng)
		if err != nil {
			t.Fatal(err)
		}
		return p
	})
	got, err := parseKey(keyName(f.ID), p)
	if err != nil {
		t.Fatal(err)
	}
	if ring, err := got.unwrap("correct horse"); err != nil || !reflect.DeepEqual(ring, want) {
		t.Errorf("another ring: %v", err)
	}
	if _, err := got.unwrap("wrong"); !errors.Is(err, ErrKey) {
		t.Errorf("a wrong password: %v", err)
	}
	if spare, err := got.spare(k); err != nil || spare != spareKey(stretched) {
		t.Errorf("another spare key: %v", err)
	}
	if !bytes.Equal(got.Public, rec.Public()) || got.Role != roleMember || k.Open(keyName(f.ID), got.object) != nil {
		t.Errorf("%+v", got)
	}
}
