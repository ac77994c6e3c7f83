package snapshotter

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// mem is a live tree in memory that can do what real ones do: change while it
// is read, vanish, refuse.
type mem struct {
	attr     tree.Attr
	data     []byte
	holes    []tree.Extent // nil: all data
	xattrs   []tree.Xattr
	children []*mem
	listing  error      // ends the listing of a directory
	reading  error      // of Open
	onRead   func(*mem) // called at each reading from the beginning
	opened   *[]string  // told the name of each file that is opened
}

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var inodes atomic.Uint64 // given out so far

func node(name string, kind tree.Kind) *mem {
	at := tree.TimeOf(epoch.Add(-time.Hour))
	return &mem{attr: tree.Attr{Name: name, Kind: kind, Mode: 0o644, Mtime: at, Ctime: at, Nlink: 1, Dev: 1, Ino: inodes.Add(1)}}
}

func file(name string, data []byte) *mem {
	m := node(name, tree.File)
	m.set(data)
	return m
}

// set changes the contents without changing the times.
func (m *mem) set(data []byte) {
	m.data, m.attr.Size, m.attr.Allocated = data, int64(len(data)), (int64(len(data))+4095)&^4095
}

func dir(name string, children ...*mem) *mem {
	m := node(name, tree.Dir)
	m.children = children
	return m
}

func (m *mem) fail(op string, err error) error {
	return &fs.PathError{Op: op, Path: m.attr.Name, Err: err}
}

func (m *mem) Attr() *tree.Attr {
	a := m.attr
	return &a
}
func (m *mem) Xattrs(context.Context) ([]tree.Xattr, error) { return m.xattrs, nil }

func (m *mem) Lookup(_ context.Context, name string) (tree.Node, error) {
	for _, c := range m.children {
		if c.attr.Name == name {
			return c.node(), nil
		}
	}
	return nil, m.fail("lookup", fs.ErrNotExist)
}

// node has Open only if it is a file.
func (m *mem) node() tree.Node {
	if m.attr.Kind == tree.File {
		return memFile{m}
	}
	return m
}

func (m *mem) Entries(_ context.Context, from int64) iter.Seq2[tree.Node, error] {
	return func(yield func(tree.Node, error) bool) {
		list := slices.Clone(m.children)
		slices.SortFunc(list, func(a, b *mem) int { return strings.Compare(a.attr.Name, b.attr.Name) })
		for _, c := range list[min(int(from), len(list)):] {
			if !yield(c.node(), nil) {
				return
			}
		}
		if m.listing != nil {
			// With a slash: it is not about a child of that name.
			yield(nil, &fs.PathError{Op: "readdir", Path: "/" + m.attr.Name, Err: m.listing})
		}
	}
}

func (m *mem) ReadAt(context.Context, []byte, int64) (int, error) {
	return 0, m.fail("read", syscall.EINVAL)
}

type memFile struct{ *mem }

func (m memFile) Open(context.Context) (tree.OpenFile, error) {
	if m.opened != nil {
		*m.opened = append(*m.opened, m.attr.Name)
	}
	if m.reading != nil {
		return nil, m.fail("open", m.reading)
	}
	return memOpen(m), nil
}

type memOpen struct{ *mem }

func (m memOpen) Close() error              { return nil }
func (m memOpen) Stat() (*tree.Attr, error) { return m.Attr(), nil }
func (m memOpen) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && m.onRead != nil {
		m.onRead(m.mem)
	}
	if off >= int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memOpen) Extents(int64) iter.Seq2[tree.Extent, error] {
	return func(yield func(tree.Extent, error) bool) {
		list := m.holes
		if list == nil {
			list = []tree.Extent{{Len: m.attr.Size, Kind: tree.Data}}
		}
		for _, x := range list {
			if !yield(x, nil) {
				return
			}
		}
	}
}

// lockedRand repeats and may be read by many.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRand) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

func newRepo(t testing.TB, kind chunk.SplitterKind) *repo.Repo {
	t.Helper()
	random := &lockedRand{r: rand.NewChaCha8([32]byte{1})}
	p, err := chunk.NewParams(kind, chunk.MinAvg, random)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), backend.NewMem(), repo.InitOptions{Params: p, FrameSize: 8 << 10, PackSize: 64 << 10},
		repo.Options{Random: random, Now: func() time.Time { return epoch }, Logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func try(t testing.TB, r *repo.Repo, src tree.Node, change func(*Options)) (*repo.Snapshot, error) {
	opt := Options{Name: "host", Now: func() time.Time { return epoch }, Logf: t.Logf}
	if change != nil {
		change(&opt)
	}
	return Run(t.Context(), r, src, []string{"/src"}, opt)
}

func mustRun(t testing.TB, r *repo.Repo, src tree.Node, change func(*Options)) *repo.Snapshot {
	t.Helper()
	s, err := try(t, r, src, change)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// at returns what a snapshot has at a path.
func at(t testing.TB, r *repo.Repo, s *repo.Snapshot, path string) tree.Node {
	t.Helper()
	root, err := snapfs.NewCache(r.Store()).Open(t.Context(), s.Tree.ID)
	if err != nil {
		t.Fatal(err)
	}
	n, err := snapfs.Walk(t.Context(), root, path)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func contents(t testing.TB, n tree.Node) string {
	t.Helper()
	p := make([]byte, n.Attr().Size)
	if _, err := n.ReadAt(t.Context(), p, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("%q: %v", n.Attr().Name, err)
	}
	return string(p)
}

func names(t testing.TB, n tree.Node) []string {
	t.Helper()
	list := []string{}
	for c, err := range n.Entries(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c.Attr().Name)
	}
	return list
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 9}).Read(p)
	return p
}
