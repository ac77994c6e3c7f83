package test

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/index"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/test/gen"
)

// grown writes a generated tree of moderate size.
func grown(t testing.TB, seed uint64) string {
	t.Helper()
	dir := t.TempDir()
	opt := gen.Default(seed)
	opt.Files, opt.Bytes, opt.Wide, opt.Deep = 150, 8<<20, 400, 30
	generate(t, dir, opt)
	return dir
}

func generate(t testing.TB, dir string, opt gen.Options) gen.Manifest {
	t.Helper()
	t.Logf("seed %d", opt.Seed)
	m, err := gen.Tree(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range m.Skipped {
		t.Logf("not in the tree: %s", s)
	}
	return m
}

// way is one of the ways to make a snapshot that must not matter for its tree.
type way struct {
	name  string
	pack  int // bytes
	frame int
	level seal.Level
	opt   func(*snapshotter.Options)
}

func workers(n int) func(*snapshotter.Options) {
	return func(o *snapshotter.Options) { o.Workers = n }
}

// TestSameTree makes snapshots of one tree, then of the same tree grown older,
// in many ways: each must have the same roots.
func TestSameTree(t *testing.T) {
	t.Parallel()
	dir := grown(t, 11)
	params, err := chunk.NewParams(chunk.Rabin, 16<<10, seeded(3))
	if err != nil {
		t.Fatal(err)
	}
	repos := map[string]*repo.Repo{}
	ways := []way{
		{name: "one worker", opt: workers(1)},
		{name: "two workers", opt: workers(2)},
		{name: "seven workers", opt: workers(7)},
		{name: "small packs", pack: 64 << 10},
		{name: "large packs", pack: 128 << 20},
		{name: "small frames", frame: 4 << 10},
		{name: "large frames", frame: 8 << 20, pack: 64 << 20},
		{name: "better compression", level: seal.Better},
		{name: "no parent", opt: func(o *snapshotter.Options) { o.NoParent = true }},
	}
	for round := range 3 {
		want := repo.PageID{}
		for _, w := range ways {
			r := repos[w.name]
			if r == nil {
				r = alike(t, params, w)
				repos[w.name] = r
			}
			s := snapshot(t, r, live(t, dir), w.opt)
			if want.IsZero() {
				want = s.Tree
			}
			if s.Tree != want {
				t.Errorf("round %d, %s: tree %s, with one worker %s", round, w.name, s.Tree, want)
			}
		}
		sameRestored(t, "restored", repos["seven workers"], snapshots(t, repos["seven workers"])[round], live(t, dir))
		if _, err := gen.Mutate(dir, uint64(100+round), 0.2); err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range repos {
		clean(t, name, r)
	}
}

// alike makes repositories of the same secrets, but sizes of their own: the
// secrets come from a source that repeats.
func alike(t testing.TB, params chunk.Params, w way) *repo.Repo {
	t.Helper()
	opt := options(t)
	opt.Level, opt.Random = w.level, seeded(42)
	r, err := repo.Init(t.Context(), newMem(), repo.InitOptions{Params: params, FrameSize: w.frame, PackSize: w.pack}, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// opened counts how many files of a tree are opened.
type opened struct {
	mu    sync.Mutex
	paths []string
}

// watched is a node whose files tell when they are opened.
type watched struct {
	tree.Node
	path string
	o    *opened
}

type watchedFile struct{ watched }

func (w *watchedFile) Open(ctx context.Context) (tree.OpenFile, error) {
	w.o.mu.Lock()
	w.o.paths = append(w.o.paths, w.path)
	w.o.mu.Unlock()
	return w.Node.(tree.Opener).Open(ctx)
}

func (w watched) wrap(n tree.Node) tree.Node {
	c := watched{n, w.path + "/" + n.Attr().Name, w.o}
	if _, ok := n.(tree.Opener); ok {
		return &watchedFile{c}
	}
	return c
}

func (w watched) Lookup(ctx context.Context, name string) (tree.Node, error) {
	n, err := w.Node.Lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	return w.wrap(n), nil
}

func (w watched) Entries(ctx context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		for n, err := range w.Node.Entries(ctx, from) {
			if err == nil {
				n = w.wrap(n)
			}
			if !yield(n, err) {
				return
			}
		}
	}
}

// TestUnchangedFilesAreNotOpened opens only what changed, and stores nothing
// for what did not.
func TestUnchangedFilesAreNotOpened(t *testing.T) {
	t.Parallel()
	dir := grown(t, 12)
	r := initRepo(t, newMem(), small(t))
	o := &opened{}
	src := func() tree.Node { return watched{live(t, dir), "", o} }
	s1 := snapshot(t, r, src(), nil)
	if n := uint64(len(o.paths)); n == 0 || s1.Stats.New != n {
		t.Errorf("first snapshot: %d files opened, the record says %d", n, s1.Stats.New)
	}
	o.paths = nil
	s2 := snapshot(t, r, src(), nil)
	if s2.Stats.ReadBytes > 0 || s2.Stats.NewBytes > 0 || s2.Tree != s1.Tree {
		t.Errorf("unchanged tree: %d bytes read, %d new, trees equal: %v", s2.Stats.ReadBytes, s2.Stats.NewBytes, s2.Tree == s1.Tree)
	}
	// A time that is still to come proves nothing: such files are read.
	future := map[string]bool{"/times/2038": true, "/times/2106": true, "/times/2400": true}
	for _, p := range o.paths {
		if !future[p] {
			t.Errorf("%q was opened although nothing changed", p)
		}
	}
	o.paths = nil
	changes, err := gen.Mutate(dir, 5, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	may := maps.Clone(future)
	for _, m := range changes {
		may["/"+m.Path], may["/"+m.To] = true, true
	}
	inodes := map[uint64]bool{} // a hard link's other names are the same file
	for p := range may {
		if n, err := nodeAt(t.Context(), live(t, dir), p); err == nil {
			inodes[n.Attr().Ino] = true
		}
	}
	s3 := snapshot(t, r, src(), nil)
	if len(o.paths) == 0 {
		t.Error("nothing was opened although files changed")
	}
	for _, p := range o.paths {
		n, err := nodeAt(t.Context(), live(t, dir), p)
		if err != nil || !may[p] && !inodes[n.Attr().Ino] {
			t.Errorf("%q was opened although it did not change (%v)", p, err)
		}
	}
	if n := s3.Stats.Modified + s3.Stats.New; n == 0 || n > uint64(len(o.paths)) {
		t.Errorf("%d files were opened, the record says %d modified and %d new", len(o.paths), s3.Stats.Modified, s3.Stats.New)
	}
	sameRestored(t, "after the changes", r, s3, live(t, dir))
}

func nodeAt(ctx context.Context, n tree.Node, path string) (tree.Node, error) {
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		c, err := n.Lookup(ctx, name)
		if err != nil {
			return nil, err
		}
		n = c
	}
	return n, nil
}

// TestIndexLostInTheMiddle removes the index while a snapshot runs: it is a
// cache. Files that vanish cost nothing; an index that forgets everything may
// cost storing again what it knew, but never changes a tree.
func TestIndexLostInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := grown(t, 13)
	for _, forget := range []bool{false, true} {
		b := newMem()
		opt := options(t)
		opt.CacheDir = t.TempDir()
		r, err := repo.Init(t.Context(), b, small(t), opt)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		s1 := snapshot(t, r, live(t, dir), nil)
		id, names := r.Config().Repo.String(), 0
		lose := func(string, *tree.Attr) snapshotter.Take {
			if names++; names%300 == 0 {
				if _, err := index.Clear(opt.CacheDir, id); err != nil {
					t.Error(err)
				}
				if err := os.RemoveAll(index.RepoDir(opt.CacheDir, id)); err != nil {
					t.Error(err)
				}
				if forget {
					if err := r.Index().Rebuild(t.Context(), names%600 == 0); err != nil {
						t.Error(err)
					}
				}
			}
			return snapshotter.Whole
		}
		s2 := snapshot(t, r, live(t, dir), func(o *snapshotter.Options) { o.NoParent, o.Filter = true, lose })
		if s2.Tree != s1.Tree {
			t.Errorf("tree %s, with the index in place %s", s2.Tree, s1.Tree)
		}
		if !forget && s2.Stats.NewBytes > 0 {
			t.Errorf("%d bytes were stored again", s2.Stats.NewBytes)
		}
		again := open(t, b)
		clean(t, "without a cache", again)
		same(t, "without a cache", live(t, dir), stored(t, again, s2))
	}
}

// TestTwoSnapshotsAtOnce writes two different trees, with much in common, into
// one repository, while others read: nobody waits for or refuses another.
func TestTwoSnapshotsAtOnce(t *testing.T) {
	t.Parallel()
	dirs := []string{grown(t, 14), grown(t, 14)}
	if _, err := gen.Mutate(dirs[1], 1, 0.3); err != nil {
		t.Fatal(err)
	}
	b := newMem()
	first := initRepo(t, b, small(t))
	base := snapshot(t, first, live(t, dirs[0]), func(o *snapshotter.Options) { o.Name = "base" })
	if _, err := gen.Mutate(dirs[0], 2, 0.3); err != nil {
		t.Fatal(err)
	}
	baseTree := stored(t, first, base)

	var wg sync.WaitGroup
	results := make([]*repo.Snapshot, 4)
	for i := range results {
		r := first
		if i%2 == 1 {
			r = open(t, b) // another process, as far as the repository can tell
		}
		wg.Go(func() {
			s, err := trySnapshot(t, r, live(t, dirs[i%2]), func(o *snapshotter.Options) { o.Name = fmt.Sprintf("host%d", i) })
			if err != nil {
				t.Errorf("snapshot %d: %v", i, err)
				return
			}
			results[i] = s
		})
	}
	reader := open(t, b)
	wg.Go(func() { clean(t, "verify beside snapshots", reader) })
	target := t.TempDir()
	wg.Go(func() {
		if err := restoreTo(t.Context(), reader, base, target); err != nil {
			t.Errorf("restore beside snapshots: %v", err)
		}
	})
	wg.Wait()
	if t.Failed() {
		return
	}
	after := open(t, b)
	for i, s := range results {
		if s.Tree != results[i%2].Tree {
			t.Errorf("snapshot %d has another tree than %d", i, i%2)
		}
		same(t, fmt.Sprintf("snapshot %d", i), live(t, dirs[i%2]), stored(t, after, s))
	}
	same(t, "restored beside snapshots", baseTree, live(t, target))
	if res := clean(t, "afterwards", after); res.Dead != 0 || res.Snapshots != 5 {
		t.Errorf("%d intents left, %d snapshots", res.Dead, res.Snapshots)
	}
}
