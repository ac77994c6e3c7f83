package repo

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// moveAll does what prune does to packs, by another process: it copies what
// those of these kinds hold to new ones, and only then removes them.
func moveAll(t testing.TB, b backend.Backend, kinds ...pack.Kind) {
	t.Helper()
	r := testOpen(t, b)
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	var old []string
	for _, object := range names(t, b, "packs/") {
		if len(kinds) == 0 || slices.Contains(kinds, pack.Kind(get(t, b, object)[10])) {
			old = append(old, object)
		}
	}
	s, err := r.begin(t.Context(), func(pack.Name) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range old {
		name, _ := pack.ParseObject(object)
		p := get(t, b, object)
		tr, err := pack.ReadTrailer(r.k, name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
		if err != nil {
			t.Fatal(err)
		}
		st, read := s.Writer.Stream(tr.Kind), r.Store().Data
		if tr.Kind == pack.Meta {
			read = r.Store().Page
		}
		for _, f := range tr.Frames {
			for _, c := range f.Chunks {
				p, err := read(t.Context(), c.ID)
				if err == nil {
					_, err = st.Put(c.ID, p)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		st.Flush()
	}
	s.Abort(t.Context())
	for _, object := range old {
		if err := b.Remove(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

// removePacks takes all packs away.
func removePacks(t testing.TB, b backend.Backend) {
	t.Helper()
	for _, object := range names(t, b, "packs/") {
		if err := b.Remove(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBesideOthers lets others work beneath a check, at each of its calls in
// turn: nothing that they do is damage.
func TestBesideOthers(t *testing.T) {
	if testing.Short() {
		t.Skip("short: others work between calls here, not at the same time")
	}
	remove := func(t testing.TB, b backend.Backend, prefix string) {
		for _, name := range names(t, b, prefix) {
			if err := b.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	oneReader(t)
	base := backend.NewMem()
	w := testInit(t, base)
	first := commitFiles(t, w, Snapshot{}, filesOf(1, 6)...)
	commitFiles(t, w, Snapshot{}, filesOf(2, 6)...)
	writing := testBegin(t, w)
	defer writing.Abort(t.Context())
	for _, tt := range []struct {
		what string
		do   func(t testing.TB, b backend.Backend, s *Snapshot)
	}{
		{"packs move", func(t testing.TB, b backend.Backend, _ *Snapshot) { moveAll(t, b) }},
		{"packs of data move", func(t testing.TB, b backend.Backend, _ *Snapshot) { moveAll(t, b, pack.Data) }},
		{"packs of pages move", func(t testing.TB, b backend.Backend, _ *Snapshot) { moveAll(t, b, pack.Meta) }},
		{"packs move twice", func(t testing.TB, b backend.Backend, _ *Snapshot) { moveAll(t, b); moveAll(t, b) }},
		{"packs move, and all is forgotten", func(t testing.TB, b backend.Backend, _ *Snapshot) {
			moveAll(t, b)
			remove(t, b, "snapshots/")
		}},
		{"all is forgotten and pruned", func(t testing.TB, b backend.Backend, _ *Snapshot) {
			remove(t, b, "snapshots/")
			removePacks(t, b)
			remove(t, b, "index/")
		}},
		{"all is hidden and pruned", func(t testing.TB, b backend.Backend, _ *Snapshot) {
			r := testOpen(t, b)
			for _, name := range names(t, b, "snapshots/") {
				id, _ := ParseID(strings.TrimPrefix(name, "snapshots/"))
				put(t, r, r.SecretKeys(), "forgotten/"+id.String(), seal.KindForgotten, seal.ForList, Forgotten{V: 1, ID: id})
			}
			removePacks(t, b)
		}},
		{"the first is forgotten, the rest moves, segments are merged", func(t testing.TB, b backend.Backend, s *Snapshot) {
			if err := b.Remove(t.Context(), "snapshots/"+s.ID.String()); err != nil {
				t.Fatal(err)
			}
			mergeAll(t, b)
			moveAll(t, b)
		}},
		{"intents and heartbeats go", func(t testing.TB, b backend.Backend, _ *Snapshot) { remove(t, b, "intents/") }},
		{"a snapshot comes", func(t testing.TB, b backend.Backend, _ *Snapshot) {
			commitFiles(t, testOpen(t, b), Snapshot{}, filesOf(9, 3)...)
		}},
	} {
		for _, opt := range []CheckOptions{{}, {ReadData: true}} {
			calls := 1
			for at := 1; at <= calls; at++ {
				b := copyMem(t, base)
				under := &anyCall{Backend: b}
				r := testOpen(t, under)
				under.arm(at, func() { tt.do(t, b, first) })
				lines, _ := checked(t, r, opt)
				if len(lines) > 0 {
					t.Fatalf("%s before call %d of %d, read %t: %q", tt.what, at, under.calls, opt.ReadData, lines)
				}
				calls = under.calls
			}
			if calls < 20 {
				t.Errorf("%s: a check makes %d calls only", tt.what, calls)
			}
		}
	}
}

// TestBesideNobody: what is removed and was not moved is damage.
func TestBesideNobody(t *testing.T) {
	oneReader(t)
	base := backend.NewMem()
	commitFiles(t, testInit(t, base), Snapshot{}, filesOf(1, 6)...)
	for at := 1; at < 5; at++ {
		b := copyMem(t, base)
		under := &anyCall{Backend: b}
		r := testOpen(t, under)
		under.arm(at, func() { removePacks(t, b) })
		if lines, _ := checked(t, r, CheckOptions{}); len(lines) == 0 {
			t.Errorf("removed before call %d: nothing is told", at)
		}
	}
	// While packs are read: those of data, which nobody looks into later.
	b := copyMem(t, base)
	r := testOpen(t, b)
	r.b = &before{Backend: b, verb: "get", name: "packs/", do: func() {
		for _, object := range names(t, b, "packs/") {
			if get(t, b, object)[10] == byte(pack.Data) {
				if err := b.Remove(t.Context(), object); err != nil {
					t.Fatal(err)
				}
			}
		}
	}}
	if lines, _ := checked(t, r, CheckOptions{ReadData: true}); len(lines) != 6 {
		t.Errorf("removed before it was read: %q", lines)
	}
}

func copyMem(t testing.TB, from backend.Backend) *backend.Mem {
	t.Helper()
	to := backend.NewMem()
	for _, name := range names(t, from, "") {
		if err := to.Put(t.Context(), name, get(t, from, name)); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// mergeAll lists all packs in one new segment and removes the others.
func mergeAll(t testing.TB, b backend.Backend) {
	t.Helper()
	r := testOpen(t, b)
	old := names(t, b, "index/")
	var all []*pack.Trailer
	for _, object := range names(t, b, "packs/") {
		name, _ := pack.ParseObject(object)
		p := get(t, b, object)
		tr, err := pack.ReadTrailer(r.k, name, int64(len(p)), func(off, n int64) ([]byte, error) { return p[off : off+n], nil })
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, tr)
	}
	if err := r.Index().Publish(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	for _, name := range old {
		if err := b.Remove(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// anyCall does something before one of its calls, whichever that is.
type anyCall struct {
	backend.Backend

	mu    sync.Mutex
	calls int
	at    int // 0: never
	do    func()
}

func (a *anyCall) arm(at int, do func()) { a.calls, a.at, a.do = 0, at, do }

func (a *anyCall) call() {
	a.mu.Lock()
	a.calls++
	now := a.calls == a.at
	a.mu.Unlock()
	if now {
		a.do()
	}
}

func (a *anyCall) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	a.call()
	return a.Backend.Get(ctx, name, off, n)
}

func (a *anyCall) Put(ctx context.Context, name string, p []byte) error {
	a.call()
	return a.Backend.Put(ctx, name, p)
}

func (a *anyCall) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		a.call()
		for info, err := range a.Backend.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}
