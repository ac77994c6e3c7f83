package test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// copyOf returns a Mem that holds what b holds.
func copyOf(t testing.TB, b backend.Backend) *backend.Mem {
	t.Helper()
	m := newMem()
	for info, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.Get(t.Context(), info.Name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Put(t.Context(), info.Name, p); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// many makes so many snapshots that the next one merges index segments.
func (st *stage) many(t testing.TB) {
	t.Helper()
	r := open(t, st.before)
	dir := t.TempDir()
	for i := range 63 {
		if err := os.WriteFile(fmt.Sprintf("%s/file%d", dir, i), fmt.Appendf(nil, "file %d", i), 0o644); err != nil {
			t.Fatal(err)
		}
		snapshot(t, r, live(t, dir), func(o *snapshotter.Options) { o.Name = "other" })
	}
	n := 0
	for range st.before.List(t.Context(), "index/") {
		n++
	}
	if n != 64 {
		t.Fatalf("%d segments, want 64", n)
	}
}

// stage is where sweeps play: a repository with one snapshot, and the tree
// that it was made of, as it was then and as it is now.
type stage struct {
	old, now string // folders
	before   *backend.Mem
	first    *repo.Snapshot
}

func newStage(t testing.TB, large bool) *stage {
	t.Helper()
	st := &stage{old: t.TempDir(), now: t.TempDir(), before: newMem()}
	for _, dir := range []string{st.old, st.now} {
		little(t, dir, 1)
		if large {
			bulk(t, dir, 70, 3) // so many packs that segments are published on the way
		}
	}
	little(t, st.now, 2)
	if large {
		bulk(t, st.now, 71, 3)
	}
	st.first = snapshot(t, initRepo(t, st.before, small(t)), live(t, st.old), nil)
	return st
}

// job is what a sweep lets fail. It opens a repository of its own in b, as a
// new process would.
type job struct {
	name  string
	empty bool // begins with nothing
	run   func(t testing.TB, st *stage, b backend.Backend) error
}

var jobs = []job{
	{"init and snapshot", true, func(t testing.TB, st *stage, b backend.Backend) error {
		r, err := repo.Init(t.Context(), b, small(t), options(t))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = trySnapshot(t, r, live(t, st.old), nil)
		return err
	}},
	{"second snapshot", false, func(t testing.TB, st *stage, b backend.Backend) error {
		r, err := repo.Open(t.Context(), b, options(t))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = trySnapshot(t, r, live(t, st.now), nil)
		return err
	}},
	{"restore", false, func(t testing.TB, st *stage, b backend.Backend) error {
		r, err := repo.Open(t.Context(), b, options(t))
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := r.Index().Sync(t.Context()); err != nil {
			return err
		}
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			return err
		}
		if err := restoreTo(t.Context(), r, st.first, dir); err != nil {
			return err
		}
		// Success in spite of the fault must be success.
		same(t, "restored in spite of a fault", live(t, st.old), live(t, dir))
		return nil
	}},
	{"verify", false, func(t testing.TB, st *stage, b backend.Backend) error {
		r, err := repo.Open(t.Context(), b, options(t))
		if err != nil {
			return err
		}
		defer r.Close()
		var mu sync.Mutex
		var found []error
		_, err = r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) {
			mu.Lock()
			found = append(found, d.Err)
			mu.Unlock()
		})
		for _, e := range found {
			// A call that failed is reported as what it is, never as damage.
			if !errors.Is(e, backendtest.ErrInjected) && !errors.Is(e, backendtest.ErrCrashed) {
				t.Errorf("a failed call was reported as %v", e)
			}
		}
		return errors.Join(append(found, err)...)
	}},
}

// healthy is what must hold after any fault: what was stored before is there,
// nothing is damaged, and the job succeeds when it is run again.
func (st *stage) healthy(t testing.TB, what string, j job, b backend.Backend) {
	t.Helper()
	if j.empty {
		st.healthyFromNothing(t, what, j, b)
		return
	}
	r, err := repo.Open(t.Context(), b, options(t))
	if err != nil {
		t.Errorf("%s: open: %v", what, err)
		return
	}
	defer r.Close()
	clean(t, what, r)
	if s := find(t, r, st.first.ID); s == nil {
		t.Errorf("%s: the old snapshot is gone", what)
	} else {
		same(t, what+": old snapshot", live(t, st.old), stored(t, r, s))
	}
	if err := j.run(t, st, b); err != nil {
		t.Errorf("%s: run again: %v", what, err)
	}
	st.after(t, what, j, b)
}

// healthyFromNothing runs init and snapshot again where they failed: init made
// a repository, or it can be made now.
func (st *stage) healthyFromNothing(t testing.TB, what string, j job, b backend.Backend) {
	t.Helper()
	r, err := repo.Open(t.Context(), b, options(t))
	switch {
	case errors.Is(err, repo.ErrNoRepo):
		err = j.run(t, st, b)
	case err == nil:
		defer r.Close()
		clean(t, what, r)
		_, err = trySnapshot(t, r, live(t, st.old), nil)
	}
	if err != nil {
		t.Errorf("%s: run again: %v", what, err)
		return
	}
	st.after(t, what, j, b)
}

// after looks at the repository once the job has succeeded.
func (st *stage) after(t testing.TB, what string, j job, b backend.Backend) {
	t.Helper()
	r, err := repo.Open(t.Context(), b, options(t))
	if err != nil {
		t.Errorf("%s, then run again: %v", what, err)
		return
	}
	defer r.Close()
	clean(t, what+", then run again", r)
	list := snapshots(t, r)
	if len(list) == 0 {
		t.Errorf("%s, then run again: there is no snapshot", what)
		return
	}
	want := st.old
	if j.name == "second snapshot" {
		want = st.now
	}
	same(t, what+", then run again", live(t, want), stored(t, r, list[len(list)-1]))
	if n := twice(t, r); n > 0 {
		t.Errorf("%s, then run again: %d chunks are stored twice", what, n)
	}
}

// twice counts chunks that lie in more than one pack: what a failed run stored
// must not be stored again.
func twice(t testing.TB, r *repo.Repo) int {
	t.Helper()
	b := r.Backend()
	seen, n := map[string]bool{}, 0
	for info, err := range b.List(t.Context(), "packs/") {
		if err != nil {
			t.Fatal(err)
		}
		name, ok := pack.ParseObject(info.Name)
		if !ok {
			t.Fatalf("%s is no pack's name", info.Name)
		}
		tr, err := pack.ReadTrailer(r.SecretKeys(), name, info.Size, func(off, n int64) ([]byte, error) {
			return b.Get(context.Background(), info.Name, off, n)
		})
		if err != nil {
			t.Error(err)
			continue
		}
		for _, f := range tr.Frames {
			for _, c := range f.Chunks {
				key := fmt.Sprint(tr.Kind, c.ID)
				if seen[key] {
					n++
				}
				seen[key] = true
			}
		}
	}
	return n
}

// TestFaultSweep fails every call of every job once, before it was done and
// after; in full size every third, of a larger tree.
func TestFaultSweep(t *testing.T) {
	st, step := newStage(t, slow()), 1
	if slow() {
		step = 3
	}
	for _, j := range jobs {
		for _, after := range []bool{false, true} {
			t.Run(strings.ReplaceAll(j.name, " ", "-")+map[bool]string{true: ",answer-lost"}[after], func(t *testing.T) {
				t.Parallel()
				st.sweep(t, j, after, step)
			})
		}
	}
}

// TestMergeSweep is the same for a snapshot that merges index segments; some
// of its many calls are failed, in full size more of them.
func TestMergeSweep(t *testing.T) {
	t.Parallel()
	st := newStage(t, false)
	st.many(t)
	step := 23
	if slow() {
		step = 8
	}
	st.sweep(t, jobs[1], false, step)
	st.sweep(t, jobs[1], true, step)
}

// sweep fails every step-th call of a job.
func (st *stage) sweep(t *testing.T, j job, after bool, step int) {
	failed := 0
	for n := 1; ; n += step {
		mem := newMem()
		if !j.empty {
			mem = copyOf(t, st.before)
		}
		f := backendtest.NewFaulty(mem, backendtest.Faults{Call: n, After: after})
		rec := backendtest.NewRecorder(f)
		err := j.run(t, st, rec)
		if f.Calls() < n {
			if err != nil {
				t.Errorf("without a fault: %v", err)
			}
			t.Logf("%d calls, answer lost: %v, %d of those that failed failed the job", f.Calls(), after, failed)
			return
		}
		if err != nil {
			failed++
			if !errors.Is(err, backendtest.ErrInjected) {
				t.Errorf("call %d: the error hides what happened: %v", n, err)
			}
		}
		what := failedCall(rec)
		// An unclear commit keeps its intent: the record might still arrive.
		if left := intents(t, mem); left > 0 && !strings.HasPrefix(what, "remove ") && !strings.HasPrefix(what, "put snapshots/") {
			t.Errorf("call %d, %s, failed: %d intents are left", n, what, left)
		}
		st.healthy(t, fmt.Sprintf("call %d, %s, failed (%v)", n, what, err), j, mem)
		if t.Failed() {
			return
		}
	}
}

// failedCall names the call that was made to fail.
func failedCall(rec *backendtest.Recorder) string {
	for _, op := range rec.Ops() {
		if errors.Is(op.Err, backendtest.ErrInjected) {
			return op.String()
		}
	}
	return "none"
}

func intents(t testing.TB, b backend.Backend) int {
	t.Helper()
	n := 0
	for _, err := range b.List(t.Context(), "intents/") {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

// TestCrashSweep stops after every Put: nothing is done from then on, not even
// tidying up.
func TestCrashSweep(t *testing.T) {
	st := newStage(t, slow())
	for _, j := range jobs[:2] {
		t.Run(strings.ReplaceAll(j.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				mem := newMem()
				if !j.empty {
					mem = copyOf(t, st.before)
				}
				f := backendtest.NewFaulty(mem, backendtest.Faults{CrashAfterPuts: n})
				err := j.run(t, st, f)
				if f.Puts() < n {
					if err != nil {
						t.Errorf("without a crash: %v", err)
					}
					t.Logf("%d puts", n-1)
					return
				}
				if err != nil && !errors.Is(err, backendtest.ErrCrashed) {
					t.Errorf("put %d: the error hides what happened: %v", n, err)
				}
				st.healthy(t, fmt.Sprintf("crash after put %d (%v)", n, err), j, mem)
				if t.Failed() {
					return
				}
			}
		})
	}
}
