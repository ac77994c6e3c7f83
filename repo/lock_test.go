package repo

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// untils returns of every object until when its first version is locked, in days
// from now on; what is not locked is -1.
func untils(t *testing.T, v *vault) map[string]int {
	t.Helper()
	all := map[string]int{}
	for s, err := range backend.Stacks(t.Context(), v, "") {
		if err != nil {
			t.Fatal(err)
		}
		u, err := v.MemVault.LockedUntil(t.Context(), s.Name, s.Oldest.ID)
		if err != nil {
			t.Fatal(err)
		}
		all[s.Name] = -1
		if !u.IsZero() {
			all[s.Name] = int(u.Sub(v.now) / day)
		}
	}
	return all
}

func TestLockWhatIsStored(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	snap(t, r, texts(1, 2, 3))
	s := testBegin(t, r)
	got := untils(t, v)
	for name, days := range got {
		if want := map[bool]int{true: lockDays, false: -1}[isLocked(name)]; days != want {
			t.Errorf("%s is locked for %d days, want %d", name, days, want)
		}
	}
	for _, kind := range []string{"config/", "keys/", "packs/", "index/", "snapshots/", "intents/"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(n string) bool { return strings.HasPrefix(n, kind) }) {
			t.Errorf("there is nothing below %s", kind)
		}
	}
	s.Abort(t.Context())
	for name := range untils(t, v) {
		if strings.HasPrefix(name, "intents/") || strings.HasPrefix(name, "tmp/") {
			t.Errorf("%s is left", name)
		}
	}
	if versions, _ := v.Everything(); versions != len(untils(t, v)) {
		t.Errorf("%d versions of %d objects: something was hidden rather than removed", versions, len(untils(t, v)))
	}
}

func TestInitWithoutVault(t *testing.T) {
	in := testParams(t)
	in.Lock = lockDays * day
	if _, err := Init(t.Context(), backend.NewMem(), in, testOptions(t)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("in memory: %v", err)
	}
	v := newVault()
	in.NoFencing = true
	if _, err := Init(t.Context(), v, in, lockedOptions(t, v)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("without fencing: %v", err)
	}
	for _, d := range []time.Duration{time.Hour, 11 * 366 * day} {
		in := testParams(t)
		in.Lock = d
		if _, err := Init(t.Context(), v, in, lockedOptions(t, v)); err == nil {
			t.Errorf("a lock of %s was taken", d)
		}
	}
	if all := untils(t, v); len(all) != 0 {
		t.Errorf("left is %v", all)
	}
}

// An init that was interrupted leaves a key that can be removed.
func TestInitLockedAgain(t *testing.T) {
	v := newVault()
	if err := v.Put(t.Context(), "keys/00000000000000000000000000000001", []byte("left by an interrupted init")); err != nil {
		t.Fatal(err)
	}
	lockedInit(t, v)
	if got := untils(t, v); len(got) != 2 || got["config/1"] != lockDays {
		t.Errorf("there is %v, want a config and a key, both locked", got)
	}
}

// Where somebody has removed all of a repository no other takes its place, locked or
// not: of two in one place neither could be put back.
func TestInitOverRemoved(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	made := snap(t, r, texts(1, 2))
	for name := range untils(t, v) {
		if err := v.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), v, lockedOptions(t, v)); !errors.Is(err, ErrNoRepo) {
		t.Fatalf("removed, it opens: %v", err)
	}
	for _, lock := range []time.Duration{0, lockDays * day} {
		in := testParams(t)
		in.Lock = lock
		if _, err := Init(t.Context(), v, in, lockedOptions(t, v)); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "repair versions") {
			t.Errorf("init with a lock of %s: %v", lock, err)
		}
	}
	old, err := Oldest(v)
	if err != nil {
		t.Fatal(err)
	}
	if snaps, err := lockedOpen(t, old, v).Snapshots(t.Context()); err != nil || len(snaps) != 1 || snaps[0].ID != made.ID {
		t.Errorf("what was removed: %v, %v; want the one snapshot", snaps, err)
	}
}

// A copy of the objects in a place that locks nothing is read, and not written.
func TestLockedElsewhere(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	rec := snap(t, r, texts(1, 2, 3))
	m := backend.NewMem()
	for name := range untils(t, v) {
		p, err := v.Get(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Put(t.Context(), name, p); err != nil {
			t.Fatal(err)
		}
	}
	r = lockedOpen(t, m, v)
	if snaps, err := r.Snapshots(t.Context()); err != nil || len(snaps) != 1 || snaps[0].ID != rec.ID {
		t.Errorf("snapshots: %v, %v", snaps, err)
	}
	if _, err := r.Begin(t.Context()); !errors.Is(err, ErrReadOnly) {
		t.Errorf("begin: %v", err)
	}
	if _, err := r.Forget(t.Context(), []ID{rec.ID}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("forget: %v", err)
	}
	if res, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("%+v", d) }); err != nil || res.LedgerErr != nil {
		t.Errorf("check: %v, %v", err, res.LedgerErr)
	}
}

// Forgotten snapshots are hidden and stay until their locks have passed; prune
// condemns their packs and goes on when they have.
func TestPruneBesideLocks(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	keep := snap(t, r, texts(1, 2, 3))
	gone := snap(t, r, texts(11, 12, 13, 14))
	v.now = v.now.Add(day)
	res, err := r.Forget(t.Context(), []ID{gone.ID})
	if err != nil || len(res.Hidden) != 1 {
		t.Fatalf("forget: %+v, %v", res, err)
	}
	if snaps, err := r.Snapshots(t.Context()); err != nil || len(snaps) != 1 || snaps[0].ID != keep.ID {
		t.Fatalf("snapshots: %v, %v", snaps, err)
	}
	var waits uint64
	for i := range 2 {
		p, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1})
		if err != nil {
			t.Fatal(err)
		}
		if waits = p.Locked.Packs; waits == 0 || p.Removed.Packs != 0 || !p.LockedUntil.Equal(start.Add(lockDays*day)) {
			t.Errorf("prune %d: %+v wait until %s, removed %+v", i, p.Locked, p.LockedUntil, p.Removed)
		}
		if n := countBelow(t, v, "condemned/"); n == 0 {
			t.Errorf("prune %d: the condemned record is gone, and its packs are not", i)
		}
	}
	if asked, _ := v.calls(); len(asked) > 4 { // the hidden record, and those of init
		t.Errorf("locks were asked for %d times where the time of storing tells: %v", len(asked), asked)
	}
	// What is condemned is not leaned on, and its lock is not lengthened: in three
	// weeks it has a third of it left, and what is needed more than half.
	v.now = v.now.Add(21 * day)
	snap(t, r, texts(1, 11, 21))
	if _, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
		t.Fatal(err)
	}
	condemned := condemnedNow(t, r)
	if len(condemned) == 0 {
		t.Error("nothing is condemned")
	}
	for name, days := range untils(t, v) {
		n, isPack := pack.ParseObject(name)
		switch {
		case isPack && condemned[n] && days != 8, isPack && !condemned[n] && days < lockDays/2:
			t.Errorf("%s, condemned %v, is locked for %d days", name, condemned[n], days)
		case name == "snapshots/"+gone.ID.String() && days != 8, name == "snapshots/"+keep.ID.String() && days < lockDays/2:
			t.Errorf("%s is locked for %d days", name, days)
		}
	}
	v.now = v.now.Add(9 * day)
	p, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1})
	if err != nil || p.Removed.Packs != waits || p.Locked.Packs != 0 {
		t.Errorf("after the locks: removed %+v, locked %+v, %v; want %d removed", p.Removed, p.Locked, err, waits)
	}
	if _, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
		t.Error(err)
	}
	for name := range untils(t, v) {
		if strings.HasPrefix(name, "condemned/") || strings.HasPrefix(name, "forgotten/") || strings.Contains(name, gone.ID.String()) {
			t.Errorf("%s is left", name)
		}
	}
	r = lockedOpen(t, v, v)
	if res, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("%+v", d) }); err != nil || res.Snapshots != 2 {
		t.Errorf("check: %+v, %v", res, err)
	}
}

func countBelow(t *testing.T, v *vault, prefix string) int {
	t.Helper()
	return len(names(t, v, prefix))
}

func condemnedNow(t *testing.T, r *Repo) map[pack.Name]bool {
	t.Helper()
	records, err := r.condemnedRecords(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	all := map[pack.Name]bool{}
	for _, rec := range records {
		for _, name := range rec.packs {
			all[name] = true
		}
	}
	return all
}

// A snapshot that leans on old packs locks them before it is there, and asks for
// each at most once in half a period. Without what the machine remembers it asks
// again, and that is all.
func TestCommitLocksWhatItLeansOn(t *testing.T) {
	v := newVault()
	opt := lockedOptions(t, v)
	opt.CacheDir = t.TempDir()
	in := testParams(t)
	in.Lock = lockDays * day
	r, err := Init(t.Context(), v, in, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	first := snap(t, r, texts(1, 2, 3))
	v.calls()
	for _, at := range []struct {
		days  int
		hints bool
		asks  bool
		grows bool
	}{{14, true, false, false}, {16, true, true, true}, {17, true, false, false}, {18, false, true, false}, {30, true, false, false}, {32, true, true, true}} {
		v.now = start.Add(time.Duration(at.days)*day + time.Hour)
		if !at.hints {
			if err := os.RemoveAll(opt.CacheDir); err != nil {
				t.Fatal(err)
			}
		}
		snap(t, r, texts(1, 2, 3))
		asked, grew := v.calls()
		if len(asked) > 0 != at.asks || len(grew) > 0 != at.grows {
			t.Errorf("day %d: asked for %v, lengthened %v; want %v, %v", at.days, asked, grew, at.asks, at.grows)
		}
		for name, days := range untils(t, v) {
			if _, ok := pack.ParseObject(name); ok && days < lockDays/2-1 {
				t.Errorf("day %d: %s is locked for %d days only", at.days, name, days)
			}
		}
	}
	// Where a pack cannot be locked there is no snapshot.
	s := testBegin(t, r)
	store(t, r, s, texts(1, 2, 3)...)
	rec := &Snapshot{Name: "late", Time: v.now, Tree: first.Tree}
	v.now = v.now.Add(40 * day)
	for _, name := range names(t, v, "packs/") {
		if err := backend.Locked(v, nil).Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(t.Context(), rec); !errors.Is(err, chunk.ErrMissing) {
		t.Errorf("commit: %v", err)
	}
	if n := countBelow(t, v, "intents/"); n != 0 {
		t.Errorf("%d intents are left", n)
	}
}

// What live snapshots need stays locked for half of the period at least, for as
// long as somebody runs prune or lock, whatever else happens to it.
func TestKeepLocks(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	for i := range uint64(5) {
		snap(t, r, texts(i, i+100))
	}
	for i := range 20 {
		v.now = v.now.Add(10 * day)
		var err error
		if i%2 == 0 {
			_, err = r.Prune(t.Context(), PruneOptions{MaxRepack: -1})
		} else {
			var res LockResult
			if res, err = r.KeepLocks(t.Context(), LockOptions{}); res.ExposedCount+res.ChangedCount > 0 || res.Guessed != nil {
				t.Errorf("round %d: %+v", i, res)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		for name, days := range untils(t, v) {
			if !strings.HasPrefix(name, "index/") && isLocked(name) && days < lockDays/2 {
				t.Errorf("round %d: %s is locked for %d days", i, name, days)
			}
		}
	}
	// Nobody came for too long.
	v.now = v.now.Add(40 * day)
	dry, err := r.KeepLocks(t.Context(), LockOptions{DryRun: true})
	if err != nil || dry.ExposedCount == 0 || len(dry.Exposed) == 0 || dry.Kinds["packs"].Renewed == 0 || dry.Kinds["packs"].First.After(v.now) {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	if res, err := r.KeepLocks(t.Context(), LockOptions{}); err != nil || res.ExposedCount != dry.ExposedCount {
		t.Errorf("got %+v, %v, the dry run said %+v", res, err, dry)
	}
	if res, err := r.KeepLocks(t.Context(), LockOptions{}); err != nil || res.ExposedCount != 0 || res.Kinds["packs"].Renewed != 0 {
		t.Errorf("again: %+v, %v", res, err)
	}
	healthyLocked(t, v, 5)
	if _, err := testInit(t, backend.NewMem()).KeepLocks(t.Context(), LockOptions{}); !errors.Is(err, ErrNoLock) {
		t.Errorf("without locks: %v", err)
	}
}

func healthyLocked(t *testing.T, v *vault, want int) {
	t.Helper()
	r := lockedOpen(t, v, v)
	res, err := r.Check(t.Context(), CheckOptions{ReadData: true}, func(d Damage) { t.Errorf("damage: %+v", d) })
	if err != nil || int(res.Snapshots) != want {
		t.Errorf("check: %+v, %v; want %d snapshots", res, err, want)
	}
}

// A key that was removed is not locked any longer, and goes when its lock has
// passed.
func TestRemovedKeyIsLocked(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	id, err := r.AddKey(t.Context(), "second", "label")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.RemoveKey(t.Context(), id.String()); !errors.Is(err, backend.ErrLocked) {
		t.Errorf("remove: %v", err)
	}
	for range 4 {
		v.now = v.now.Add(10 * day)
		r = lockedOpen(t, v, v)
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if all := names(t, v, "keys/"); len(all) != 1 || strings.Contains(all[0], id.String()) {
		t.Errorf("there is %v", all)
	}
}

// Segments are merged when their locks have passed, so that they are as many as
// were put in that time, and not more, and most of them are locked.
func TestSegmentsUnderLocks(t *testing.T) {
	v := newVault()
	r := lockedInit(t, v)
	for i := range uint64(45) {
		v.now = v.now.Add(2 * day)
		snap(t, r, texts(i))
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	segments, locked := 0, 0
	for name, days := range untils(t, v) {
		if strings.HasPrefix(name, "index/") {
			segments++
			if days >= 0 {
				locked++
			}
		}
	}
	if segments > 2*lockDays/2+4 || locked < segments-2 {
		t.Errorf("after 45 snapshots there are %d segments, %d of them locked; %d snapshots are made in the time of a lock", segments, locked, lockDays/2)
	}
	if n, err := r.Index().Merge(t.Context()); err != nil || n != 0 {
		t.Errorf("a merge of what is locked: %d, %v", n, err)
	}
	healthyLocked(t, v, 45)
}

// The first key of a repository that is append-only from the start holds the
// owner's seed: it goes at once.
func TestAppendOnlyLocked(t *testing.T) {
	for _, provisional := range []bool{true, false} {
		v := newVault()
		in := testParams(t)
		in.Lock, in.Provisional, in.Password = lockDays*day, provisional, "one"
		opt := lockedOptions(t, v)
		opt.Password = func() (string, error) { return "one", nil }
		r, err := Init(t.Context(), v, in, opt)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		changes, err := r.SetAppendOnly(t.Context(), true, AppendOnlyOptions{Password: "one", Save: func([]byte) error { return nil }})
		if err != nil || len(changes) != 1 || changes[0].Locked.IsZero() != provisional {
			t.Errorf("provisional %v: %+v, %v", provisional, changes, err)
		}
		if there := slices.Contains(names(t, v, "keys/"), keyName(changes[0].ID)); there == provisional {
			t.Errorf("provisional %v: the old key is there: %v", provisional, there)
		}
	}
}

// Prune is killed at every request, beside locks.
func TestPruneKilledBesideLocks(t *testing.T) {
	for n := 1; ; n++ {
		v := newVault()
		r := lockedInit(t, v)
		snap(t, r, texts(1, 2, 3))
		gone := snap(t, r, texts(1, 11, 12, 13))
		if _, err := r.Forget(t.Context(), []ID{gone.ID}); err != nil {
			t.Fatal(err)
		}
		v.now = v.now.Add(20 * day)
		if _, err := r.Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
			t.Fatal(err)
		}
		v.now = v.now.Add(11 * day)
		k := &killed{vault: v, left: n}
		_, err := lockedOpenKilled(t, k, v)
		done := k.left > 0
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
		healthyLocked(t, v, 1)
		for range 2 {
			if _, err := lockedOpen(t, v, v).Prune(t.Context(), PruneOptions{MaxRepack: -1}); err != nil {
				t.Fatalf("after %d requests: %v", n, err)
			}
		}
		healthyLocked(t, v, 1)
		if left := append(names(t, v, "condemned/"), names(t, v, "forgotten/")...); len(left) != 0 {
			t.Errorf("killed after %d changes: %v is left", n, left)
		}
		if done {
			if n < 5 {
				t.Errorf("prune makes %d changes only", n)
			}
			return
		}
	}
}
