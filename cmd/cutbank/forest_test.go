package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// forest is snapshots in memory: pages by ID, and what each snapshot holds.
type forest struct {
	t     *testing.T
	pages map[chunk.ID][]byte
	reads map[chunk.ID]int
	snaps []*repo.Snapshot
	holds []map[string]leaf // by path
}

// leaf is a file: its mtime and the numbers of its chunks.
type leaf struct {
	mtime  int64
	chunks []byte
}

const leafChunk = 1000 // bytes of every chunk

func newForest(t *testing.T) *forest {
	return &forest{t: t, pages: map[chunk.ID][]byte{}, reads: map[chunk.ID]int{}}
}

func dataID(n byte) chunk.ID { return chunk.Digest([]byte{'d', n}) }

func (f *forest) put(p []byte) (chunk.ID, error) {
	id := chunk.ID(chunk.Digest(p))
	f.pages[id] = slices.Clone(p)
	return id, nil
}

func (f *forest) get(_ context.Context, id chunk.ID) ([]byte, error) {
	f.reads[id]++
	p, ok := f.pages[id]
	if !ok {
		return nil, fmt.Errorf("page %s: %w", id, chunk.ErrMissing)
	}
	return p, nil
}

// lookup says that a frame takes half of what it holds.
func (f *forest) lookup(id chunk.ID, dst []pack.Location) ([]pack.Location, error) {
	n := uint32(leafChunk)
	if p, ok := f.pages[id]; ok {
		n = uint32(len(p))
	}
	return append(dst, pack.Location{Len: n, Plain: 2 * n, Stored: n}), nil
}

// add makes a snapshot of files.
func (f *forest) add(name string, files map[string]leaf) {
	f.t.Helper()
	root := f.dir(tree.RootName, files)
	w := tree.NewDirWriter(f.put)
	must(f.t, w.Add(root))
	var top tree.Entry
	must(f.t, w.Finish(&top))
	n := len(f.snaps)
	s := &repo.Snapshot{ID: repo.ID{byte(n + 1)}, Name: name, Dir: fmt.Sprintf("time-%02d", n), Time: time.Unix(int64(n), 0), Tree: repo.PageID{ID: top.Root}}
	f.snaps = append(f.snaps, s)
	f.holds = append(f.holds, maps.Clone(files))
}

func (f *forest) dir(name string, files map[string]leaf) *tree.Entry {
	f.t.Helper()
	entries := map[string]*tree.Entry{}
	below := map[string]map[string]leaf{}
	for p, l := range files {
		first, rest, deeper := strings.Cut(p, "/")
		if deeper {
			if below[first] == nil {
				below[first] = map[string]leaf{}
			}
			below[first][rest] = l
			continue
		}
		e := &tree.Entry{Attr: tree.Attr{Name: first, Kind: tree.File, Mode: 0o644, Mtime: tree.Time{Sec: l.mtime}, Nlink: 1}}
		r := tree.NewRecipeWriter(f.put)
		for _, c := range l.chunks {
			must(f.t, r.Add(tree.Extent{Len: leafChunk, Kind: tree.Data, End: tree.EndSplitter, ID: dataID(c)}))
		}
		must(f.t, r.Finish(e))
		e.Allocated = e.Size
		entries[first] = e
	}
	for d, fs := range below {
		entries[d] = f.dir(d, fs)
	}
	w := tree.NewDirWriter(f.put)
	for _, n := range slices.Sorted(maps.Keys(entries)) {
		must(f.t, w.Add(entries[n]))
	}
	e := &tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
	must(f.t, w.Finish(e))
	return e
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// grow adds snapshots of a tree that changes at random.
func (f *forest) grow(seed uint64, n int) {
	f.t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	files := map[string]leaf{}
	random := func() leaf {
		l := leaf{mtime: int64(rnd.IntN(3))}
		for range rnd.IntN(9) {
			l.chunks = append(l.chunks, byte(rnd.IntN(20)))
		}
		return l
	}
	for range 300 {
		p := fmt.Sprintf("f%03d", rnd.IntN(200))
		for range rnd.IntN(3) {
			p = path.Join(fmt.Sprintf("d%d", rnd.IntN(4)), p)
		}
		files[p] = random()
	}
	for i := range n {
		for _, p := range slices.Sorted(maps.Keys(files)) {
			switch rnd.IntN(60) {
			case 0:
				files[p] = random()
			case 1:
				delete(files, p)
			}
		}
		f.add([]string{"a", "b"}[i%2], files)
	}
}
