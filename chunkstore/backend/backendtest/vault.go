package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// lockSpan is how long the tests lock what they wait for.
const lockSpan = 3 * time.Second

// RunVault tests that what open returns keeps every sentence of backend.Vault's
// contract. open is called once a test and returns an empty Vault, whose clock is
// this machine's; what the tests leave in it is locked for some seconds.
func RunVault(t *testing.T, open func(t *testing.T) backend.Vault) {
	for _, tt := range []struct {
		name string
		f    func(t *testing.T, v backend.Vault)
	}{
		{"Lock", testLock},
		{"Thief", testThief},
		{"RemoveUnlocked", testRemoveUnlocked},
		{"NotThere", testVaultMissing},
		{"ListVersions", testListVersions},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := open(t) // it may set the environment, which nothing beside others may
			if err := v.Lockable(t.Context()); err != nil {
				t.Fatal(err)
			}
			tt.f(t, v)
		})
	}
}

// keptOf returns the versions of a name, without marks of removal, and how many
// of those there are.
func keptOf(t *testing.T, v backend.Vault, name string) (vs []backend.Version, marks int) {
	t.Helper()
	for x, err := range v.ListVersions(t.Context(), name, "") {
		switch {
		case err != nil:
			t.Fatal(err)
		case x.Name == name && x.Deleted:
			marks++
		case x.Name == name:
			vs = append(vs, x)
		}
	}
	return vs, marks
}

// refused fails unless err says that name is locked until then or a second later.
func refused(t *testing.T, err error, name string, until time.Time) {
	t.Helper()
	var l *backend.LockedError
	if !errors.As(err, &l) || !errors.Is(err, backend.ErrLocked) || backend.Transient(err) {
		t.Fatalf("removing %s: got %v, want that it is locked", name, err)
	}
	if l.Name != name || l.Until.Before(until) || l.Until.After(until.Add(time.Second)) {
		t.Errorf("removing %s: got %v, want that it is locked until %s", name, err, until)
	}
}

func testLock(t *testing.T, v backend.Vault) {
	const name = "packs/aa/x"
	until := time.Now().Add(lockSpan)
	locked := backend.Locked(v, func(n string) time.Time {
		if n == name {
			return until
		}
		return time.Time{}
	})
	if err := locked.Put(t.Context(), name, []byte("genuine")); err != nil {
		t.Fatal(err)
	}
	if err := v.PutLocked(t.Context(), name, []byte("other"), until); !errors.Is(err, fs.ErrExist) {
		t.Errorf("put again: got %v, want fs.ErrExist", err)
	}
	want(t, v, name, []byte("genuine"))
	vs, _ := keptOf(t, v, name)
	if len(vs) != 1 || !vs[0].Latest || vs[0].Size != 7 {
		t.Fatalf("got versions %+v, want one", vs)
	}
	until = until.Add(2 * time.Second)
	for _, u := range []time.Time{until, until.Add(-4 * time.Second), time.Now().Add(time.Second)} {
		if err := v.Lock(t.Context(), name, vs[0].ID, u); err != nil {
			t.Errorf("lock until %s: %v", u, err)
		}
	}
	for _, id := range []string{"", vs[0].ID} {
		if got, err := v.LockedUntil(t.Context(), name, id); err != nil || got.Before(until) || got.After(until.Add(time.Second)) {
			t.Errorf("locked until %s, %v; want %s", got, err, until)
		}
	}
	refused(t, v.RemoveVersion(t.Context(), name, vs[0].ID), name, until)
	refused(t, locked.Remove(t.Context(), name), name, until)
	if vs, marks := keptOf(t, v, name); len(vs) != 1 || marks != 0 {
		t.Errorf("after refused removals there are %d versions and %d marks, want one version", len(vs), marks)
	}
	want(t, locked, name, []byte("genuine"))
	time.Sleep(time.Until(until) + 2*time.Second)
	if err := locked.Remove(t.Context(), name); err != nil {
		t.Errorf("the lock has passed: %v", err)
	}
	if vs, marks := keptOf(t, v, name); len(vs)+marks != 0 {
		t.Errorf("after the removal there are %d versions and %d marks", len(vs), marks)
	}
	if err := locked.Remove(t.Context(), name); err != nil {
		t.Errorf("removed again: %v", err)
	}
}

// A thief with all rights but that of waiting.
func testThief(t *testing.T, v backend.Vault) {
	genuine, until := bytes.Repeat([]byte("genuine"), 100), time.Now().Add(3*lockSpan)
	fits := func(_ string, p []byte) bool { return bytes.Equal(p, genuine) }
	names := []string{"packs/aa/overwritten", "packs/aa/removed", "packs/aa/removed.1", "packs/bb/both", "packs/cc/untouched"}
	for _, name := range names {
		if err := v.PutLocked(t.Context(), name, genuine, until); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		for _, name := range []string{"packs/aa/overwritten", "packs/bb/both"} {
			if err := v.PutOver(t.Context(), name, []byte("garbage"), time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"packs/aa/removed", "packs/aa/removed.1", "packs/bb/both"} {
			if err := v.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := list(t, v, "packs/"); len(got) != 2 || got["packs/aa/overwritten"] != 7 {
		t.Errorf("after the thief the place shows %v", got)
	}
	for _, name := range names {
		refused(t, backend.Locked(v, nil).Remove(t.Context(), name), name, until)
	}
	for _, first := range []string{"get", "list"} {
		old := backend.Oldest(v, fits)
		if first == "list" {
			all := list(t, old, "packs/")
			if len(all) != len(names) {
				t.Errorf("listed %v, want %v", all, names)
			}
			for _, name := range names {
				if all[name] != int64(len(genuine)) {
					t.Errorf("%s is listed with %d bytes, want %d", name, all[name], len(genuine))
				}
			}
		}
		for _, name := range names {
			want(t, old, name, genuine)
			if p, err := old.Get(t.Context(), name, 7, 14); err != nil || string(p) != "genuinegenuine" {
				t.Errorf("get a range of %s: %q, %v", name, p, err)
			}
		}
		if _, err := old.Get(t.Context(), "packs/aa/remove", 0, -1); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("get what never was: %v", err)
		}
		for _, err := range []error{old.Put(t.Context(), "packs/dd/x", nil), old.Remove(t.Context(), names[0])} {
			if !errors.Is(err, backend.ErrOldest) || backend.Transient(err) {
				t.Errorf("writing: got %v, want backend.ErrOldest", err)
			}
		}
	}
	// Junk that was there first, and was removed, so that the name was free.
	if err := v.Put(t.Context(), "config/2", []byte("junk")); err != nil {
		t.Fatal(err)
	}
	if err := v.Remove(t.Context(), "config/2"); err != nil {
		t.Fatal(err)
	}
	// Not every store lets a name be created that is only marked as removed.
	if err := v.PutOver(t.Context(), "config/2", genuine, until); err != nil {
		t.Fatal(err)
	}
	want(t, backend.Oldest(v, fits), "config/2", genuine)
	want(t, backend.Oldest(v, func(string, []byte) bool { return false }), "config/2", []byte("junk"))
	time.Sleep(time.Until(until) + 2*time.Second)
	for _, name := range append(names, "config/2") {
		if err := backend.Locked(v, nil).Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	for x := range v.ListVersions(t.Context(), "", "") {
		t.Errorf("left is %+v", x)
	}
}

// What is not locked leaves nothing behind.
func testRemoveUnlocked(t *testing.T, v backend.Vault) {
	locked := backend.Locked(v, func(string) time.Time { return time.Time{} })
	for i := range 3 {
		put(t, locked, "intents/a", []byte{byte(i)})
		put(t, locked, "intents/a.1", []byte{byte(i)})
		if i == 1 { // another program, which knows nothing of versions
			if err := v.Remove(t.Context(), "intents/a"); err != nil {
				t.Fatal(err)
			}
		}
		if err := locked.Remove(t.Context(), "intents/a"); err != nil {
			t.Error(err)
		}
		want(t, locked, "intents/a.1", []byte{byte(i)})
		if err := locked.Remove(t.Context(), "intents/a.1"); err != nil {
			t.Error(err)
		}
		for x := range v.ListVersions(t.Context(), "intents/", "") {
			t.Errorf("left is %+v", x)
		}
	}
	// Of several versions one is locked: nothing is removed.
	put(t, locked, "marks/a", []byte("first"))
	until := time.Now().Add(3 * lockSpan)
	if err := v.PutOver(t.Context(), "marks/a", []byte("second"), until); err != nil {
		t.Fatal(err)
	}
	refused(t, locked.Remove(t.Context(), "marks/a"), "marks/a", until)
	if vs, marks := keptOf(t, v, "marks/a"); len(vs) != 2 || marks != 0 {
		t.Errorf("there are %d versions and %d marks, want two versions", len(vs), marks)
	}
	time.Sleep(time.Until(until) + 2*time.Second)
	if err := locked.Remove(t.Context(), "marks/a"); err != nil {
		t.Error(err)
	}
}

func testVaultMissing(t *testing.T, v backend.Vault) {
	put(t, v, "marks/open", []byte("x"))
	if until, err := v.LockedUntil(t.Context(), "marks/open", ""); err != nil || !until.IsZero() {
		t.Errorf("what is not locked is locked until %s, %v", until, err)
	}
	if err := v.Lock(t.Context(), "marks/none", "", time.Now().Add(time.Hour)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock what is not there: %v", err)
	}
	if _, err := v.LockedUntil(t.Context(), "marks/none", ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ask for the lock of what is not there: %v", err)
	}
	vs, _ := keptOf(t, v, "marks/open")
	for range 2 {
		if err := v.RemoveVersion(t.Context(), "marks/open", vs[0].ID); err != nil {
			t.Errorf("remove a version: %v", err)
		}
	}
	if _, err := v.GetVersion(t.Context(), "marks/open", vs[0].ID, 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get a version that is gone: %v", err)
	}
	if _, err := v.Get(t.Context(), "marks/open", 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get what is gone: %v", err)
	}
	// A lock that begins on what was open.
	put(t, v, "marks/later", []byte("x"))
	until := time.Now().Add(3 * lockSpan)
	if err := v.Lock(t.Context(), "marks/later", "", until); err != nil {
		t.Fatal(err)
	}
	refused(t, backend.Locked(v, nil).Remove(t.Context(), "marks/later"), "marks/later", until)
}

func testListVersions(t *testing.T, v backend.Vault) {
	locked := backend.Locked(v, func(string) time.Time { return time.Time{} })
	for i := range 12 {
		name := fmt.Sprintf("packs/%02d", i)
		for n := range 3 {
			if err := v.PutOver(t.Context(), name, make([]byte, n), time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := v.Remove(t.Context(), "packs/05"); err != nil {
		t.Fatal(err)
	}
	for _, after := range []string{"", "packs/04"} {
		sizes := map[string][]int64{}
		last := after
		for x, err := range v.ListVersions(t.Context(), "packs/", after) {
			if err != nil {
				t.Fatal(err)
			}
			if x.Deleted {
				if x.Name != "packs/05" || !x.Latest {
					t.Errorf("%+v is a mark of removal", x)
				}
				continue
			}
			if x.Name < last {
				t.Errorf("after %s comes %s", last, x.Name)
			}
			last = x.Name
			if x.Latest != (len(sizes[x.Name]) == 0 && x.Name != "packs/05") {
				t.Errorf("%+v: wrong about what is the latest", x)
			}
			sizes[x.Name] = append(sizes[x.Name], x.Size)
		}
		if want := 12; after == "" && len(sizes) != want || after != "" && len(sizes) != 7 {
			t.Errorf("behind %q are %d names", after, len(sizes))
		}
		for name, s := range sizes {
			if !slices.Equal(s, []int64{2, 1, 0}) {
				t.Errorf("the versions of %s have %v bytes, want the newest first: 2, 1, 0", name, s)
			}
		}
	}
	n := 0
	for s, err := range backend.Stacks(t.Context(), v, "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		n++
		if s.Versions != 3 || s.Oldest.Size != 0 || s.Shown {
			t.Errorf("%+v: want three versions, and an oldest that is empty and hidden", s)
		}
	}
	if n != 12 {
		t.Errorf("%d names, want 12", n)
	}
	for i := range 12 {
		if err := locked.Remove(t.Context(), fmt.Sprintf("packs/%02d", i)); err != nil {
			t.Error(err)
		}
	}
	for x := range v.ListVersions(t.Context(), "", "") {
		t.Errorf("left is %+v", x)
	}
}
