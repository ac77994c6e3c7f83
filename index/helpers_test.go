package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// memBackend keeps objects in a map. hook, if set, sees every call first and
// may refuse it.
type memBackend struct {
	mu      sync.Mutex
	objects map[string][]byte
	hook    func(op, name string) error
}

func newBackend() *memBackend { return &memBackend{objects: map[string][]byte{}} }

func (b *memBackend) call(op, name string) error {
	if b.hook != nil {
		return b.hook(op, name)
	}
	return nil
}

func (b *memBackend) Put(_ context.Context, name string, p []byte) error {
	if err := b.call("put", name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.objects[name]; ok {
		return &fs.PathError{Op: "put", Path: name, Err: fs.ErrExist}
	}
	b.objects[name] = bytes.Clone(p)
	return nil
}

func (b *memBackend) Get(_ context.Context, name string, off, n int64) ([]byte, error) {
	if err := b.call("get", name); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.objects[name]
	if !ok {
		return nil, &fs.PathError{Op: "get", Path: name, Err: fs.ErrNotExist}
	}
	if n < 0 {
		n = int64(len(p)) - off
	}
	if off+n > int64(len(p)) {
		return nil, io.ErrUnexpectedEOF
	}
	return bytes.Clone(p[off : off+n]), nil
}

func (b *memBackend) List(_ context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		if err := b.call("list", prefix); err != nil {
			yield(backend.Info{}, err)
			return
		}
		b.mu.Lock()
		var all []backend.Info
		for name, p := range b.objects {
			if strings.HasPrefix(name, prefix) {
				all = append(all, backend.Info{Name: name, Size: int64(len(p))})
			}
		}
		b.mu.Unlock()
		for _, i := range all {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (b *memBackend) Remove(_ context.Context, name string) error {
	if err := b.call("remove", name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, name)
	return nil
}

func (b *memBackend) Lag() time.Duration { return 0 }
func (b *memBackend) String() string     { return "memory" }

func (b *memBackend) names(prefix string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name := range b.objects {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// dirBackend keeps objects in a folder, so that processes can share it.
type dirBackend struct{ dir string }

func (b dirBackend) Put(_ context.Context, name string, p []byte) error {
	path := filepath.Join(b.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(b.dir, "put-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(p); err != nil {
		return err
	}
	f.Close()
	return os.Link(f.Name(), path)
}

func (b dirBackend) Get(_ context.Context, name string, off, n int64) ([]byte, error) {
	p, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil || n < 0 {
		return p, err
	}
	return p[off : off+n], nil
}

func (b dirBackend) List(_ context.Context, prefix string) iter.Seq2[backend.Info, error] {
	return func(yield func(backend.Info, error) bool) {
		// What vanishes meanwhile is not there.
		_ = fs.WalkDir(os.DirFS(b.dir), ".", func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasPrefix(name, prefix) {
				return nil
			}
			if fi, err := e.Info(); err == nil && !yield(backend.Info{Name: name, Size: fi.Size()}, nil) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

func (b dirBackend) Remove(_ context.Context, name string) error {
	if err := os.Remove(filepath.Join(b.dir, name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (b dirBackend) Lag() time.Duration { return 0 }
func (b dirBackend) String() string     { return b.dir }

const testRepo = "00112233445566778899aabbccddeeff"

// testKeys returns the keys of a repository, the same ones for all tests.
var testKeys = sync.OnceValue(func() *seal.Keys {
	r, err := seal.NewRing(testRepo, rand.NewChaCha8([32]byte{1}))
	if err != nil {
		panic(err)
	}
	k, err := r.Open()
	if err != nil {
		panic(err)
	}
	return k
})

// testID is the n-th chunk of all tests: even, as IDs are, and quick.
func testID(n int) (id chunk.ID) {
	r := rand.NewPCG(uint64(n), 1)
	for i := 0; i < len(id); i += 8 {
		binary.LittleEndian.PutUint64(id[i:], r.Uint64())
	}
	return id
}

func testName(n int) (name pack.Name) {
	d := chunk.Digest(fmt.Appendf(nil, "pack %d", n))
	copy(name[:], d[:])
	return name
}

const perPack = 100

var madePacks sync.Map

// testPack makes up pack n: the chunks n*perPack and following, in two frames.
// Nothing lies behind it. Its frames are shared.
func testPack(n int) *pack.Trailer {
	made, ok := madePacks.Load(n)
	if !ok {
		made, _ = madePacks.LoadOrStore(n, makePack(n))
	}
	t := *made.(*pack.Trailer)
	return &t
}

func makePack(n int) *pack.Trailer {
	t := &pack.Trailer{Name: testName(n), Size: 1 << 20, Header: pack.Header{Kind: pack.Data, Epoch: 1, Wrapped: bytes.Repeat([]byte{byte(n), 7}, 584)}}
	t.Session[0] = 2
	for f := range 2 {
		fr := pack.Frame{Off: uint32(2000 + f*100_000), Stored: 90_000}
		for c := range perPack / 2 {
			fr.Chunks = append(fr.Chunks, pack.Chunk{ID: testID(n*perPack + f*perPack/2 + c), Len: uint32(1000 + c)})
		}
		fr.Plain = fr.Start(len(fr.Chunks))
		t.Frames = append(t.Frames, fr)
	}
	if err := t.Sign(testKeys()); err != nil {
		panic(err)
	}
	return t
}

func testPacks(from, to int) (ts []*pack.Trailer) {
	for n := from; n < to; n++ {
		ts = append(ts, testPack(n))
	}
	return ts
}

// logs collects what an index reports.
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) logf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// openDB opens an index with a memory limit of 1000 entries and closes it with
// the test.
func openDB(t testing.TB, b backend.Backend, dir string) (*DB, *logs) {
	t.Helper()
	l := &logs{}
	db, err := Open(t.Context(), b, testKeys(), Options{Dir: dir, MemoryLimit: 1000, Logf: l.logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, l
}

func mustSync(t testing.TB, db *DB) bool {
	t.Helper()
	changed, err := db.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

// publish publishes the packs, one segment each.
func publish(t testing.TB, db *DB, packs ...*pack.Trailer) {
	t.Helper()
	for _, p := range packs {
		if err := db.Publish(t.Context(), []*pack.Trailer{p}); err != nil {
			t.Fatal(err)
		}
	}
	db.background.Wait()
}

// check fails unless exactly the packs from to to are known, chunk by chunk.
func check(t testing.TB, db *DB, from, to int) {
	t.Helper()
	if n, of := found(t, db, from, to); n != of {
		t.Fatalf("packs %d to %d: %d of %d chunks are found", from, to, n, of)
	}
	if n, _ := found(t, db, to, to+3); n != 0 {
		t.Fatalf("packs %d to %d: %d chunks are found that nobody stored", to, to+3, n)
	}
}

// found counts the chunks that are known, and fails on a wrong location.
func found(t testing.TB, db *DB, from, to int) (n, of int) {
	t.Helper()
	for i := from; i < to; i++ {
		testPack(i).Locations(func(id chunk.ID, want pack.Location) {
			of++
			got, err := db.Lookup(id, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(got) > 0 {
				n++
			}
			for _, l := range got {
				if l != want {
					t.Fatalf("chunk %s: got %+v, want %+v", id.Short(), l, want)
				}
			}
		})
	}
	return n, of
}

// generations returns the paths of the generations in dir, oldest first.
func generations(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, subdir, generationPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
