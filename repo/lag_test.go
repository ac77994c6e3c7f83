package repo

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

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
		var waited atomic.Bool
		b := &beside{Backend: m, lag: time.Millisecond, list: func(prefix string, found []backend.Info) []backend.Info {
			if waited.Load() && !missing {
				return found
			}
			return slices.DeleteFunc(found, func(info backend.Info) bool {
				hidden := strings.HasPrefix(info.Name, "packs/") || strings.HasPrefix(info.Name, "index/")
				return hidden && !slices.Contains(had, info.Name)
			})
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
		defer r.Close()
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
	var waited atomic.Bool
	b := &beside{Backend: m, lag: time.Millisecond, list: func(prefix string, found []backend.Info) []backend.Info {
		return slices.DeleteFunc(found, func(info backend.Info) bool {
			return strings.HasPrefix(info.Name, "snapshots/") && !slices.Contains(had, info.Name) && !waited.Load()
		})
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
	defer r.Close()
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
