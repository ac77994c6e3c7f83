package snapfs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
)

// lockedRandom is bytes from a seed for many goroutines.
type lockedRandom struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRandom) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// stored makes a snapshot of src in a repository in memory and opens it. Chunks
// and frames are small, so that small files have many.
func stored(t testing.TB, src tree.Node) (tree.Numbered, *repo.Repo) {
	t.Helper()
	random := &lockedRandom{r: rand.NewChaCha8([32]byte{1})}
	params, err := chunk.NewParams(chunk.Gear, 4<<10, random)
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC) }
	r, err := repo.Init(t.Context(), backend.NewMem(), repo.InitOptions{Params: params, FrameSize: 16 << 10, PackSize: 1 << 20},
		repo.Options{Random: random, Now: now, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	rec, err := snapshotter.Run(t.Context(), r, src, []string{"/src"}, snapshotter.Options{Name: "test", Now: now, Logf: t.Logf,
		Problem: func(path string, err error) { t.Errorf("%q: %v", path, err) }})
	if err != nil {
		t.Fatal(err)
	}
	root, err := snapfs.NewCache(r.Store()).Open(t.Context(), rec.Tree.ID)
	if err != nil {
		t.Fatal(err)
	}
	return root, r
}

// kids lists a directory's children from the from-th on.
func kids(t testing.TB, n tree.Node, from int64) []tree.Node {
	t.Helper()
	var list []tree.Node
	for c, err := range n.Entries(t.Context(), from) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// walk calls do for all nodes in preorder; the root's path is "".
func walk(t testing.TB, n tree.Node, path string, do func(path string, n tree.Node)) {
	t.Helper()
	do(path, n)
	if n.Attr().Kind != tree.Dir {
		return
	}
	if path != "" {
		path += "/"
	}
	for _, c := range kids(t, n, 0) {
		walk(t, c, path+c.Attr().Name, do)
	}
}

func at(t testing.TB, n tree.Node, path string) tree.Node {
	t.Helper()
	c, err := snapfs.Walk(t.Context(), n, path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var hasher = chunk.NewHasher([32]byte{'t'})

// chunks keeps pages and data in memory, and spoils what it is told to.
type chunks struct {
	mu         sync.Mutex
	m          map[chunk.ID][]byte
	bad        map[chunk.ID]error
	pages      []chunk.ID // asked for
	prefetched []chunk.ID
}

func newChunks() *chunks { return &chunks{m: map[chunk.ID][]byte{}, bad: map[chunk.ID]error{}} }

func (c *chunks) put(p []byte) (chunk.ID, error) {
	id := hasher.Sum(p)
	c.m[id] = slices.Clone(p)
	return id, nil
}

func (c *chunks) Page(ctx context.Context, id chunk.ID) ([]byte, error) {
	c.mu.Lock()
	c.pages = append(c.pages, id)
	c.mu.Unlock()
	return c.Data(ctx, id)
}

func (c *chunks) Data(ctx context.Context, id chunk.ID) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := errors.Join(ctx.Err(), c.bad[id]); err != nil {
		return nil, err
	}
	p, ok := c.m[id]
	if !ok {
		return nil, fmt.Errorf("chunk %s: %w", id, chunk.ErrMissing)
	}
	return p, nil
}

func (c *chunks) Prefetch(ids []chunk.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prefetched = append(c.prefetched, ids...)
}

// data makes an extent of stored bytes.
func (c *chunks) data(p []byte) tree.Extent {
	id, _ := c.put(p)
	return tree.Extent{Len: int64(len(p)), Kind: tree.Data, ID: id}
}

// file makes a file of these extents.
func (c *chunks) file(t testing.TB, name string, xs ...tree.Extent) *tree.Entry {
	t.Helper()
	w := tree.NewRecipeWriter(c.put)
	for _, x := range xs {
		if err := w.Add(x); err != nil {
			t.Fatal(err)
		}
	}
	e := &tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.File, Mode: 0o644, Nlink: 1}}
	if err := w.Finish(e); err != nil {
		t.Fatal(err)
	}
	return e
}

// dir makes a directory of these entries.
func (c *chunks) dir(t testing.TB, name string, entries ...*tree.Entry) *tree.Entry {
	t.Helper()
	w := tree.NewDirWriter(c.put)
	for _, e := range entries {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	e := &tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
	if err := w.Finish(e); err != nil {
		t.Fatal(err)
	}
	return e
}

// open opens a tree of these entries.
func (c *chunks) open(t testing.TB, entries ...*tree.Entry) tree.Numbered {
	t.Helper()
	root, err := snapfs.NewCache(c).Open(t.Context(), c.dir(t, "", c.dir(t, tree.RootName, entries...)).Root)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// refs returns the pages that a page refers to.
func (c *chunks) refs(t testing.TB, id chunk.ID) []tree.Ref {
	t.Helper()
	pg, err := tree.ParsePage(c.m[id])
	if err != nil || len(pg.Refs) < 3 {
		t.Fatalf("page %s refers to %d others, %v", id, len(pg.Refs), err)
	}
	return pg.Refs
}

// readAll reads a node in pieces of that size.
func readAll(n tree.Node, piece int) ([]byte, error) {
	var all []byte
	p := make([]byte, piece)
	for {
		m, err := n.ReadAt(context.Background(), p, int64(len(all)))
		all = append(all, p[:m]...)
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

func wantErr(tb testing.TB, what string, err, want error) {
	tb.Helper()
	if err == nil || !errors.Is(err, want) {
		tb.Errorf("%s: error %v, want %v", what, err, want)
	}
}
