package test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/fs/restore"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// filesIn tells which files of a stored tree need a pack.
func filesIn(t testing.TB, r *repo.Repo, root tree.Node, name pack.Name) []string {
	t.Helper()
	needs := map[string]bool{}
	var walk func(n tree.Node, path string)
	walk = func(n tree.Node, path string) {
		for c, err := range n.Entries(t.Context(), 0) {
			if err != nil {
				t.Fatal(err)
			}
			p := path + c.Attr().Name
			if c.Attr().Kind == tree.Dir {
				walk(c, p+"/")
				continue
			}
			if c.Attr().Kind != tree.File {
				continue
			}
			for x, err := range c.(tree.Extenter).Extents(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				if x.Kind != tree.Data {
					continue
				}
				locs, err := r.Index().Lookup(x.ID, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range locs {
					needs[p] = needs[p] || l.Pack == name
				}
			}
			if !needs[p] {
				delete(needs, p)
			}
		}
	}
	walk(root, "")
	return slices.Sorted(maps.Keys(needs))
}

// TestLostPack takes each pack away in turn, or damages a frame in its middle:
// exactly the files that need it are named, in each snapshot that has them, and
// all others can be restored.
func TestLostPack(t *testing.T) {
	st := newStage(t, false)
	r := open(t, st.before)
	second := snapshot(t, r, live(t, st.now), nil)
	whole := objects(t, st.before)
	for name := range whole {
		id, ok := pack.ParseObject(name)
		if !ok {
			continue
		}
		packKind := whole[name][10]
		want := map[string][]string{}
		for _, s := range []*repo.Snapshot{st.first, second} {
			want[s.ID.String()] = filesIn(t, r, stored(t, r, s), id)
		}
		for _, how := range []string{"removed", "damaged"} {
			mem := copyOf(t, st.before)
			if how == "removed" {
				if err := mem.Remove(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			} else {
				replace(t, mem, name, flipped(whole[name], len(whole[name])/2, 1))
			}
			bad := open(t, mem)
			got := damagedFiles(t, bad)
			if pack.Kind(packKind) == pack.Meta {
				if len(got) == 0 {
					t.Errorf("%s %s: pages are lost, and no path is named", name, how)
				}
				continue
			}
			for _, s := range []*repo.Snapshot{st.first, second} {
				paths := slices.Sorted(maps.Keys(got[s.ID.String()]))
				all := want[s.ID.String()]
				// Removed, every file that needs the pack is hit; damaged in
				// one frame, some of them.
				if how == "removed" && !slices.Equal(paths, all) || how == "damaged" && !subset(paths, all) {
					t.Errorf("%s %s: named %q of %s, want %q", name, how, paths, s.ID, all)
				}
				st.restoresTheRest(t, name+" "+how, bad, s, got[s.ID.String()])
			}
		}
	}
}

func subset(some, all []string) bool {
	for _, s := range some {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}

// damagedFiles checks a repository and returns what is named, by snapshot and
// path.
func damagedFiles(t testing.TB, r *repo.Repo) map[string]map[string]bool {
	t.Helper()
	named := map[string]map[string]bool{}
	_, err := r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) {
		if d.Snapshot == nil {
			return
		}
		id := d.Snapshot.ID.String()
		if named[id] == nil {
			named[id] = map[string]bool{}
		}
		named[id][d.Path] = true
		if !errors.Is(d.Err, chunk.ErrMissing) && !errors.Is(d.Err, chunk.ErrCorrupt) {
			t.Errorf("%q: %v", d.Path, d.Err)
		}
	})
	if err != nil {
		t.Error(err)
	}
	return named
}

// restoresTheRest restores a damaged snapshot: what is damaged is told and not
// written, all else is there.
func (st *stage) restoresTheRest(t *testing.T, what string, r *repo.Repo, s *repo.Snapshot, damaged map[string]bool) {
	t.Helper()
	out, err := os.MkdirTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(out)
	told := map[string]bool{}
	var mu sync.Mutex
	_, err = restore.Run(t.Context(), []restore.Item{{Node: stored(t, r, s)}}, out, restore.Options{Observer: restore.Observer{
		Problem: func(path string, err error) {
			mu.Lock()
			defer mu.Unlock()
			told[path] = true
		}}})
	if (err != nil) != (len(damaged) > 0) {
		t.Errorf("%s: restore: %v, damaged are %d files", what, err, len(damaged))
	}
	if !maps.Equal(told, damaged) {
		t.Errorf("%s: restore told of %v, check of %v", what, told, damaged)
	}
	src := st.old
	if s.ID != st.first.ID {
		src = st.now
	}
	for p := range damaged {
		if _, err := os.Lstat(out + "/" + p); err == nil {
			t.Errorf("%s: %q is there although it is damaged", what, p)
		}
	}
	list, err := os.ReadDir(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if !e.Type().IsRegular() || damaged[e.Name()] {
			continue
		}
		want, err := os.ReadFile(src + "/" + e.Name())
		got, err2 := os.ReadFile(out + "/" + e.Name())
		if err := errors.Join(err, err2); err != nil || string(got) != string(want) {
			t.Errorf("%s: %s is not as it was: %v", what, e.Name(), fmt.Sprint(err))
		}
	}
}

// TestLostSegments removes the whole index of a repository: packs list
// themselves.
func TestLostSegments(t *testing.T) {
	st := newStage(t, false)
	for info := range st.before.List(t.Context(), "index/") {
		if err := st.before.Remove(t.Context(), info.Name); err != nil {
			t.Fatal(err)
		}
	}
	r, err := tryOpen(t, st.before, options(t))
	if err != nil {
		t.Fatal(err)
	}
	s := snapshot(t, r, live(t, st.old), func(o *snapshotter.Options) { o.NoParent = true })
	if s.Stats.NewBytes > 0 || s.Tree != st.first.Tree {
		t.Errorf("%d bytes were stored again", s.Stats.NewBytes)
	}
	again := open(t, st.before)
	clean(t, "without segments", again)
	sameRestored(t, "without segments", again, st.first, live(t, st.old))
}
