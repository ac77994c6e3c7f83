package repo

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// random repeats from run to run and may be read by many.
var random io.Reader = &lockedRand{r: rand.NewChaCha8([32]byte{1})}

type lockedRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func (l *lockedRand) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testOptions(t testing.TB) Options {
	return Options{Random: random, Now: func() time.Time { return start }, Logf: t.Logf}
}

func testParams(t testing.TB) InitOptions {
	t.Helper()
	p, err := chunk.NewParams(chunk.Gear, chunk.MinAvg, random)
	if err != nil {
		t.Fatal(err)
	}
	return InitOptions{Params: p, FrameSize: 4 << 10, PackSize: 64 << 10}
}

func testInit(t testing.TB, b backend.Backend) *Repo {
	t.Helper()
	r, err := Init(t.Context(), b, testParams(t), testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func testOpen(t testing.TB, b backend.Backend) *Repo {
	t.Helper()
	r, err := Open(t.Context(), b, testOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func testBegin(t testing.TB, r *Repo) *Session {
	t.Helper()
	s, err := r.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// store puts chunks and returns how many were not known.
func store(t testing.TB, r *Repo, s *Session, texts ...string) int {
	t.Helper()
	st := s.Writer.Stream(pack.Data)
	n := 0
	for _, text := range texts {
		fresh, err := st.Put(r.SecretKeys().Data.Sum([]byte(text)), []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if fresh {
			n++
		}
	}
	st.Flush()
	return n
}

// emptyTree stores the pages of an empty tree.
func emptyTree(t testing.TB, r *Repo, s *Session) PageID {
	t.Helper()
	st := s.Writer.Stream(pack.Meta)
	w := tree.NewDirWriter(func(p []byte) (chunk.ID, error) {
		id := r.SecretKeys().Tree.Sum(p)
		_, err := st.Put(id, p)
		return id, err
	})
	var e tree.Entry
	err := w.Add(&tree.Entry{Attr: tree.Attr{Name: tree.RootName, Kind: tree.Dir, Mode: 0o755, Nlink: 1}})
	if err := errors.Join(err, w.Finish(&e)); err != nil {
		t.Fatal(err)
	}
	st.Flush()
	return PageID{e.Root}
}

// commit makes a snapshot of an empty tree, with these chunks beside it.
func commit(t testing.TB, r *Repo, rec Snapshot, texts ...string) *Snapshot {
	t.Helper()
	s := testBegin(t, r)
	store(t, r, s, texts...)
	rec.Tree = emptyTree(t, r, s)
	if rec.Name == "" {
		rec.Name = "host"
	}
	if rec.Time.IsZero() {
		rec.Time = start
	}
	if err := s.Commit(t.Context(), &rec); err != nil {
		t.Fatal(err)
	}
	return &rec
}

func names(t testing.TB, b backend.Backend, prefix string) []string {
	t.Helper()
	var list []string
	for info, err := range b.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, info.Name)
	}
	return list
}

func get(t testing.TB, b backend.Backend, name string) []byte {
	t.Helper()
	p, err := b.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func replace(t testing.TB, b backend.Backend, name string, p []byte) {
	t.Helper()
	if err := errors.Join(b.Remove(t.Context(), name), b.Put(t.Context(), name, p)); err != nil {
		t.Fatal(err)
	}
}

// put seals v as these keys and puts it.
func put(t testing.TB, r *Repo, k *seal.Keys, name string, kind seal.Kind, s seal.Sealing, v any) {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.Seal(name, kind, s, body, random)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Backend().Put(t.Context(), name, p); err != nil {
		t.Fatal(err)
	}
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
