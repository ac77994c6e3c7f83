package repo

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// openLagging opens what is in m where listings lag: hides tells what they do not
// show, before and after somebody has waited for them.
func openLagging(t *testing.T, m *backend.Mem, hides func(name string, waited bool) bool) *Repo {
	t.Helper()
	var waited atomic.Bool
	b := &beside{Backend: m, lag: time.Millisecond, list: func(_ string, found []backend.Info) []backend.Info {
		return slices.DeleteFunc(found, func(info backend.Info) bool { return hides(info.Name, waited.Load()) })
	}}
	opt := testOptions(t)
	opt.Logf = func(format string, args ...any) {
		t.Logf(format, args...)
		if strings.HasPrefix(format, "waiting") {
			waited.Store(true)
		}
	}
	r, err := Open(t.Context(), b, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestPruneLooksAgain: where listings lag, that of snapshots/ may show what others
// have just put, and those of packs/ and index/ not yet what it needs. Nothing is
// missing then. What really is missing is told.
func TestPruneLooksAgain(t *testing.T) {
	m := backend.NewMem()
	r := testInit(t, m)
	commitFiles(t, r, Snapshot{Name: "old"}, testFile{"a", "f", "old"})
	had := append(names(t, m, "packs/"), names(t, m, "index/")...)
	commitFiles(t, r, Snapshot{Name: "new"}, testFile{"b", "f", "new"})
	for _, missing := range []bool{false, true} {
		r := openLagging(t, m, func(name string, waited bool) bool {
			hidden := strings.HasPrefix(name, "packs/") || strings.HasPrefix(name, "index/")
			return hidden && !slices.Contains(had, name) && (missing || !waited)
		})
		res, err := r.Prune(t.Context(), PruneOptions{})
		if lost := err != nil || res.Homeless > 0; lost != missing {
			t.Errorf("missing %v: %d chunks are missing, %v", missing, res.Homeless, err)
		}
	}
}

// TestRevokeWaits: a snapshot that listings do not show yet stays valid when its
// writer is revoked.
func TestRevokeWaits(t *testing.T) {
	m := backend.NewMem()
	owner := testInit(t, m)
	id, cred := addNode(t, owner, NewWriter{Names: []string{"*"}})
	had := names(t, m, "snapshots/")
	commit(t, mustOpenAs(t, m, cred), Snapshot{Name: "web"})
	r := openLagging(t, m, func(name string, waited bool) bool {
		return strings.HasPrefix(name, "snapshots/") && !slices.Contains(had, name) && !waited
	})
	if n := count(t, r); n != 0 {
		t.Fatalf("%d snapshots are listed at once", n)
	}
	if _, accepted, err := r.RevokeWriter(t.Context(), id.String()); err != nil || accepted != 1 {
		t.Errorf("%d snapshots stay valid, %v", accepted, err)
	}
	if n := count(t, r); n != 1 {
		t.Errorf("%d snapshots, want 1", n)
	}
}
