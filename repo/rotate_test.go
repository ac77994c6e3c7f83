package repo

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// oldKey puts a key as programs made it before key grants were: unsigned, without
// a public half.
func oldKey(t testing.TB, b backend.Backend, ring *seal.Ring, password string) ID {
	t.Helper()
	id, err := newID(random)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(ring)
	if err != nil {
		t.Fatal(err)
	}
	f := keyFile{V: 1, ID: id, Created: start, Label: "old", KDF: "argon2id", Salt: make([]byte, 32), Passes: 1, Memory: 64, Threads: 1}
	stretched, err := f.stretch(password)
	if err != nil {
		t.Fatal(err)
	}
	if f.Ring, err = f.lock(stretched, plain, random); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), keyName(id), seal.SealClear(seal.KindKey, body)); err != nil {
		t.Fatal(err)
	}
	return id
}

// unlockKey opens one key of a repository, without the others.
func unlockKey(t testing.TB, b backend.Backend, id ID, password string) *unlocked {
	t.Helper()
	f, err := parseKey(keyName(id), get(t, b, keyName(id)))
	if err != nil {
		t.Fatal(err)
	}
	u, err := f.unlock(func() ([32]byte, error) { return f.stretch(password) })
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// as opens a repository with a key that was unlocked before: argon2id is slow.
func as(t testing.TB, b backend.Backend, u *unlocked) *Repo {
	t.Helper()
	k, err := u.ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	r, err := open(t.Context(), b, k, u.id, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	r.use(t.Context(), u)
	t.Cleanup(func() { r.Close() })
	return r
}

// copyOf copies a repository.
func copyOf(t testing.TB, b backend.Backend) *backend.Mem {
	t.Helper()
	c := backend.NewMem()
	for _, name := range names(t, b, "") {
		if err := c.Put(t.Context(), name, get(t, b, name)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// keyed is a repository with two passwords, and a key of an older program.
type keyed struct {
	b             *backend.Mem
	one, two, old *unlocked
}

func newKeyed(t testing.TB) *keyed {
	t.Helper()
	b := backend.NewMem()
	in := testParams(t)
	in.Password = "one"
	r, err := Init(t.Context(), b, in, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	id, err := r.AddKey(t.Context(), "two", "laptop")
	if err != nil {
		t.Fatal(err)
	}
	old := oldKey(t, b, r.k.Ring(), "old")
	commit(t, r, Snapshot{Name: "first"}, "a chunk of the first")
	return &keyed{b, r.me, unlockKey(t, b, id, "two"), unlockKey(t, b, old, "old")}
}

func rotate(t testing.TB, r *Repo, drop ...string) RotateResult {
	t.Helper()
	res, err := r.RotateKeys(t.Context(), RotateOptions{Drop: drop})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func ids(infos []KeyInfo) (list []ID) {
	for _, i := range infos {
		list = append(list, i.ID)
	}
	slices.SortFunc(list, func(a, b ID) int { return strings.Compare(a.String(), b.String()) })
	return list
}

func sameIDs(a []KeyInfo, b ...ID) bool {
	var want []KeyInfo
	for _, id := range b {
		want = append(want, KeyInfo{ID: id})
	}
	return slices.Equal(ids(a), ids(want))
}

// wantReads checks that all n snapshots, and a chunk of each name, can be read.
func wantReads(t testing.TB, what string, r *Repo, n int, texts ...string) {
	t.Helper()
	snaps, err := r.Snapshots(t.Context())
	if err != nil || len(snaps) != n {
		t.Errorf("%s: reads %d snapshots, want %d: %v", what, len(snaps), n, err)
	}
	for _, s := range snaps {
		if _, err := r.Store().Page(t.Context(), s.Tree.ID); err != nil {
			t.Errorf("%s: the tree of %s: %v", what, s.Name, err)
		}
	}
	for _, text := range texts {
		if got, err := r.Store().Data(t.Context(), r.k.Data.Sum([]byte(text))); err != nil || string(got) != text {
			t.Errorf("%s: %q: %q, %v", what, text, got, err)
		}
	}
}

func damageIn(t testing.TB, r *Repo) (found []error) {
	t.Helper()
	if _, err := r.Check(t.Context(), CheckOptions{}, func(d Damage) { found = append(found, d.Err) }); err != nil {
		t.Fatal(err)
	}
	return found
}

func epochOf(t testing.TB, r *Repo, s *Snapshot) uint32 {
	t.Helper()
	n, err := r.epochOf(t.Context(), "snapshots/"+s.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRotate(t *testing.T) {
	s := newKeyed(t)
	running, blind := as(t, s.b, s.two), as(t, s.b, s.old)
	r := as(t, s.b, s.one)
	if _, err := r.RotateKeys(t.Context(), RotateOptions{DryRun: true}); err != nil || len(names(t, s.b, "config/")) != 1 || len(names(t, s.b, "keys/")) != 3 {
		t.Errorf("a dry run changed something: %v", err)
	}
	files := map[string]string{}
	for _, name := range names(t, s.b, "keys/") {
		files[name] = string(get(t, s.b, name))
	}
	res := rotate(t, r)
	if res.Epoch != 2 || !sameIDs(res.Granted, s.one.id, s.two.id) || !sameIDs(res.Left, s.old.id) || res.Damaged != nil || len(res.Dropped) > 0 {
		t.Errorf("%+v", res)
	}
	for name, was := range files {
		if string(get(t, s.b, name)) != was {
			t.Errorf("%s was changed", name)
		}
	}
	if got := epochOf(t, r, commit(t, r, Snapshot{Name: "second"}, "a chunk of the second")); got != 2 {
		t.Errorf("who rotated seals for epoch %d", got)
	}
	all := []string{"a chunk of the first", "a chunk of the second"}
	// A process that was running learns what it needs, to read and to write.
	wantReads(t, "a running process", running, 2, all...)
	wantReads(t, "one that is opened now", as(t, s.b, s.two), 2, all...)
	if got := epochOf(t, r, commit(t, as(t, s.b, s.old), Snapshot{Name: "third"})); got != 2 {
		t.Errorf("an older key seals for epoch %d", got)
	}
	for _, k := range []*Repo{blind, as(t, s.b, s.old)} {
		if snaps, err := k.Snapshots(t.Context()); len(snaps) != 1 || !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("a key that was left: %d snapshots, %v", len(snaps), err)
		}
		if _, err := k.RotateKeys(t.Context(), RotateOptions{}); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("who lacks an epoch rotates: %v", err)
		}
		if _, err := k.AddKey(t.Context(), "x", ""); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("who lacks an epoch adds keys: %v", err)
		}
	}
	// Its password is added anew, and opens all, whichever key is tried first.
	if _, err := r.AddKey(t.Context(), "old", ""); err != nil {
		t.Fatal(err)
	}
	again, asked, err := with(t, s.b, "old")
	if err != nil || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	wantReads(t, "a password that was added anew", again, 3, all...)
	if res := rotate(t, again); res.Epoch != 3 || len(res.Granted) != 3 {
		t.Errorf("rotated again: %+v", res)
	}
	commit(t, again, Snapshot{Name: "fourth"}, "a chunk of the fourth")
	fresh, _, err := with(t, s.b, "two")
	if err != nil {
		t.Fatal(err)
	}
	wantReads(t, "two epochs later", fresh, 4, append(all, "a chunk of the fourth")...)
	list, err := fresh.Keys(t.Context())
	if err != nil || len(list) != 4 {
		t.Fatalf("%d keys, %v", len(list), err)
	}
	for _, k := range list {
		if k.ID == s.old.id != (k.Epoch == 0) || k.ID != s.old.id && (k.Epoch != 3 || k.Granted.IsZero()) {
			t.Errorf("%+v", k)
		}
	}
	if found := damageIn(t, fresh); len(found) > 0 {
		t.Errorf("check: %v", found)
	}
}

// TestRotateOldest: a repository whose only key is of an older program, with and
// without a password, is not lost to who rotates.
func TestRotateOldest(t *testing.T) {
	for _, password := range []string{"old", ""} {
		b := backend.NewMem()
		r := testInit(t, b)
		first := keyName(r.key)
		var id ID
		if password != "" {
			id = oldKey(t, b, r.k.Ring(), password)
		} else {
			id, _ = newID(random)
			plain, _ := json.Marshal(r.k.Ring())
			body, _ := json.Marshal(keyFile{V: 1, ID: id, Created: start, KDF: "none", Ring: plain})
			if err := b.Put(t.Context(), keyName(id), seal.SealClear(seal.KindKey, body)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Remove(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		r = as(t, b, unlockKey(t, b, id, password))
		if res := rotate(t, r); !sameIDs(res.Granted, id) {
			t.Errorf("%+v", res)
		}
		commit(t, r, Snapshot{Name: "second"}, "text")
		wantReads(t, "an older key", as(t, b, unlockKey(t, b, id, password)), 1, "text")
		if res := rotate(t, as(t, b, unlockKey(t, b, id, password))); res.Epoch != 3 {
			t.Errorf("again: %+v", res)
		}
	}
}

// TestRotateDrop: who has a dropped password, and all that lay in the storage at
// any time, does not open what comes later.
func TestRotateDrop(t *testing.T) {
	s := newKeyed(t)
	r := as(t, s.b, s.one)
	if _, err := r.RotateKeys(t.Context(), RotateOptions{Drop: []string{s.one.id.String()}}); !contains(err, "being used") {
		t.Errorf("dropped the key that is used: %v", err)
	}
	if _, err := r.RotateKeys(t.Context(), RotateOptions{Drop: []string{"xyz"}}); !contains(err, "cutbank key list") {
		t.Errorf("dropped what is not there: %v", err)
	}
	file := get(t, s.b, keyName(s.two.id))
	thief := as(t, s.b, s.two)
	res := rotate(t, r, s.two.id.String()[:8], s.old.id.String())
	if !sameIDs(res.Dropped, s.two.id, s.old.id) || !sameIDs(res.Granted, s.one.id) || len(res.Left) > 0 {
		t.Errorf("%+v", res)
	}
	commit(t, r, Snapshot{Name: "second"}, "secret")
	if n := names(t, s.b, "keys/"); len(n) != 2 {
		t.Errorf("left in keys/: %v", n)
	}
	// It is put back, and gets nothing from the next rotation either.
	if err := s.b.Put(t.Context(), keyName(s.two.id), file); err != nil {
		t.Fatal(err)
	}
	if res := rotate(t, r); !sameIDs(res.Left, s.two.id) {
		t.Errorf("a key that was put back: %+v", res)
	}
	for _, k := range []*Repo{thief, as(t, s.b, s.two)} {
		if snaps, err := k.Snapshots(t.Context()); len(snaps) != 1 || !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("a dropped key reads %d snapshots, %v", len(snaps), err)
		}
		if _, err := k.Store().Data(t.Context(), k.k.Data.Sum([]byte("secret"))); !errors.Is(err, seal.ErrNoKey) {
			t.Errorf("a dropped key reads: %v", err)
		}
	}
}

// TestRotateFaults lets each call fail, before and after it is done, and crashes
// behind each Put. After any of it every key opens whatever anybody stores, and
// rotating can be repeated.
func TestRotateFaults(t *testing.T) {
	s := newKeyed(t)
	do := func(what string, faults backendtest.Faults) (calls int, err error) {
		b := copyOf(t, s.b)
		f := backendtest.NewFaulty(b, backendtest.Faults{})
		r := as(t, f, s.one)
		f.Set(faults)
		_, err = r.RotateKeys(t.Context(), RotateOptions{Drop: []string{s.old.id.String()}})
		calls = f.Calls()
		f.Set(backendtest.Faults{})
		for i, u := range []*unlocked{s.one, s.two} {
			commit(t, as(t, b, u), Snapshot{Name: "after" + string(rune('0'+i))}, what)
		}
		if err == nil {
			commit(t, r, Snapshot{Name: "after3"}) // as a process that goes on
		} else {
			commit(t, as(t, b, s.one), Snapshot{Name: "after3"})
		}
		for _, u := range []*unlocked{s.one, s.two} {
			wantReads(t, what, as(t, b, u), 4, what)
		}
		again := as(t, b, s.two)
		var drop []string
		if slices.Contains(names(t, b, "keys/"), keyName(s.old.id)) {
			drop = []string{s.old.id.String()}
		}
		before := again.k.Newest()
		if res := rotate(t, again, drop...); res.Epoch <= before || len(res.Granted) != 2 {
			t.Errorf("%s, repeated: %+v", what, res)
		}
		commit(t, again, Snapshot{Name: "after4"})
		wantReads(t, what+", repeated", as(t, b, s.one), 5, what)
		if slices.Contains(names(t, b, "keys/"), keyName(s.old.id)) {
			t.Errorf("%s: the dropped key is still there", what)
		}
		return calls, err
	}
	calls, err := do("no fault", backendtest.Faults{})
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for i := 1; i <= calls; i++ {
		for _, after := range []bool{false, true} {
			if _, err := do(strings.Repeat("+", i)+map[bool]string{true: " after"}[after], backendtest.Faults{Call: i, After: after}); err != nil {
				failed++
			}
		}
	}
	for i := 1; i <= 3; i++ {
		if _, err := do(strings.Repeat("*", i)+" crash", backendtest.Faults{CrashAfterPuts: i}); err == nil && i < 3 {
			t.Errorf("a crash behind Put %d went unnoticed", i)
		}
	}
	if failed < calls/2 {
		t.Errorf("of %d calls only %d failures were seen", calls, failed)
	}
}

// hooked calls before the first Put of a name that starts with prefix.
type hooked struct {
	backend.Backend
	prefix string
	before func()
}

func (h *hooked) Put(ctx context.Context, name string, p []byte) error {
	if before := h.before; before != nil && strings.HasPrefix(name, h.prefix) {
		h.before = nil
		before()
	}
	return h.Backend.Put(ctx, name, p)
}

// TestRotateAtOnce: keys are changed by others at each point of a rotation.
func TestRotateAtOnce(t *testing.T) {
	s := newKeyed(t)
	for _, prefix := range []string{"keys/", "config/"} {
		other := map[string]func(b backend.Backend){
			"rotates": func(b backend.Backend) { rotate(t, as(t, b, s.two)) },
			"removes": func(b backend.Backend) {
				if _, err := as(t, b, s.one).RemoveKey(t.Context(), s.two.id.String()); err != nil {
					t.Error(err)
				}
			},
			"adds": func(b backend.Backend) {
				if _, err := as(t, b, s.two).AddKey(t.Context(), "three", ""); err != nil {
					t.Error(err)
				}
			},
		}
		for what, do := range other {
			b := copyOf(t, s.b)
			r := as(t, &hooked{b, prefix, func() { do(b) }}, s.one)
			res, err := r.RotateKeys(t.Context(), RotateOptions{})
			if (what == "adds") != (err == nil) || err != nil && !errors.Is(err, errOutrun) {
				t.Errorf("somebody %s before %s: %v", what, prefix, err)
			}
			k := as(t, b, s.one)
			commit(t, k, Snapshot{Name: "second"}, "text")
			switch what {
			case "adds":
				three, _, err := with(t, b, "three")
				if err != nil || len(res.Granted) != 3 {
					t.Fatal(err)
				}
				wantReads(t, "a key that was added meanwhile", three, 2, "text")
				fallthrough
			case "rotates":
				wantReads(t, what, as(t, b, s.two), 2, "text")
				wantReads(t, what+", same process", r, 2, "text")
			case "removes":
				if res := rotate(t, k); slices.Contains(ids(res.Granted), s.two.id) {
					t.Errorf("a key that was removed meanwhile gets the epoch: %+v", res)
				}
			}
		}
	}
	// The other way around: a rotation while a key is being added.
	b := copyOf(t, s.b)
	r := as(t, &hooked{b, "keys/", func() { commit(t, as(t, b, s.two), Snapshot{Name: "x"}); rotate(t, as(t, b, s.two)) }}, s.one)
	if _, err := r.AddKey(t.Context(), "three", ""); err != nil {
		t.Fatal(err)
	}
	commit(t, r, Snapshot{Name: "y"}, "text")
	three, _, err := with(t, b, "three")
	if err != nil {
		t.Fatal(err)
	}
	wantReads(t, "a key that was added during a rotation", three, 3, "text")
}

func TestRewriteEpochs(t *testing.T) {
	s := newKeyed(t)
	r := as(t, s.b, s.one)
	rotate(t, r)
	commit(t, r, Snapshot{Name: "second"}, "a chunk of the second")
	uses := func(want ...EpochUse) {
		t.Helper()
		got, err := r.EpochUses(t.Context())
		for i := range got {
			got[i].Packs.Bytes = 0
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("used: %+v, %v; want %+v", got, err, want)
		}
	}
	uses(EpochUse{1, false, PackSums{Packs: 2}, 1}, EpochUse{2, true, PackSums{Packs: 1}, 1})
	if _, err := r.RewriteEpochs(t.Context(), PruneOptions{DryRun: true}); err != nil {
		t.Fatal(err)
	}
	uses(EpochUse{1, false, PackSums{Packs: 2}, 1}, EpochUse{2, true, PackSums{Packs: 1}, 1})
	if _, err := r.RewriteEpochs(t.Context(), PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := r.EpochUses(t.Context())
	if err != nil || len(got) != 2 || got[0].Packs.Packs != 0 || got[0].Records != 1 || got[1].Packs.Packs == 0 {
		t.Errorf("used: %+v, %v", got, err)
	}
	wantReads(t, "rewritten", as(t, s.b, s.two), 2)
	// What the older key opens is names, and no contents.
	old := as(t, s.b, s.old)
	snaps, _ := old.Snapshots(t.Context())
	if len(snaps) != 1 {
		t.Fatalf("%d snapshots", len(snaps))
	}
	if _, err := old.Store().Page(t.Context(), snaps[0].Tree.ID); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("the older key opens what was rewritten: %v", err)
	}
	if err := rotateAs(t, s); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("rewriting without the newest key: %v", err)
	}
}

func rotateAs(t *testing.T, s *keyed) error {
	_, err := as(t, s.b, s.old).RewriteEpochs(t.Context(), PruneOptions{})
	return err
}
