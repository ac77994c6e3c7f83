package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

// writeOnlyNode opens a new repository with a write-only credential and a folder
// for local state.
func writeOnlyNode(t testing.TB) (node *Repo, b backend.Backend, cred []byte) {
	t.Helper()
	b = backend.NewMem()
	owner := testInit(t, b)
	_, cred = addNode(t, owner, NewWriter{Names: []string{"*"}})
	return withCache(t, b, cred, t.TempDir()), b, cred
}

func withCache(t testing.TB, b backend.Backend, cred []byte, dir string) *Repo {
	t.Helper()
	opt := testOptions(t)
	opt.Credential, opt.CacheDir = cred, dir
	r, err := Open(t.Context(), b, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// manyPages are pages of all sizes, the same for a seed.
func manyPages(seed uint64, n int) [][]byte {
	rng := rand.New(rand.NewPCG(seed, 2))
	pages := make([][]byte, n)
	for i := range pages {
		pages[i] = fmt.Appendf(nil, "page %d of %d", i, seed)
		for range rng.IntN(500) {
			pages[i] = append(pages[i], byte(rng.Uint32()))
		}
	}
	return pages
}

// keepPages writes pages as those of a snapshot.
func keepPages(t testing.TB, r *Repo, s *Snapshot, pages [][]byte) string {
	t.Helper()
	w, err := r.NewLocalPages(s.Name, s.Paths)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		w.Add(r.k.Tree.Sum(p), p)
		w.Add(r.k.Tree.Sum(p), p) // twice is once
	}
	if err := w.Commit(s); err != nil {
		t.Fatal(err)
	}
	return w.file
}

func keptSample() *Snapshot {
	return &Snapshot{V: 1, ID: sampleID(3), Name: "host", Paths: []Path{"/etc", "/\xff"}, Time: sampleTime(1), Tree: samplePage(1), Witness: samplePage(2)}
}

func TestLocalPages(t *testing.T) {
	r, b, cred := writeOnlyNode(t)
	s := keptSample()
	if _, err := r.LocalPages(s.Name, s.Paths); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing was kept: %v", err)
	}
	for _, n := range []int{0, 1, 5000} { // the last in several blocks
		pages := manyPages(uint64(n), n)
		file := keepPages(t, r, s, pages)
		p, err := r.LocalPages(s.Name, s.Paths)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(p.Snapshot, s) {
			t.Errorf("snapshot %+v", p.Snapshot)
		}
		rand.New(rand.NewPCG(1, 1)).Shuffle(n, func(i, j int) { pages[i], pages[j] = pages[j], pages[i] })
		for i, want := range pages {
			if got, err := p.Page(r.k.Tree.Sum(want)); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("page %d of %d: %v", i, n, err)
			}
		}
		if n > 0 {
			like := r.k.Tree.Sum(pages[0])
			like[31] ^= 1
			if _, err := p.Page(like); !errors.Is(err, chunk.ErrMissing) {
				t.Errorf("a page of half the same ID: %v", err)
			}
		}
		if _, err := p.Page(chunk.ID{1}); !errors.Is(err, chunk.ErrMissing) {
			t.Errorf("a page that was not kept: %v", err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		raw, err := os.ReadFile(file)
		if err != nil || bytes.Contains(raw, []byte("page 0")) || bytes.Contains(raw, []byte("/etc")) {
			t.Errorf("what is kept lies open: %v", err)
		}
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
	}
	// Other paths, another name, and another writer have files of their own.
	if _, err := r.LocalPages("host", []Path{"/etc"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("other paths: %v", err)
	}
	owner := testOpen(t, b)
	_, other := addNode(t, owner, NewWriter{Names: []string{"*"}})
	theirs := withCache(t, b, other, r.opt.CacheDir)
	if _, err := theirs.LocalPages(s.Name, s.Paths); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another writer: %v", err)
	}
	mine, err := r.pagesFile(s.Name, s.Paths)
	if err != nil {
		t.Fatal(err)
	}
	name, err := theirs.pagesFile(s.Name, s.Paths)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(mine, name); err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.LocalPages(s.Name, s.Paths); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("another writer's file: %v", err)
	}
	// Without local state nothing is kept.
	bare := mustOpenAs(t, b, cred)
	if w, err := bare.NewLocalPages(s.Name, s.Paths); w != nil || err != nil {
		t.Errorf("no folder: %v, %v", w, err)
	}
	used, err := LocalPagesUsage(r.opt.CacheDir)
	if id := r.cfg.Repo.String(); err != nil || used[id] == 0 {
		t.Errorf("usage %v, %v", used, err)
	} else if freed, err := ClearLocalPages(r.opt.CacheDir, id); err != nil || freed != used[id] {
		t.Errorf("freed %d of %d, %v", freed, used[id], err)
	}
	if used, err := LocalPagesUsage(r.opt.CacheDir); err != nil || len(used) != 0 {
		t.Errorf("usage %v, %v", used, err)
	}
}

// TestLocalPagesDamaged flips every byte: what is read is right, or it is an
// error.
func TestLocalPagesDamaged(t *testing.T) {
	r, _, _ := writeOnlyNode(t)
	s, pages := keptSample(), manyPages(1, 20)
	file := keepPages(t, r, s, pages)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	read := func() (wrong, failed int) {
		p, err := r.LocalPages(s.Name, s.Paths)
		if err != nil {
			return 0, 1
		}
		defer p.Close()
		if !reflect.DeepEqual(p.Snapshot, s) {
			wrong++
		}
		for _, want := range pages {
			got, err := p.Page(r.k.Tree.Sum(want))
			if err != nil {
				failed++
			} else if !bytes.Equal(got, want) {
				wrong++
			}
		}
		return wrong, failed
	}
	for i := 0; i < len(raw); i += 1 + i/1000 {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x10
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if wrong, failed := read(); wrong > 0 || failed == 0 {
			t.Fatalf("byte %d: %d wrong, %d failed", i, wrong, failed)
		}
	}
	for n := 0; n < len(raw); n += 1 + n/100 {
		if err := os.WriteFile(file, raw[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if wrong, failed := read(); wrong > 0 || failed == 0 {
			t.Fatalf("cut to %d bytes: %d wrong, %d failed", n, wrong, failed)
		}
	}
}

// TestLocalPagesInterrupted: what was not committed changes nothing, and is
// swept away some day.
func TestLocalPagesInterrupted(t *testing.T) {
	r, _, _ := writeOnlyNode(t)
	s := keptSample()
	file := keepPages(t, r, s, manyPages(1, 3))
	for _, abort := range []bool{true, false} {
		w, err := r.NewLocalPages(s.Name, s.Paths)
		if err != nil {
			t.Fatal(err)
		}
		w.Add(chunk.ID{1}, []byte("new"))
		if abort {
			if err := w.Abort(); err != nil {
				t.Error(err)
			}
		} else if err := w.f.Close(); err != nil { // killed
			t.Error(err)
		}
	}
	p, err := r.LocalPages(s.Name, s.Paths)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Page(chunk.ID{1}); !errors.Is(err, chunk.ErrMissing) {
		t.Errorf("what was not committed is there: %v", err)
	}
	p.Close()
	left, err := filepath.Glob(filepath.Join(filepath.Dir(file), pagesTemp+"*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("left %v, %v", left, err)
	}
	old := start.AddDate(-1, 0, 0)
	if err := os.Chtimes(left[0], old, old); err != nil {
		t.Fatal(err)
	}
	keepPages(t, r, s, nil)
	if all, err := os.ReadDir(filepath.Dir(file)); err != nil || len(all) != 1 {
		t.Errorf("%d files, %v", len(all), err)
	}
	// Beyond the limit nothing is kept, and what there was stays.
	r.opt.CacheLimit = 1000
	w, err := r.NewLocalPages(s.Name, s.Paths)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range manyPages(5, 1000) {
		w.Add(r.k.Tree.Sum(p), p)
	}
	if err := w.Commit(s); err == nil {
		t.Error("the limit was not kept")
	}
	if all, err := os.ReadDir(filepath.Dir(file)); err != nil || len(all) != 1 {
		t.Errorf("%d files, %v", len(all), err)
	}
}

func sampleNode(t testing.TB) *seal.Keys {
	t.Helper()
	k, err := writeOnlyRing(frozenRing(t), sampleSeed()).Open()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestFrozenLocalPages reads what was kept when the format was made. The file
// never changes.
func TestFrozenLocalPages(t *testing.T) {
	k, pages := sampleNode(t), manyPages(9, 6)
	path := filepath.Join("testdata", "v1-pages.bin")
	frozen(t, "v1-pages.bin", func() []byte {
		f, err := os.Create(filepath.Join(t.TempDir(), "pages"))
		if err != nil {
			t.Fatal(err)
		}
		w, err := newPagesWriter(k, f, rand.NewChaCha8([32]byte{4}))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pages {
			w.Add(k.Tree.Sum(p), p)
		}
		if err := errors.Join(w.finish(keptSample()), f.Close()); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return raw
	})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := openPages(k, f)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.Snapshot, keptSample()) {
		t.Errorf("snapshot %+v", p.Snapshot)
	}
	for i, want := range pages {
		if got, err := p.Page(k.Tree.Sum(want)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("page %d: %v", i, err)
		}
	}
}

// FuzzLocalPages: whatever the file holds, nothing panics, and no page is wrong.
func FuzzLocalPages(f *testing.F) {
	k, pages := sampleNode(f), manyPages(9, 6)
	f.Add(frozen(f, "v1-pages.bin", nil))
	f.Add([]byte(pagesHead))
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "pages")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		p, err := openPages(k, file)
		if err != nil {
			return
		}
		for _, want := range pages {
			if got, err := p.Page(k.Tree.Sum(want)); err == nil && !bytes.Equal(got, want) {
				t.Error("a wrong page")
			}
		}
	})
}
