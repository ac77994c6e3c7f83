package snapshotter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// otherRepo is a repository with secrets of its own.
func otherRepo(t testing.TB, kind chunk.SplitterKind, avg int, seed byte) *repo.Repo {
	t.Helper()
	random := &lockedRand{r: rand.NewChaCha8([32]byte{seed, 77})}
	p, err := chunk.NewParams(kind, avg, random)
	if err != nil {
		t.Fatal(err)
	}
	return initRepo(t, repo.InitOptions{Params: p, FrameSize: 8 << 10, PackSize: 64 << 10}, random)
}

// likeRepo is an empty repository with another one's secrets.
func likeRepo(t testing.TB, r *repo.Repo, seed byte) *repo.Repo {
	t.Helper()
	return initRepo(t, repo.InitOptions{Like: r}, &lockedRand{r: rand.NewChaCha8([32]byte{seed, 78})})
}

func initRepo(t testing.TB, in repo.InitOptions, random *lockedRand) *repo.Repo {
	t.Helper()
	r, err := repo.Init(t.Context(), backend.NewMem(), in, repo.Options{Random: random, Now: func() time.Time { return epoch }, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func mustCopy(t testing.TB, c *Copier, j CopyJob) *repo.Snapshot {
	t.Helper()
	s, err := c.Copy(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// edits are what happens to a file between two snapshots.
var edits = []struct {
	name string
	do   func(p []byte, rng *rand.Rand) []byte
}{
	{"overwrite", func(p []byte, rng *rand.Rand) []byte {
		at := rng.IntN(len(p))
		fillWith(p[at:min(len(p), at+1+rng.IntN(9000))], rng)
		return p
	}},
	{"insert", func(p []byte, rng *rand.Rand) []byte {
		more := make([]byte, 1+rng.IntN(9000))
		fillWith(more, rng)
		return slices.Insert(p, rng.IntN(len(p)), more...)
	}},
	{"delete", func(p []byte, rng *rand.Rand) []byte {
		at := rng.IntN(len(p))
		return slices.Delete(p, at, min(len(p), at+1+rng.IntN(9000)))
	}},
	{"append", func(p []byte, rng *rand.Rand) []byte {
		more := make([]byte, 1+rng.IntN(40000))
		fillWith(more, rng)
		return append(p, more...)
	}},
	{"zeros", func(p []byte, rng *rand.Rand) []byte {
		at := rng.IntN(len(p))
		clear(p[at:min(len(p), at+1+rng.IntN(3*chunk.ZeroRun))])
		return p
	}},
	{"more zeros", func(p []byte, rng *rand.Rand) []byte {
		return slices.Insert(p, rng.IntN(len(p)), make([]byte, 1+rng.IntN(2*chunk.ZeroRun))...)
	}},
	{"zeros again", func(p []byte, rng *rand.Rand) []byte {
		at := rng.IntN(len(p))
		clear(p[at:min(len(p), at+chunk.ZeroRun+rng.IntN(100))])
		return p
	}},
	{"nothing", func(p []byte, _ *rand.Rand) []byte { return p }},
	{"chunks out", nil},
	{"chunks twice", nil},
}

// byChunks takes out, or doubles, a few chunks as a snapshot has them: then the
// source's chunks are the same before and behind.
func byChunks(t testing.TB, r *repo.Repo, s *repo.Snapshot, twice bool, p []byte, rng *rand.Rand) []byte {
	var xs []tree.Extent
	for x, err := range at(t, r, s, "sub/big").(tree.Extenter).Extents(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		xs = append(xs, x)
	}
	from := rng.IntN(len(xs))
	to := min(len(xs)-1, from+rng.IntN(4))
	a, b := xs[from].Off, xs[to].Off+xs[to].Len
	if twice {
		return slices.Insert(p, int(b), slices.Clone(p[a:b])...)
	}
	return slices.Delete(p, int(a), int(b))
}

func fillWith(p []byte, rng *rand.Rand) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// withHole gives a file a hole somewhere, in pages.
func withHole(m *mem, rng *rand.Rand) {
	m.holes = nil
	n := int64(len(m.data))
	if n < 40<<10 || rng.IntN(2) == 0 {
		return
	}
	from := rng.Int64N(n/2) &^ 4095
	to := from + (1+rng.Int64N(4))<<12
	clear(m.data[from:to])
	if from > 0 {
		m.holes = append(m.holes, tree.Extent{Len: from, Kind: tree.Data})
	}
	m.holes = append(m.holes, tree.Extent{Off: from, Len: to - from, Kind: tree.Hole}, tree.Extent{Off: to, Len: n - to, Kind: tree.Data})
	m.attr.Allocated = n - (to - from)
}

// TestCopyIsASnapshot: the copy of a snapshot has the very pages that a snapshot
// into the destination would have had, whatever was copied before, whatever the
// two repositories cut with, and although little is read.
func TestCopyIsASnapshot(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for _, tt := range []struct {
		name     string
		from, to chunk.SplitterKind
		fa, ta   int
	}{
		{"to coarser", chunk.Rabin, chunk.Gear, chunk.MinAvg, 8 << 10},
		{"to finer", chunk.Gear, chunk.Rabin, 8 << 10, chunk.MinAvg},
		{"other secrets", chunk.Gear, chunk.Gear, 2 << 10, 2 << 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 1))
			src, dst := otherRepo(t, tt.from, tt.fa, 1), otherRepo(t, tt.to, tt.ta, 2)
			like := likeRepo(t, dst, 3)
			var p CopyProgress
			c := NewCopier(src, dst, CopyOptions{Progress: &p, Logf: t.Logf})
			if c.AsIs() {
				t.Fatal("two repositories pass for one")
			}
			data := random(seed, 600<<10)
			m := file("big", data)
			root := dir("", dir("sub", m, file("small", []byte("small"))), file("empty", nil), file("z", make([]byte, 30000)))
			var near, its *repo.Snapshot
			for i := range 25 {
				e := edits[rng.IntN(len(edits))]
				if i > 0 {
					if e.do != nil {
						m.set(e.do(m.data, rng))
					} else {
						m.set(byChunks(t, src, near, e.name == "chunks twice", m.data, rng))
					}
					withHole(m, rng)
					m.attr.Mtime.Sec++
					m.attr.Ctime.Sec++
				}
				s := mustRun(t, src, root, func(o *Options) { o.NoParent = true })
				want := mustRun(t, like, root, func(o *Options) { o.NoParent = true })
				got := mustCopy(t, c, CopyJob{Snapshot: s, Near: near, NearCopy: its})
				if got.Tree != want.Tree || got.Witness != want.Witness || got.Totals != want.Totals {
					t.Fatalf("step %d, %s: the copy has tree %s and witness %s, a snapshot %s and %s", i, e.name, got.Tree, got.Witness, want.Tree, want.Witness)
				}
				if c := contents(t, at(t, dst, got, "sub/big")); c != string(m.data) {
					t.Fatalf("step %d, %s: the copy holds other bytes", i, e.name)
				}
				near, its = s, got
			}
			if p.ReadBytes.Load() > 25*600<<10/2 {
				t.Errorf("%d bytes were read for 25 copies of a file of about %d", p.ReadBytes.Load(), len(data))
			}
		})
	}
}

// TestCopyReadsOnce: names of one file, moved files and files that are there twice
// are read once, in one snapshot and in the next.
func TestCopyReadsOnce(t *testing.T) {
	src, dst := otherRepo(t, chunk.Gear, chunk.MinAvg, 1), otherRepo(t, chunk.Rabin, chunk.MinAvg, 2)
	one, moved := random(1, 100<<10), random(2, 50<<10)
	a, b := file("a", one), file("b", one)
	a.attr.Nlink, b.attr.Nlink, b.attr.Ino = 2, 2, a.attr.Ino
	root := dir("", a, b, file("c", one), dir("d", file("m", moved)))
	var p CopyProgress
	c := NewCopier(src, dst, CopyOptions{Progress: &p})
	s := mustRun(t, src, root, nil)
	its := mustCopy(t, c, CopyJob{Snapshot: s})
	if n := p.ReadBytes.Load(); n != 150<<10 {
		t.Errorf("%d bytes were read, want %d", n, 150<<10)
	}
	for i := range 2 {
		name := fmt.Sprint("n", i)
		root.children[3].children[0].attr.Name = name
		s2 := mustRun(t, src, root, nil)
		if i == 1 {
			c = NewCopier(src, dst, CopyOptions{Progress: &p}) // remembers nothing
		}
		before := p.ReadBytes.Load()
		its2 := mustCopy(t, c, CopyJob{Snapshot: s2, Near: s, NearCopy: its})
		if n, want := p.ReadBytes.Load()-before, uint64(i*50<<10); n != want {
			t.Errorf("moved, copier %d: %d bytes were read, want %d", i, n, want)
		}
		if c := contents(t, at(t, dst, its2, "d/"+name)); c != string(moved) {
			t.Error("the moved file holds other bytes")
		}
	}
	if n := at(t, dst, its, "b").Attr(); n.Nlink != 2 || n.Ino != at(t, dst, its, "a").Attr().Ino {
		t.Errorf("the second name is another file: %+v", n)
	}
}

// TestCopyServesTheHost: after copying, the original's host makes its next
// snapshot into the destination without reading what did not change.
func TestCopyServesTheHost(t *testing.T) {
	for _, like := range []bool{false, true} {
		src := otherRepo(t, chunk.Gear, chunk.MinAvg, 1)
		dst := otherRepo(t, chunk.Rabin, chunk.MinAvg, 2)
		if like {
			dst = likeRepo(t, src, 2)
		}
		var opened []string
		f, g := file("f", random(1, 20<<10)), file("g", random(2, 20<<10))
		f.opened, g.opened = &opened, &opened
		root := dir("", f, g)
		s := mustRun(t, src, root, nil)
		c := NewCopier(src, dst, CopyOptions{})
		if c.AsIs() != like {
			t.Fatalf("copies as they are: %t", c.AsIs())
		}
		its := mustCopy(t, c, CopyJob{Snapshot: s})
		opened = nil
		g.set(random(3, 20<<10))
		g.attr.Mtime.Sec++
		next := mustRun(t, dst, root, nil)
		if !slices.Equal(opened, []string{"g"}) || next.Parent == nil || *next.Parent != its.ID {
			t.Errorf("like %t: opened %v, parent %v; want only g, and the copy", like, opened, next.Parent)
		}
	}
}

// TestCopyAfterPrune: what a copier remembers of what it stored counts only while
// that is there.
func TestCopyAfterPrune(t *testing.T) {
	for _, like := range []bool{false, true} {
		src := otherRepo(t, chunk.Gear, chunk.MinAvg, 1)
		dst := otherRepo(t, chunk.Rabin, chunk.MinAvg, 2)
		if like {
			dst = likeRepo(t, src, 2)
		}
		root := dir("", file("f", random(1, 200<<10)), dir("d", file("g", random(2, 90<<10))))
		s := mustRun(t, src, root, nil)
		c := NewCopier(src, dst, CopyOptions{Logf: t.Logf})
		its := mustCopy(t, c, CopyJob{Snapshot: s})
		if _, err := dst.Forget(t.Context(), []repo.ID{its.ID}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := dst.Prune(t.Context(), repo.PruneOptions{MaxRepack: -1, Grace: time.Hour, Progress: &repo.PruneProgress{}}); err != nil {
				t.Fatal(err)
			}
		}
		its = mustCopy(t, c, CopyJob{Snapshot: s, Near: s, NearCopy: its})
		res, err := dst.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) { t.Errorf("like %t: %s %s: %v", like, d.Object, d.Path, d.Err) })
		if err != nil || res.Snapshots != 1 {
			t.Errorf("%d snapshots, %v", res.Snapshots, err)
		}
		if got := contents(t, at(t, dst, its, "f")); !bytes.Equal([]byte(got), random(1, 200<<10)) {
			t.Error("the copy holds other bytes")
		}
	}
}
