package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/backendtest"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/fs/mount"
	"github.com/cutbankfs/cutbank/repo"
)

// far is a place across a network: every call takes a round trip, and what it
// moves passes a line of 200 MB/s that all calls share.
type far struct {
	backend.Backend
	trip time.Duration
	line sync.Mutex
}

func (f *far) Transfers() int { return 4 }

func (f *far) pass(n int64) {
	time.Sleep(f.trip)
	if f.trip > 0 && n > 64<<10 {
		f.line.Lock()
		defer f.line.Unlock()
		time.Sleep(time.Duration(n) * 5 * time.Nanosecond)
	}
}

func (f *far) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	p, err := f.Backend.Get(ctx, name, off, n)
	f.pass(int64(len(p)))
	return p, err
}

func (f *far) List(ctx context.Context, prefix string) iter.Seq2[backend.Info, error] {
	f.pass(0)
	return f.Backend.List(ctx, prefix)
}

// counted is a far place whose calls are counted.
type counted struct {
	*backendtest.Recorder
	f *far
}

func (c *counted) Transfers() int { return c.f.Transfers() }

func newCounted(b backend.Backend, trip time.Duration) *counted {
	f := &far{Backend: b, trip: trip}
	return &counted{backendtest.NewRecorder(f), f}
}

// report logs what was called since the last time, and returns how many Gets.
func (c *counted) report(t testing.TB, what string, start time.Time) int {
	t.Helper()
	gets, lists := c.Count("get"), c.Count("list")
	got, _ := c.Bytes()
	t.Logf("%-28s %5d gets %3d lists %8.1f MB %6.2f s", what, gets, lists, float64(got)/1e6, time.Since(start).Seconds())
	c.Reset()
	return gets
}

// farTree writes dirs of files of about 6 KB, and big files.
func farTree(t testing.TB, dir string, dirs, files, big int, bigSize int64) {
	t.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	key := [32]byte{9}
	random := rand.NewChaCha8(key)
	write := func(name string, n int64) {
		f, err := os.Create(name)
		if err == nil {
			_, err = io.CopyN(f, random, n)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for d := range dirs {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", d))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range files {
			write(filepath.Join(sub, fmt.Sprintf("file%03d", i)), 500+r.Int64N(12_000))
		}
	}
	for i := range big {
		write(filepath.Join(dir, fmt.Sprintf("big%d", i)), bigSize)
	}
}

// remoteStage is a snapshot in a place across a network.
type remoteStage struct {
	t     *testing.T
	c     *counted
	cache string
	snap  *repo.Snapshot
}

func newRemoteStage(t *testing.T, dirs, files, big int, bigSize int64) *remoteStage {
	t.Helper()
	src := t.TempDir()
	farTree(t, src, dirs, files, big, bigSize)
	mem := newMem()
	in := small(t)
	in.Params, in.FrameSize, in.PackSize = defaultParams(t), 256<<10, 32<<20
	snap := snapshot(t, initRepo(t, mem, in), live(t, src), nil)
	return &remoteStage{t, newCounted(mem, time.Millisecond), t.TempDir(), snap}
}

// open opens the repository as a new process would, with what is on the disk.
func (st *remoteStage) open(disk int64) *repo.Repo {
	st.t.Helper()
	opt := options(st.t)
	opt.CacheDir, opt.DiskCache = st.cache, disk
	r, err := tryOpen(st.t, st.c, opt)
	if err == nil {
		err = r.Sync(st.t.Context())
	}
	if err == nil {
		_, err = r.Snapshots(st.t.Context())
	}
	if err != nil {
		st.t.Fatal(err)
	}
	return r
}

// mount mounts the snapshot, and gives it free when the function returned is
// called.
func (st *remoteStage) mount(r *repo.Repo) (dir string, end func()) {
	st.t.Helper()
	dir = st.t.TempDir()
	srv, err := mount.Mount(dir, mount.Options{Root: stored(st.t, r, st.snap), Far: true, Logf: st.t.Logf})
	if err != nil {
		st.t.Fatal(err)
	}
	return dir, func() {
		if err := srv.Unmount(); err != nil {
			st.t.Error(err)
		}
		r.Close() // as the process ends
	}
}

func (st *remoteStage) want(what string, start time.Time, most int) {
	st.t.Helper()
	if n := st.c.report(st.t, what, start); n > most {
		st.t.Errorf("%s: %d requests, want at most %d", what, n, most)
	}
}

// Small files: what is read of a place in the network comes with few requests, one
// file with one, and what was read before with none.
func TestRemoteSmallFiles(t *testing.T) {
	needFuse(t)
	st := newRemoteStage(t, 20, 100, 0, 0)
	start := time.Now()
	r := st.open(64 << 20)
	if n := st.c.Count("list"); n > 9 {
		t.Errorf("open: %d listings, want at most 9", n)
	}
	st.want("open", start, 4) // key, config, segment, record
	dir, end := st.mount(r)
	run := func(what, script string, most int) {
		t.Helper()
		start := time.Now()
		if out, err := exec.Command("sh", "-c", script, "sh", dir).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		st.want(what, start, most)
	}
	run("ls -R", `ls -lR "$1"`, 3)
	run("one small file", `cat "$1/d010/file050" >/dev/null; sleep 0.1`, 1)
	run("again", `cat "$1/d010/file050" >/dev/null; sleep 0.1`, 0)
	run("tar", `tar -C "$1" -cf - . | cat >/dev/null`, 20)
	end()
	r = st.open(64 << 20)
	st.c.Reset()
	dir, end = st.mount(r)
	run("tar, next process", `tar -C "$1" -cf - . | cat >/dev/null`, 0)
	end()
	r = st.open(0)
	st.c.Reset()
	start = time.Now()
	if err := restoreTo(t.Context(), r, st.snap, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	st.want("restore", start, 20)
}

// A big file is read in large pieces, and beginning to read it costs little.
func TestRemoteBigFile(t *testing.T) {
	needFuse(t)
	const size = 64 << 20
	st := newRemoteStage(t, 0, 0, 1, size)
	dir, end := st.mount(st.open(0))
	defer end()
	st.c.Reset()
	start := time.Now()
	f, err := os.Open(filepath.Join(dir, "big0"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // for what is fetched ahead
	if got, _ := st.c.Bytes(); got > 8<<20 {
		t.Errorf("%d bytes were fetched for the first 4096", got)
	}
	if _, err := io.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
	if got, _ := st.c.Bytes(); got > size*11/10 {
		t.Errorf("%d bytes were fetched for %d", got, size)
	}
	st.want("64 MiB in order", start, 48)
	start = time.Now()
	if err := restoreTo(t.Context(), st.open(0), st.snap, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if got, _ := st.c.Bytes(); got > size*11/10 {
		t.Errorf("%d bytes were fetched to restore %d", got, size)
	}
	st.want("restore", start, 40)
}

func defaultParams(t testing.TB) chunk.Params {
	t.Helper()
	p, err := chunk.NewParams(chunk.Rabin, 64<<10, seeded(2))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
