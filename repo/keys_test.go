package repo

import (
	"errors"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

// with opens the repository with a password and counts how often it is asked
// for.
func with(t testing.TB, b backend.Backend, password string) (*Repo, int, error) {
	opt := testOptions(t)
	asked := 0
	opt.Password = func() (string, error) { asked++; return password, nil }
	r, err := Open(t.Context(), b, opt)
	if err == nil {
		t.Cleanup(func() { r.Close() })
	}
	return r, asked, err
}

func TestKeys(t *testing.T) {
	b := backend.NewMem()
	in := testParams(t)
	in.Password = "one"
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.RemoveKey(t.Context(), r.key.String()); err == nil || len(names(t, b, "keys/")) != 1 {
		t.Error("the last key was removed")
	}
	if _, err := r.AddKey(t.Context(), "", ""); err == nil {
		t.Error("an empty password was taken")
	}
	two, err := r.AddKey(t.Context(), "two", "laptop")
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]error{"one": nil, "two": nil, "three": ErrKey, "": ErrKey} {
		_, asked, err := with(t, b, password)
		if !errors.Is(err, want) || asked != 1 {
			t.Errorf("password %q: %v, asked %d times", password, err, asked)
		}
	}
	if _, err := Open(t.Context(), b, testOptions(t)); !errors.Is(err, ErrKey) {
		t.Errorf("nobody to ask: %v", err)
	}
	refused := errors.New("no terminal")
	opt := testOptions(t)
	opt.Password = func() (string, error) { return "", refused }
	if _, err := Open(t.Context(), b, opt); !errors.Is(err, refused) {
		t.Errorf("nobody answers: %v", err)
	}
	list, err := r.Keys(t.Context())
	if err != nil || len(list) != 2 {
		t.Fatalf("keys %+v, %v", list, err)
	}
	for _, k := range list {
		if k.Current == (k.ID == two) || (k.ID == two) != (k.Label == "laptop") || k.KDF != "argon2id" {
			t.Errorf("key %+v", k)
		}
	}
	if _, err := r.RemoveKey(t.Context(), ""); err == nil {
		t.Error("no key at all fits an empty prefix")
	}
	if id, err := r.RemoveKey(t.Context(), two.String()[:8]); err != nil || id != two {
		t.Errorf("removed %s, %v", id, err)
	}
	if _, _, err := with(t, b, "two"); !errors.Is(err, ErrKey) {
		t.Errorf("removed password: %v", err)
	}
}

// TestDamagedKeys is no obstacle while another key opens, and is named when
// none does.
func TestDamagedKeys(t *testing.T) {
	b := backend.NewMem()
	r := testInit(t, b)
	open := keyName(r.key)
	second, err := r.AddKey(t.Context(), "two", "")
	if err != nil {
		t.Fatal(err)
	}
	whole := get(t, b, open)
	rotten := append([]byte(nil), whole...)
	rotten[100] ^= 4
	replace(t, b, open, rotten)
	if _, _, err := with(t, b, "two"); err != nil {
		t.Errorf("the other key is whole: %v", err)
	}
	if _, _, err := with(t, b, "three"); !errors.Is(err, ErrKey) || !errors.Is(err, chunk.ErrCorrupt) || !contains(err, open) {
		t.Errorf("wrong password beside a damaged key: %v", err)
	}
	replace(t, b, open, whole)
	p := get(t, b, keyName(second))
	p[len(p)-1] ^= 1
	replace(t, b, keyName(second), p)
	r = testOpen(t, b) // asks for no password
	if list, err := r.Keys(t.Context()); len(list) != 1 || !contains(err, second.String()) {
		t.Errorf("keys %+v, %v", list, err)
	}
	if _, err := r.RemoveKey(t.Context(), r.key.String()); err == nil {
		t.Error("the last key that opens was removed")
	}
	// A key under another's name is none.
	if err := b.Put(t.Context(), keyName(ID{1}), whole); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Keys(t.Context()); !contains(err, ID{1}.String()) {
		t.Errorf("a copied key: %v", err)
	}
}

// TestHostileKey bounds what a key file can make the program do.
func TestHostileKey(t *testing.T) {
	for _, f := range []keyFile{
		{KDF: "argon2id", Passes: 3, Memory: 1 << 31, Threads: 1}, {KDF: "argon2id", Passes: 1 << 20, Memory: 1024, Threads: 1},
		{KDF: "argon2id", Passes: 0, Memory: 1024, Threads: 1}, {KDF: "argon2id", Passes: 1, Memory: 1024}, {KDF: "md5", Passes: 1, Memory: 1, Threads: 1},
	} {
		if _, err := f.unwrap("x"); !errors.Is(err, ErrFormat) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	short := keyFile{KDF: "argon2id", Passes: 1, Memory: 64, Threads: 1, Ring: []byte("short")}
	if _, err := short.unwrap("x"); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("short ring: %v", err)
	}
}
