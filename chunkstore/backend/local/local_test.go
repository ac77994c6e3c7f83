package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
)

func create(t testing.TB) *Folder {
	t.Helper()
	f, err := Create(filepath.Join(t.TempDir(), "repo"))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFolder(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t) })
}

// Where there is no link(2), renameat2 keeps the same contract.
func TestFolderWithoutLinks(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EOPNOTSUPP, syscall.EMLINK, syscall.ENOSYS} {
		f := create(t)
		calls := 0
		f.way.link = func(old, newName string) error {
			calls++
			return &os.LinkError{Op: "link", Old: old, New: newName, Err: errno}
		}
		for _, tt := range []struct {
			name string
			want error
		}{{"a/b", nil}, {"a/b", fs.ErrExist}, {"a/c", nil}} {
			if err := f.Put(t.Context(), tt.name, []byte("x")); !errors.Is(err, tt.want) {
				t.Errorf("%v: put %s: got %v, want %v", errno, tt.name, err, tt.want)
			}
		}
		if calls != 1 {
			t.Errorf("%v: tried link %d times, want once", errno, calls)
		}
	}
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		f := create(t)
		f.way.noLink.Store(true)
		return f
	})
}

// A link that was done though its answer says otherwise (NFS).
func TestFolderLinkAnsweredTwice(t *testing.T) {
	f := create(t)
	f.way.link = func(old, newName string) error {
		if err := os.Link(old, newName); err != nil {
			return err
		}
		return os.Link(old, newName)
	}
	if err := f.Put(t.Context(), "a", []byte("x")); err != nil {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: got %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("a file: got %v", err)
	}
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if f.String() != dir || f.Lag() != 0 {
		t.Errorf("got %s, lag %v", f, f.Lag())
	}
	t.Chdir(dir) // what is open stays where it is
	f, err = Open(".")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir("/")
	if err := f.Put(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); err != nil {
		t.Error(err)
	}
}

func TestCreate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b", "repo")
	f, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.write([]byte("left behind")); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir); err != nil {
		t.Errorf("as good as empty: %v", err)
	}
	if err := f.Put(t.Context(), "config/1", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "config") {
		t.Errorf("in use: got %v", err)
	}
	if _, err := Create(filepath.Join(dir, "config", "1")); err == nil {
		t.Error("created a folder where a file is")
	}
}

// Modes, and nothing but objects in sight.
func TestFiles(t *testing.T) {
	f := create(t)
	if err := f.Put(t.Context(), "packs/ab/x", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"packs": fs.ModeDir | 0o700, "packs/ab": fs.ModeDir | 0o700, "packs/ab/x": 0o600, "tmp": fs.ModeDir | 0o700} {
		info, err := os.Stat(filepath.Join(f.dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(f.dir, tmpName)); err != nil || len(entries) > 0 {
		t.Errorf("tmp holds %v, %v", entries, err)
	}
	// What others may have put there is no object.
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, "far"), []byte("far"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(f.dir, "README"), nil, 0o600),
		os.WriteFile(filepath.Join(f.dir, tmpName, "1-ab"+tmpMark), nil, 0o600),
		os.Symlink("nowhere", filepath.Join(f.dir, "dangling")),
		os.Symlink(elsewhere, filepath.Join(f.dir, "packs", "cd")),
		unix.Mkfifo(filepath.Join(f.dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for info, err := range f.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	if got := fmt.Sprint(names); got != "[packs/ab/x packs/cd/far]" && got != "[packs/cd/far packs/ab/x]" {
		t.Errorf("listed %s", got)
	}
}

// Somebody removes empty directories while the program runs.
func TestDirectoryVanishes(t *testing.T) {
	f := create(t)
	for i := range 3 {
		f.way.noLink.Store(i == 2)
		if err := f.Put(t.Context(), "packs/ab/x", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(f.dir, "packs")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSweep(t *testing.T) {
	f := create(t)
	now := time.Now()
	if n, err := f.Sweep(now); n != 0 || err != nil {
		t.Errorf("nothing there: got %d, %v", n, err)
	}
	for name, age := range map[string]time.Duration{
		"1-old" + tmpMark: 25 * time.Hour, "1-new" + tmpMark: 23 * time.Hour, "1-future" + tmpMark: -time.Hour, "object": 25 * time.Hour,
	} {
		file := filepath.Join(f.dir, tmpName, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600), os.Chtimes(file, time.Time{}, now.Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.Sweep(now); n != 1 || err != nil {
		t.Errorf("got %d, %v, want 1", n, err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, tmpName, "1-old"+tmpMark)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old file: %v", err)
	}
}

// needRoot skips, or fails where the environment promises root.
func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		skip(t, "this test needs root to mount a tmpfs")
	}
}

func skip(t *testing.T, why string) {
	t.Helper()
	for _, s := range strings.Split(os.Getenv("CUTBANK_REQUIRE"), ",") {
		if s == "fuse" {
			t.Fatal(why)
		}
	}
	t.Skip("SKIPPED: " + why)
}

func TestFullDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("cutbank", dir, "tmpfs", 0, "size=1m"); err != nil {
		skip(t, fmt.Sprintf("cannot mount a tmpfs: %v", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	f, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	object := bytes.Repeat([]byte("full"), 75_000)
	stored := 0
	for ; err == nil && stored < 10; stored++ {
		err = f.Put(t.Context(), fmt.Sprint(stored), object)
	}
	stored--
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("after %d objects: got %v, want ENOSPC and the folder's name", stored, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, tmpName))
	if err != nil || len(entries) != 0 {
		t.Errorf("tmp holds %v, %v", entries, err)
	}
	n := 0
	for info, err := range f.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Get(t.Context(), info.Name, 0, -1); err != nil || !bytes.Equal(got, object) {
			t.Errorf("%s: %d bytes, %v", info.Name, len(got), err)
		}
		n++
	}
	if n != stored || n == 0 {
		t.Errorf("%d objects are there, %d were put", n, stored)
	}
	if err := f.Remove(t.Context(), "0"); err != nil {
		t.Fatal(err)
	}
	if err := f.Put(t.Context(), "again", object); err != nil {
		t.Errorf("after making room: %v", err)
	}
}

func BenchmarkPut(b *testing.B) {
	for _, n := range []int{1 << 10, 1 << 20, 32 << 20} {
		b.Run(fmt.Sprintf("%dK", n>>10), func(b *testing.B) {
			f := create(b)
			p := bytes.Repeat([]byte{1, 2, 3, 4}, n/4)
			b.SetBytes(int64(n))
			i := 0
			for b.Loop() {
				name := fmt.Sprintf("packs/%02x/%d", i%256, i)
				if err := f.Put(b.Context(), name, p); err != nil {
					b.Fatal(err)
				}
				if n > 1<<20 {
					if err := f.Remove(b.Context(), name); err != nil {
						b.Fatal(err)
					}
				}
				i++
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	f := create(b)
	for i := range 10_000 {
		file := filepath.Join(f.dir, "packs", fmt.Sprintf("%02x", i%256), fmt.Sprintf("%032x", i))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		n := 0
		for _, err := range f.List(b.Context(), "packs/") {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 10_000 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/10_000, "µs/object")
}

// TestReserve: what is reserved is no object, is not swept, and can be had back
// once.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Reserve(); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := f.Sweep(time.Now().Add(1000 * time.Hour)); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	for info, err := range f.List(t.Context(), "") {
		t.Errorf("listed: %v, %v", info, err)
	}
	for _, want := range []bool{true, false} {
		if got, err := f.Release(); got != want || err != nil {
			t.Errorf("release: %v, %v", got, err)
		}
	}
}
