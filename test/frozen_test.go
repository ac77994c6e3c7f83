package test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

var update = flag.Bool("update", false, "make testdata/v1-repo anew: only before version 1 is declared")

// frozen is a repository of version 1, as the first program that wrote that
// version wrote it. It stays for ever: every later program reads it.
const (
	frozen         = "testdata/v1-repo"
	frozenManifest = "testdata/v1-repo.txt"
	frozenPassword = "frozen"
)

// frozenTree writes the tree of the frozen repository's second snapshot.
func frozenTree(t testing.TB, dir string) {
	t.Helper()
	rng := seeded(31)
	fill := func(n int) []byte {
		p := make([]byte, n)
		rng.Read(p)
		return p
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	for _, f := range []struct {
		name string
		data []byte
		mode uint32
	}{
		{"empty", nil, 0o600}, {"text", []byte("frozen\n"), 0o644}, {"sub/random", fill(20_000), 0o4755},
		{"sub/repeated", bytes.Repeat([]byte("layer upon layer "), 1500), 0o444},
		{"sub/zeros", append(append(fill(3000), make([]byte, 50_000)...), fill(3000)...), 0o640},
		{"names/new\nline", []byte("n"), 0o644}, {"names/not-utf8-\xff\xfe", []byte("u"), 0o644}, {"names/" + strings.Repeat("n", 255), []byte("l"), 0o644},
	} {
		path := filepath.Join(dir, f.name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.data, 0o600), unix.Chmod(path, f.mode)); err != nil {
			t.Fatal(err)
		}
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	_, werr := sparse.WriteAt(fill(4096), 1<<20)
	for _, err := range []error{
		werr, sparse.Truncate(4<<30 + 7), sparse.Close(), // beyond 4 GiB
		os.Link(filepath.Join(dir, "text"), filepath.Join(dir, "sub/hard")),
		os.Symlink("../text", filepath.Join(dir, "sub/link")),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	setTimes(t, dir, at)
}

// setTimes gives everything below dir a time of its own, the last one before
// 1970.
func setTimes(t testing.TB, dir string, at time.Time) {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		paths = append(paths, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(paths) // children before their directories
	for i, p := range paths {
		when := at.Add(time.Duration(i) * time.Hour)
		if i == 0 {
			when = time.Unix(-86400, 5)
		}
		ts := []unix.Timespec{{Sec: when.Unix(), Nsec: int64(when.Nanosecond())}, {Sec: when.Unix(), Nsec: int64(when.Nanosecond())}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
}

// manifest tells of each name below dir what it is; owners are left out, as
// not everybody can restore them.
func manifest(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, what := strings.TrimPrefix(p, dir), ""
		switch {
		case d.Type().IsRegular() && st.Size > 1<<30:
			what = fmt.Sprintf("%d bytes", st.Size) // sparse, and read by other tests
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			what = fmt.Sprintf("%d bytes %x", st.Size, sha256.Sum256(data))
		case d.Type() == fs.ModeSymlink:
			if what, err = os.Readlink(p); err != nil {
				return err
			}
		}
		links := uint64(1)
		if !d.IsDir() {
			links = uint64(st.Nlink)
		}
		_, err = fmt.Fprintf(&b, "%q %06o %d.%09d links %d %s\n", "."+rel, st.Mode, st.Mtim.Sec, st.Mtim.Nsec, links, what)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// freeze makes the frozen repository.
func freeze(t *testing.T) {
	needRoot(t) // what is frozen has root as its owner everywhere
	if err := os.RemoveAll(frozen); err != nil {
		t.Fatal(err)
	}
	b, err := local.Create(frozen)
	if err != nil {
		t.Fatal(err)
	}
	in := tiny(t, random)
	in.Password = frozenPassword
	opt := options(t)
	clock := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	opt.Now = func() time.Time { return clock }
	r, err := repo.Init(t.Context(), b, in, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	take := func(dir string, label string) {
		t.Helper()
		_, err := snapshotter.Run(t.Context(), r, live(t, dir), []string{"/frozen"},
			snapshotter.Options{Name: "frozen", Label: label, Note: "as it was", Tags: []string{"v1"}, Host: "host", Program: "cutbank 1", Now: opt.Now})
		if err != nil {
			t.Fatal(err)
		}
	}
	empty, full := t.TempDir(), t.TempDir()
	setTimes(t, empty, clock)
	frozenTree(t, full)
	clock = clock.Add(time.Hour)
	take(empty, "empty")
	clock = clock.Add(time.Hour)
	take(full, "full")
	everyKind(t, r, random, opt.Now())
	if err := os.Remove(filepath.Join(frozen, "tmp")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(frozenManifest, []byte(manifest(t, full)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func openFrozen(t *testing.T, dir string) *repo.Repo {
	t.Helper()
	b, err := local.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	opt := options(t)
	opt.Password = func() (string, error) { return frozenPassword, nil }
	r, err := tryOpen(t, b, opt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Index().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFrozen reads the repository of version 1 with this program.
func TestFrozen(t *testing.T) {
	if *update {
		freeze(t)
	}
	want, err := os.ReadFile(frozenManifest)
	if err != nil {
		t.Fatalf("%v: `go test ./test -run TestFrozen -update` makes it, once and for all", err)
	}
	// Of a copy: what verify finds it writes down in the repository.
	there := t.TempDir()
	if err := os.CopyFS(there, os.DirFS(frozen)); err != nil {
		t.Fatal(err)
	}
	r := openFrozen(t, there)
	if res := clean(t, "frozen", r); len(res.Unknown) > 0 || res.Dead != 1 || res.Orphans != 0 {
		t.Errorf("check: %+v", res)
	}
	var full *repo.Snapshot
	var said []string
	for _, s := range snapshots(t, r) {
		said = append(said, fmt.Sprintf("%s/%s %s %q pinned=%v files=%d", s.Name, s.Dir, s.Label, s.Tags, s.Pinned, s.Totals.Files))
		if s.Label == "full" {
			full = s
		}
	}
	// The order of the two of one time is that of their random IDs.
	slices.Sort(said)
	if w := []string{
		`frozen/2026-01-01T01.00.00Z empty ["v1" "kept"] pinned=true files=0`,
		`frozen/2026-01-01T02.00.00Z full ["v1"] pinned=false files=10`,
		`node1/2026-01-01T01.00.00Z  ["v1"] pinned=false files=0`,
	}; !slices.Equal(said, w) {
		t.Errorf("snapshots:\n%s\nwant\n%s", strings.Join(said, "\n"), strings.Join(w, "\n"))
	}
	if full == nil {
		t.Fatal("the snapshot that matters is not there")
	}
	dir := t.TempDir()
	if err := restoreTo(t.Context(), r, full, dir); err != nil {
		t.Fatal(err)
	}
	if got := manifest(t, dir); got != string(want) {
		t.Errorf("restored:\n%s\nwant:\n%s", got, want)
	}
}

// TestFrozenGrows makes a snapshot in a copy of the frozen repository: chunks
// are cut and named as ever, so nothing is stored twice, and the tree of what
// was restored is the tree that was stored.
func TestFrozenGrows(t *testing.T) {
	needRoot(t)
	dir, tmp := t.TempDir(), t.TempDir()
	if err := os.CopyFS(tmp+"/repo", os.DirFS(frozen)); err != nil {
		t.Fatal(err)
	}
	r := openFrozen(t, tmp+"/repo")
	full, err := r.Resolve(t.Context(), "frozen/full")
	if err != nil {
		t.Fatal(err)
	}
	if err := restoreTo(t.Context(), r, full, dir); err != nil {
		t.Fatal(err)
	}
	var src tree.Node
	if src, err = source.Open(dir); err != nil {
		t.Fatal(err)
	}
	s := snapshot(t, r, src, func(o *snapshotter.Options) { o.NoParent = true })
	if s.Tree != full.Tree {
		t.Errorf("tree %s, frozen %s", s.Tree, full.Tree)
		same(t, "frozen and restored", stored(t, r, full), src)
	}
	clean(t, "grown", r)
}
