package repo

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// thieve overwrites or hides every object, and tries to remove all versions.
func thieve(t *testing.T, v *vault, lockJunk bool) {
	t.Helper()
	var all []backend.Version
	for x, err := range v.ListVersions(t.Context(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, x)
	}
	for i, x := range all {
		var until time.Time
		if lockJunk && i%5 == 0 {
			until = v.now.Add(365 * day)
		}
		if i%3 != 0 {
			if err := v.PutOver(t.Context(), x.Name, []byte("garbage"), until); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 != 1 {
			if err := v.Remove(t.Context(), x.Name); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.RemoveVersion(t.Context(), x.Name, x.ID); isLocked(x.Name) != errors.Is(err, backend.ErrLocked) {
			t.Errorf("the thief removes %s: %v", x.Name, err)
		}
	}
}

func TestThief(t *testing.T) {
	for _, lockJunk := range []bool{false, true} {
		v := newVault()
		r := lockedInit(t, v)
		for i := range uint64(5) {
			snap(t, r, texts(i, i+100))
		}
		forgotten := snap(t, r, texts(200, 201))
		if _, err := r.Forget(t.Context(), []ID{forgotten.ID}); err != nil {
			t.Fatal(err)
		}
		v.now = v.now.Add(time.Hour)
		thieve(t, v, lockJunk)
		if _, err := Open(t.Context(), v, lockedOptions(t, v)); err == nil {
			t.Fatal("the thief has done nothing")
		}
		if !Covered(t.Context(), v) {
			t.Error("nobody would know that there is more")
		}
		b, err := Oldest(v)
		if err != nil {
			t.Fatal(err)
		}
		old := lockedOpen(t, b, v)
		// What the thief could remove was what hides a forgotten one.
		res, err := old.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) {
			if !strings.HasPrefix(d.Object, "forgotten/") {
				t.Errorf("damage: %+v", d)
			}
		})
		if err != nil || res.Snapshots != 6 || res.LedgerErr != nil {
			t.Errorf("read in oldest versions: %+v, %v", res, err)
		}
		if _, err := old.Begin(t.Context()); !errors.Is(err, backend.ErrOldest) || !errors.Is(err, ErrReadOnly) {
			t.Errorf("begin: %v", err)
		}
		if _, err := old.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrReadOnly) {
			t.Errorf("prune: %v", err)
		}
		before, _ := v.Everything()
		dry, err := old.RepairVersions(t.Context(), VersionsOptions{DryRun: true})
		if after, _ := v.Everything(); err != nil || after != before || dry.Overwritten == 0 || dry.Gone == 0 {
			t.Errorf("dry run: %+v, %v, %d versions of %d", dry, err, after, before)
		}
		done, err := old.RepairVersions(t.Context(), VersionsOptions{Report: func(s VersionStep) {
			if s.Err != nil {
				t.Errorf("%+v", s)
			}
		}})
		if err != nil || done.Overwritten != dry.Overwritten || done.Gone != dry.Gone || done.Failed != 0 || done.Stored > 0 != lockJunk {
			t.Errorf("repair: %+v, %v; the dry run said %+v", done, err, dry)
		}
		healthyLocked(t, v, 6)
		if again, err := old.RepairVersions(t.Context(), VersionsOptions{}); err != nil || again.Overwritten+again.Gone != 0 {
			t.Errorf("again: %+v, %v", again, err)
		}
		r = lockedOpen(t, v, v)
		snap(t, r, texts(300))
		if res, err := r.KeepLocks(t.Context(), LockOptions{}); err != nil || res.ChangedCount != 0 || res.ExposedCount != 0 {
			t.Errorf("locks: %+v, %v", res, err)
		}
		if _, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
			t.Error(err)
		}
	}
}

// A thief who has time: what is overwritten and never repaired keeps its lock.
func TestPatientThief(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	for i := range uint64(5) {
		snap(t, r, texts(i, i+100))
	}
	for i, name := range names(t, v, "packs/") {
		if i%2 == 0 {
			if err := v.PutOver(t.Context(), name, []byte("garbage"), time.Time{}); err != nil {
				t.Fatal(err)
			}
		} else if err := v.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 {
		v.now = v.now.Add(10 * day)
		r := lockedOpen(t, v, v)
		res, err := r.KeepLocks(t.Context(), LockOptions{})
		if err != nil || res.Guessed == nil || res.ChangedCount == 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		if _, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err == nil {
			t.Error("prune has decided, and cannot know")
		}
	}
	for name, days := range untils(t, v) {
		if !strings.HasPrefix(name, "index/") && isLocked(name) && days < lockDays/2 {
			t.Errorf("%s is locked for %d days", name, days)
		}
	}
	b, err := Oldest(v)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := lockedOpen(t, b, v).RepairVersions(t.Context(), VersionsOptions{}); err != nil || res.Overwritten == 0 || res.Gone == 0 {
		t.Errorf("repair: %+v, %v", res, err)
	}
	healthyLocked(t, v, 5)
}
