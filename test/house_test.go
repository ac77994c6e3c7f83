package test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/fs/restore"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

// slow reports whether tests run in full size.
func slow() bool { return os.Getenv("CUTBANK_SLOW") == "1" }

// missing skips a test for want of something, or fails it where CUTBANK_REQUIRE
// asks for that.
func missing(t testing.TB, what, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), what) {
		t.Fatalf("CUTBANK_REQUIRE asks for %s: %s", what, why)
	}
	t.Skipf("SKIPPED for want of %s: %s", what, why)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "fuse", "owners, device nodes and mounts need root")
	}
}

// lockedRand is a source of randomness that repeats, and that many may read.
type lockedRand struct {
	mu sync.Mutex
	r  *rand.ChaCha8
}

func seeded(seed uint64) io.Reader {
	var key [32]byte
	key[0], key[1], key[2], key[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	return &lockedRand{r: rand.NewChaCha8(key)}
}

func (l *lockedRand) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(p)
}

// later is the clock of snapshots: an hour ahead, so that files written just
// now count as old, and unchanged ones are not read again.
func later() time.Time { return time.Now().Add(time.Hour) }

// random is shared: two repositories of one seed must not use the same names
// twice in one backend.
var random = seeded(1)

// newMem returns an empty backend of that clock.
func newMem() *backend.Mem {
	m := backend.NewMem()
	m.SetClock(later)
	return m
}

func options(t testing.TB) repo.Options {
	return repo.Options{Random: random, Now: later, Logf: t.Logf}
}

// small are parameters that make many packs of little data.
func small(t testing.TB) repo.InitOptions {
	t.Helper()
	p, err := chunk.NewParams(chunk.Rabin, 4<<10, seeded(2))
	if err != nil {
		t.Fatal(err)
	}
	return repo.InitOptions{Params: p, FrameSize: 16 << 10, PackSize: 64 << 10}
}

// tryOpen opens the repository in b, and closes it when the test ends.
func tryOpen(t testing.TB, b backend.Backend, opt repo.Options) (*repo.Repo, error) {
	r, err := repo.Open(t.Context(), b, opt)
	if err == nil {
		t.Cleanup(func() { r.Close() })
	}
	return r, err
}

func open(t testing.TB, b backend.Backend) *repo.Repo {
	t.Helper()
	r, err := tryOpen(t, b, options(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Index().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

func initRepo(t testing.TB, b backend.Backend, in repo.InitOptions) *repo.Repo {
	t.Helper()
	r, err := repo.Init(t.Context(), b, in, options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func live(t testing.TB, dir string) tree.Node {
	t.Helper()
	n, err := source.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func trySnapshot(t testing.TB, r *repo.Repo, src tree.Node, change func(*snapshotter.Options)) (*repo.Snapshot, error) {
	opt := snapshotter.Options{Name: "host", Now: later, Logf: t.Logf}
	if change != nil {
		change(&opt)
	}
	return snapshotter.Run(t.Context(), r, src, []string{"/src"}, opt)
}

func snapshot(t testing.TB, r *repo.Repo, src tree.Node, change func(*snapshotter.Options)) *repo.Snapshot {
	t.Helper()
	s, err := trySnapshot(t, r, src, change)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stored is a snapshot's tree, read through the one read path.
func stored(t testing.TB, r *repo.Repo, s *repo.Snapshot) tree.Numbered {
	t.Helper()
	n, err := snapfs.NewCache(r.Store()).Open(t.Context(), s.Tree.ID)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func restoreTo(ctx context.Context, r *repo.Repo, s *repo.Snapshot, dir string) error {
	n, err := snapfs.NewCache(r.Store()).Open(ctx, s.Tree.ID)
	if err != nil {
		return err
	}
	_, err = restore.Run(ctx, []restore.Item{{Node: n}}, dir, restore.Options{
		Sum: r.SecretKeys().Data.Sum, Prefetch: func(_ context.Context, ids []chunk.ID) { r.Store().Prefetch(ids) }, Ahead: r.Store().Ahead()})
	return err
}

// differences lists what differs between two trees, at most twenty lines.
func differences(ctx context.Context, a, b tree.Node, opt diff.Options) []string {
	var list []string
	for c, err := range diff.Compare(ctx, a, b, opt) {
		if err != nil {
			list = append(list, err.Error())
		} else {
			list = append(list, fmt.Sprintf("%q %s: %s", c.Path, c.Kind, c.Fields))
		}
		if len(list) == 20 {
			return append(list, "and more")
		}
	}
	return list
}

// same fails the test unless two trees are equal: every attribute, every byte,
// every hole.
func same(t testing.TB, what string, a, b tree.Node) {
	t.Helper()
	for _, d := range differences(t.Context(), a, b, diff.Options{Content: true, Holes: true}) {
		t.Errorf("%s: %s", what, d)
	}
}

// sameRestored restores a snapshot and compares with what it was made of.
func sameRestored(t testing.TB, what string, r *repo.Repo, s *repo.Snapshot, want tree.Node) {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "restored")
	if err != nil {
		t.Fatal(err)
	}
	if err := restoreTo(t.Context(), r, s, dir); err != nil {
		t.Errorf("%s: restore: %v", what, err)
	}
	same(t, what, want, live(t, dir))
	os.RemoveAll(dir)
}

// clean fails the test if a check that reads everything finds damage.
func clean(t testing.TB, what string, r *repo.Repo) repo.CheckResult {
	t.Helper()
	res, err := r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) {
		t.Errorf("%s: damage: %s %s %q: %v", what, d.Object, d.Chunk.Short(), d.Path, d.Err)
	})
	if err != nil {
		t.Errorf("%s: check: %v", what, err)
	}
	return res
}

func snapshots(t testing.TB, r *repo.Repo) []*repo.Snapshot {
	t.Helper()
	list, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// find returns the snapshot of that ID, nil if there is none.
func find(t testing.TB, r *repo.Repo, id repo.ID) *repo.Snapshot {
	t.Helper()
	for _, s := range snapshots(t, r) {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// little writes a tree of some twenty names and half a megabyte, with a bit of
// everything; version 2 is version 1 some time later.
func little(t testing.TB, dir string, version int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, uint64(version)))
	write := func(name string, p []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, p, 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	fill := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return p
	}
	if version == 1 {
		for i, n := range []int{0, 1, 100, 4096, 9000, 70_000} {
			write(fmt.Sprintf("d%d/file%d", i%3, i), fill(n))
		}
		write("big", fill(300_000))
		write("zeros", append(append(fill(10_000), make([]byte, 20_000)...), fill(10_000)...))
		write("text", bytes.Repeat([]byte("the same line again\n"), 3000))
		for _, err := range []error{
			os.Symlink("big", filepath.Join(dir, "link")),
			os.Link(filepath.Join(dir, "d2/file2"), filepath.Join(dir, "hard")),
			unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
			os.Mkdir(filepath.Join(dir, "empty"), 0o700),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	f, err := os.OpenFile(filepath.Join(dir, "big"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(fill(1000), 150_000)
	if err := errors.Join(err, f.Close(), os.Remove(filepath.Join(dir, "text")), os.Chmod(filepath.Join(dir, "d0/file0"), 0o755)); err != nil {
		t.Fatal(err)
	}
	write("d1/new", fill(80_000))
}
