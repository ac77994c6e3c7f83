package repo

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// impostor is an object of a name that is whole, and that a stranger has signed.
func impostor(t *testing.T, name string, kind seal.Kind) []byte {
	t.Helper()
	opt := testOptions(t)
	ring, err := seal.NewRing("0123456789abcdef0123456789abcdef", opt.Random)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ring.Open()
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.Seal(name, kind, seal.Clear, []byte("{}"), opt.Random)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// beforehand puts something under a name that will be taken, and hides it.
func beforehand(t *testing.T, v *vault, name string, times int, p []byte) {
	t.Helper()
	for range times {
		if err := v.PutOver(t.Context(), name, p, v.now.Add(365*day)); err != nil {
			t.Fatal(err)
		}
		if err := v.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// strip removes every version that can be removed.
func strip(t *testing.T, v *vault) {
	t.Helper()
	for x, err := range v.ListVersions(t.Context(), "", "") {
		if err == nil {
			err = v.RemoveVersion(t.Context(), x.Name, x.ID)
		}
		if err != nil && !errors.Is(err, backend.ErrLocked) {
			t.Fatal(err)
		}
	}
}

// A thief who sees a writer begin knows under which name its record will be, and
// of the next config and mark, too: he is there first, and locks what he puts.
func TestThiefIsFirst(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	s := testBegin(t, r)
	beforehand(t, v, "snapshots/"+s.ID.String(), 40, impostor(t, "snapshots/"+s.ID.String(), seal.KindSnapshot))
	rec := finish(t, r, s, texts(1, 2, 3))
	beforehand(t, v, "marks/"+rec.ID.String()+"-1", 1, impostor(t, "marks/"+rec.ID.String()+"-1", seal.KindMark))
	if err := r.AddMark(t.Context(), rec.ID, Mark{Op: MarkPin}); err != nil {
		t.Fatal(err)
	}
	beforehand(t, v, "config/2", 1, impostor(t, "config/2", seal.KindConfig))
	if err := r.changeConfig(t.Context(), func(c *Config) error { c.Parity = "2"; return nil }); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		v.now = v.now.Add(10 * day)
		if res, err := lockedOpen(t, v, v).KeepLocks(t.Context(), LockOptions{}); err != nil || res.ChangedCount != 0 {
			t.Errorf("%+v, %v", res, err)
		}
	}
	for _, name := range []string{"snapshots/" + rec.ID.String(), "marks/" + rec.ID.String() + "-1", "config/2"} {
		if until, err := v.MemVault.LockedUntil(t.Context(), name, ""); err != nil || until.Before(v.now.Add(lockDays/2*day)) {
			t.Errorf("%s is locked until %s, %v", name, until, err)
		}
	}
	strip(t, v)
	b, err := Oldest(v)
	if err != nil {
		t.Fatal(err)
	}
	old := lockedOpen(t, b, v)
	if snaps, err := old.Snapshots(t.Context()); err != nil || len(snaps) != 1 || !snaps[0].Pinned {
		t.Errorf("in oldest versions: %+v, %v", snaps, err)
	}
	if old.Config().Parity != "2" {
		t.Error("an older config is read")
	}
	repaired(t, v, 1)
}

// A thief hides a snapshot, so that the owner himself removes what it needs.
func TestThiefHidesSnapshots(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	snap(t, r, texts(1, 2, 3))
	hidden := snap(t, r, texts(11, 12, 13))
	if err := v.Remove(t.Context(), "snapshots/"+hidden.ID.String()); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		v.now = v.now.Add(10 * day)
		if res, err := lockedOpen(t, v, v).Prune(t.Context(), PruneOptions{MaxRepack: -1}); err == nil || res.Locks.Guessed == nil {
			t.Errorf("prune has decided, and cannot know: %+v", res)
		}
	}
	repaired(t, v, 2)
}

// repaired reads everything in the oldest versions, and then puts them back.
func repaired(t *testing.T, v *vault, want int) {
	t.Helper()
	b, err := Oldest(v)
	if err != nil {
		t.Fatal(err)
	}
	old := lockedOpen(t, b, v)
	if res, err := old.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("in oldest versions: %+v", d) }); err != nil || int(res.Snapshots) != want {
		t.Errorf("in oldest versions: %+v, %v", res, err)
	}
	if res, err := old.RepairVersions(t.Context(), VersionsOptions{}); err != nil || res.Failed != 0 {
		t.Fatalf("repair: %+v, %v", res, err)
	}
	if _, err := lockedOpen(t, v, v).Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
		t.Error(err)
	}
	healthyLocked(t, v, want)
}

// dataPacks are those that hold no pages.
func dataPacks(t *testing.T, r *Repo) (all []string) {
	t.Helper()
	if err := r.Index().EachPack(t.Context(), func(p *pack.Trailer) error {
		if p.Kind == pack.Data {
			all = append(all, p.Name.Object())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// A thief hides data only: the trees tell what is needed, and nobody where it was.
func TestThiefHidesData(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	snap(t, r, texts(1, 2, 3))
	for _, name := range dataPacks(t, r) {
		if err := v.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 8 {
		v.now = v.now.Add(10 * day)
		if i%2 == 0 {
			if _, err := lockedOpen(t, v, v).Prune(t.Context(), PruneOptions{MaxRepack: -1}); err == nil {
				t.Error("nothing is missed")
			}
		} else if res, err := lockedOpen(t, v, v).KeepLocks(t.Context(), LockOptions{}); err != nil || res.ChangedCount == 0 {
			t.Errorf("%+v, %v", res, err)
		}
	}
	strip(t, v)
	for name, days := range untils(t, v) {
		if strings.HasPrefix(name, "packs/") && days < lockDays/2 {
			t.Errorf("%s is locked for %d days", name, days)
		}
	}
	repaired(t, v, 1)
}

// What is needed of a condemned pack is not copied yet when a thief makes it
// impossible to know what is needed.
func TestThiefBesideCondemned(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	gone := snap(t, r, texts(1, 2, 3))
	live := snap(t, r, texts(1, 11))
	atWork := testBegin(t, r)
	if _, err := r.Forget(t.Context(), []ID{gone.ID}); err != nil {
		t.Fatal(err)
	}
	if res, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil || res.Left.Packs == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	atWork.Abort(t.Context())
	if err := v.PutOver(t.Context(), "snapshots/"+live.ID.String(), []byte("garbage"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		v.now = v.now.Add(10 * day)
		if res, err := lockedOpen(t, v, v).Prune(t.Context(), PruneOptions{MaxRepack: -1}); err == nil || res.Locks.Guessed == nil {
			t.Errorf("%+v, %v", res, err)
		}
	}
	strip(t, v)
	repaired(t, v, 1)
}

// A thief stores what is there once more: it looks young, and is not locked.
func TestThiefMakesPacksYoung(t *testing.T) {
	for _, lockJunk := range []bool{false, true} {
		v := newVault()
		r := lockedInit(t, v)
		snap(t, r, texts(1, 2, 3))
		v.now = v.now.Add(29 * day) // nobody has come for long
		for _, name := range names(t, v, "packs/") {
			var until time.Time
			if lockJunk {
				until = v.now.Add(365 * day)
			}
			if err := v.PutOver(t.Context(), name, get(t, v, name), until); err != nil {
				t.Fatal(err)
			}
		}
		snap(t, lockedOpen(t, v, v), texts(1, 2, 3))
		for s, err := range backend.Stacks(t.Context(), v, "packs/") {
			if err != nil {
				t.Fatal(err)
			}
			until, err := v.MemVault.LockedUntil(t.Context(), s.Name, s.Oldest.ID)
			if err != nil || until.Before(v.now.Add(lockDays/2*day)) {
				t.Errorf("%s, which a new snapshot leans on, is locked until %s, %v", s.Name, until, err)
			}
		}
	}
}

// A thief hides what keeps a snapshot from being forgotten.
func TestThiefHidesPins(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	old, pinned := snap(t, r, texts(1)), snap(t, r, texts(2))
	v.now = v.now.Add(day)
	newest := &Snapshot{Name: "host", Time: v.now}
	s := testBegin(t, r)
	newest.Tree = treeOf(t, r, s, texts(3))
	store(t, r, s, texts(3)...)
	if err := s.Commit(t.Context(), newest); err != nil {
		t.Fatal(err)
	}
	if err := r.AddMark(t.Context(), pinned.ID, Mark{Op: MarkPin}); err != nil {
		t.Fatal(err)
	}
	for hidden := range 2 {
		if hidden == 1 {
			if err := v.Remove(t.Context(), "marks/"+pinned.ID.String()+"-1"); err != nil {
				t.Fatal(err)
			}
		}
		r := lockedOpen(t, v, v)
		snaps, err := r.Snapshots(t.Context())
		if err == nil {
			err = r.DoubtMarks(t.Context(), snaps)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range Decide(snaps, Policy{Last: 1}, v.now) {
			if d.Keep != (d.Snapshot.ID != old.ID) || hidden == 1 && d.Snapshot.Pinned {
				t.Errorf("hidden %d: of %s: %+v", hidden, d.Snapshot.ID, d)
			}
		}
	}
}
