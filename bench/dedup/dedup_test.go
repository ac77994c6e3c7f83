package dedup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
)

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(p)
	return p
}

// sources makes files of contents.
func sources(contents ...[]byte) iter.Seq2[Source, error] {
	return func(yield func(Source, error) bool) {
		for i, p := range contents {
			if !yield(Source{fmt.Sprint(i), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil }}, nil) {
				return
			}
		}
	}
}

func run(t *testing.T, opt Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFixedExactly(t *testing.T) {
	const block = 64 << 10
	a := noise(1, 16*block)
	b := bytes.Clone(a)
	b[5*block+7] ^= 1
	tail := append(bytes.Clone(a[:block]), 1, 2, 3)
	half := func(_, p []byte) []byte { return make([]byte, len(p)/2) }
	r := run(t, Options{
		Files:   sources(a, a, b, tail, make([]byte, 3*block), nil),
		Columns: []Column{{Fixed, block}}, Compress: half,
	})
	c := r.Columns[0]
	if r.Files != 6 || r.Bytes != 52*block+3 || c.Chunks != 50 || c.Bytes != 49*block+3 || c.ZeroBytes != 3*block ||
		c.UniqueChunks != 18 || c.UniqueBytes != 17*block+3 || c.Sampled != 1 || c.Error != 0 {
		t.Errorf("got %+v in %+v", c, r)
	}
	// Four blocks a group; what does not come out even is rounded down by half.
	if want := int64(17*block+3) / 2; c.StoredBytes < want-5 || c.StoredBytes > want {
		t.Errorf("stored %d bytes, want %d", c.StoredBytes, want)
	}
	alone := run(t, Options{Files: sources(a, a), Columns: []Column{{Fixed, block}}, Compress: half, Group: block - 1}).Columns[0]
	if alone.StoredBytes != 8*block {
		t.Errorf("chunks larger than a group: stored %d bytes, want %d", alone.StoredBytes, 8*block)
	}
	if want := []Bucket{{2, 1}, {block, 49}}; !reflect.DeepEqual(c.Histogram, want) {
		t.Errorf("histogram %v, want %v", c.Histogram, want)
	}
	if want := float64(r.Bytes) / float64(c.UniqueBytes); math.Abs(c.Dedup-want) > 1e-9 {
		t.Errorf("dedup %v, want %v", c.Dedup, want)
	}
}

// slowly counts what a repository would store, file by file.
func slowly(t *testing.T, c Column, files [][]byte) (r Result) {
	t.Helper()
	p := chunk.Params{Kind: c.Kind, Min: c.Avg / 2, Avg: c.Avg, Max: 4 * c.Avg, Secret: gearSecret}
	if c.Kind == chunk.Rabin {
		p.Secret = rabinSecret
	}
	seen := make(map[string]bool)
	for _, file := range files {
		cutter, err := chunk.NewCutter(p)
		if err != nil {
			t.Fatal(err)
		}
		cutter.Reset(bytes.NewReader(file))
		for {
			piece, err := cutter.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if piece.Zero {
				r.ZeroBytes += piece.Len
				continue
			}
			r.Chunks++
			r.Bytes += piece.Len
			if !seen[string(piece.Data)] {
				seen[string(piece.Data)] = true
				r.UniqueChunks++
				r.UniqueBytes += piece.Len
			}
		}
	}
	return r
}

func TestSplittersExactly(t *testing.T) {
	big := noise(2, 3<<20)
	shifted := append(append([]byte("shifted"), big[:1<<20]...), make([]byte, 100_000)...)
	files := [][]byte{big, shifted, append(shifted, big[2<<20:]...), nil, {1}}
	for i := range 300 {
		files = append(files, noise(uint64(i%200), 100+i*40)) // 100 of them come twice, but longer
	}
	columns := []Column{{chunk.Rabin, 8 << 10}, {chunk.Gear, 4 << 10}, {chunk.Gear, 64 << 10}}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r },
		"half":  iotest.HalfReader,
		"eof":   iotest.DataErrReader,
	} {
		var wrapped iter.Seq2[Source, error] = func(yield func(Source, error) bool) {
			for src := range sources(files...) {
				open := src.Open
				src.Open = func() (io.ReadCloser, error) {
					r, err := open()
					return io.NopCloser(wrap(r)), err
				}
				if !yield(src, nil) {
					return
				}
			}
		}
		r := run(t, Options{Files: wrapped, Columns: columns})
		for i, c := range columns {
			got, want := r.Columns[i], slowly(t, c, files)
			if got.Chunks != want.Chunks || got.Bytes != want.Bytes || got.ZeroBytes != want.ZeroBytes || got.UniqueChunks != want.UniqueChunks || got.UniqueBytes != want.UniqueBytes {
				t.Errorf("%s %s: got %+v, want %+v", name, c, got, want)
			}
			if got.Bytes+got.ZeroBytes != r.Bytes {
				t.Errorf("%s %s: %d bytes cut, %d read", name, c, got.Bytes+got.ZeroBytes, r.Bytes)
			}
		}
	}
}

func TestFilesAndDirectories(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	sparse, err := os.Create(path("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = sparse.WriteAt(noise(3, 100_000), 1<<20)
	for _, err := range []error{
		err,
		sparse.Truncate(8 << 20),
		sparse.Close(),
		os.MkdirAll(path("a/b"), 0o700),
		os.WriteFile(path("a/b/data"), noise(3, 100_000), 0o600),
		os.Link(path("a/b/data"), path("a/linked")),
		os.Symlink("b/data", path("a/symlink")),
		os.Symlink("/", path("a/everything")),
		unix.Mkfifo(path("a/fifo"), 0o600),
		os.Symlink("a", path("root")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, Options{Paths: []string{path("root"), path("sparse"), path("none"), path("a/fifo")}, Columns: []Column{{chunk.Gear, 8 << 10}}})
	if r.Files != 2 || r.HardLinks != 1 || r.Unreadable != 2 || len(r.Errors) != 2 {
		t.Errorf("got %+v", r)
	}
	if r.Bytes+r.HoleBytes != 8<<20+100_000 {
		t.Errorf("%d bytes and %d of holes", r.Bytes, r.HoleBytes)
	}
	if r.HoleBytes == 0 {
		t.Logf("the file system of %s shows no holes", dir)
	} else if c := r.Columns[0]; c.UniqueBytes > 110_000 {
		t.Errorf("the same data in two files: %d unique bytes", c.UniqueBytes)
	}
}

// Fixed blocks are counted from the start of the file, not of its data.
func TestFixedBehindHole(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(noise(4, 64<<10), 1<<20+8<<10)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	r := run(t, Options{Paths: []string{f.Name()}, Columns: []Column{{Fixed, 64 << 10}}})
	want := []Bucket{{8 << 10, 1}, {32 << 10, 1}}
	if r.HoleBytes == 1<<20+8<<10 && !reflect.DeepEqual(r.Columns[0].Histogram, want) {
		t.Errorf("got %v, want %v", r.Columns[0].Histogram, want)
	}
}

func TestUnreadable(t *testing.T) {
	broken := errors.New("the disk is broken")
	files := func(yield func(Source, error) bool) {
		for i := range 3 * maxErrors {
			open := func() (io.ReadCloser, error) { return nil, fs.ErrPermission }
			if i%2 == 0 {
				open = func() (io.ReadCloser, error) {
					return io.NopCloser(io.MultiReader(strings.NewReader("some"), iotest.ErrReader(broken))), nil
				}
			}
			if !yield(Source{fmt.Sprintf("file%d", i), open}, nil) {
				return
			}
		}
		for src := range sources([]byte("good")) {
			yield(src, nil)
		}
	}
	r := run(t, Options{Files: files, Columns: []Column{{chunk.Rabin, 64 << 10}}})
	if r.Files != 1 || r.Unreadable != 3*maxErrors || len(r.Errors) != maxErrors {
		t.Errorf("%d files, %d unreadable, %d messages", r.Files, r.Unreadable, len(r.Errors))
	}
	if !strings.Contains(r.Errors[0], "file0") || !strings.Contains(r.Errors[0], broken.Error()) {
		t.Errorf("message %q", r.Errors[0])
	}
	if c := r.Columns[0]; c.Chunks != 3*maxErrors/2+1 || c.UniqueChunks != 2 {
		t.Errorf("what was read counts: got %+v", c)
	}
}

// endless is a file of noise that calls a function at every read.
type endless struct {
	noise *rand.ChaCha8
	left  int64
	hook  func()
}

func (e *endless) Read(p []byte) (int, error) {
	e.hook()
	n := min(int64(len(p)), e.left)
	if e.left -= n; n == 0 {
		return 0, io.EOF
	}
	return e.noise.Read(p[:n])
}

func (e *endless) Close() error { return nil }

func endlessFile(n int64, hook func()) iter.Seq2[Source, error] {
	return func(yield func(Source, error) bool) {
		yield(Source{"endless", func() (io.ReadCloser, error) {
			return &endless{rand.NewChaCha8([32]byte{9}), n, hook}, nil
		}}, nil)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	reads := 0
	_, err := Run(ctx, Options{Files: endlessFile(math.MaxInt64, func() {
		if reads++; reads == 10 {
			cancel()
		}
	})})
	if !errors.Is(err, context.Canceled) || reads != 10 {
		t.Errorf("got %v after %d reads", err, reads)
	}
	if _, err := Run(ctx, Options{Paths: []string{t.TempDir()}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: got %v", err)
	}
}

func TestProgress(t *testing.T) {
	var files, total int64
	var last string
	r := run(t, Options{Files: endlessFile(5<<20, func() {}), Columns: []Column{{chunk.Gear, 64 << 10}}, Progress: func(f, b int64, path string) {
		if f < files || b < total {
			t.Errorf("went back to %d files, %d bytes", f, b)
		}
		if files, total = f, b; path != "" {
			last = path
		}
	}})
	if files != 1 || total != r.Bytes || last != "endless" {
		t.Errorf("the last word was %d files, %d bytes, %q", files, total, last)
	}
}

func TestOptions(t *testing.T) {
	good := sources(nil)
	for name, opt := range map[string]Options{
		"no source":       {},
		"odd average":     {Files: good, Columns: []Column{{chunk.Gear, 1000}}},
		"odd fixed":       {Files: good, Columns: []Column{{Fixed, 1000}}},
		"huge":            {Files: good, Columns: []Column{{Fixed, 1 << 40}}},
		"unknown":         {Files: good, Columns: []Column{{"buzhash", 64 << 10}}},
		"many columns":    {Files: good, Columns: make([]Column, MaxColumns+1)},
		"negative memory": {Files: good, Distinct: -1},
		"negative group":  {Files: good, Group: -1},
	} {
		if _, err := Run(t.Context(), opt); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	r := run(t, Options{Files: good, Columns: []Column{}})
	text, err := json.Marshal(r)
	if err != nil || bytes.Contains(text, []byte("null")) {
		t.Errorf("got %s, %v", text, err)
	}
}

func TestReportIsJSON(t *testing.T) {
	r := run(t, Options{Files: sources(noise(1, 1<<20), nil), Compress: func(dst, p []byte) []byte { return append(dst, p[:len(p)/3]...) }})
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*r, back) {
		t.Errorf("got %+v, want %+v", back, *r)
	}
}

// Far beyond what is remembered, the estimates are as good as they say and
// memory stays what it was.
func TestSampling(t *testing.T) {
	const size, block = 24 << 20, 1 << 10
	var peak uint64
	var stats runtime.MemStats
	reads := 0
	hook := func() {
		if reads++; reads%16 == 0 {
			runtime.ReadMemStats(&stats)
			peak = max(peak, stats.HeapAlloc)
		}
	}
	twice := func(yield func(Source, error) bool) {
		for range 2 {
			for src, err := range endlessFile(size, hook) {
				if !yield(src, err) {
					return
				}
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&stats)
	before := stats.HeapAlloc
	quarter := func(dst, p []byte) []byte { return append(dst, p[:len(p)/4]...) }
	r := run(t, Options{Files: twice, Columns: []Column{{Fixed, block}, {chunk.Gear, block}}, Distinct: 2000, Compress: quarter})
	exact := run(t, Options{Files: twice, Columns: []Column{{Fixed, block}, {chunk.Gear, block}}, Compress: quarter})
	for i, c := range r.Columns {
		truth := exact.Columns[i]
		if truth.Sampled != 1 || truth.Error != 0 || truth.Dedup < 1.99 || truth.Dedup > 2 {
			t.Fatalf("%s: the exact run says %+v", c.Column, truth)
		}
		if c.Sampled > 2000*block/float64(size)*2 || c.Error == 0 || c.Error > 0.05 {
			t.Errorf("%s: sampled %v, error %v", c.Column, c.Sampled, c.Error)
		}
		for name, pair := range map[string][2]int64{
			"chunks": {c.UniqueChunks, truth.UniqueChunks}, "bytes": {c.UniqueBytes, truth.UniqueBytes}, "stored": {c.StoredBytes, truth.StoredBytes},
		} {
			if off := math.Abs(float64(pair[0])/float64(pair[1]) - 1); off > 4*c.Error {
				t.Errorf("%s: %s %d, truly %d: off by %.3f where the error is %.3f", c.Column, name, pair[0], pair[1], off, c.Error)
			}
		}
		if c.Chunks != truth.Chunks || c.Bytes != truth.Bytes {
			t.Errorf("%s: %d chunks, truly %d", c.Column, c.Chunks, truth.Chunks)
		}
	}
	if grown := int64(peak) - int64(before); grown > 24<<20 {
		t.Errorf("memory grew by %d bytes", grown)
	}
}

// The estimate has no bias, and the error that is stated is the one made.
func TestDistinct(t *testing.T) {
	const rounds, limit, n = 3000, 20, 1000
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var sum, squares, stated float64
	for range rounds {
		d := newDistinct(limit)
		hashes := make([]uint64, n)
		estimate, variance := 0.0, 0.0
		for i := range 2 * n {
			var h uint64
			if i%2 == 0 {
				h = r.Uint64()
				hashes[i/2] = h
			} else {
				h = hashes[r.IntN(i/2+1)] // one of before
			}
			weight := d.add(h)
			estimate += weight
			variance += weight * max(0, weight-1)
			if d.n > limit || len(d.table) > 64 {
				t.Fatalf("%d hashes in a table of %d", d.n, len(d.table))
			}
		}
		off := estimate/n - 1
		sum += off
		squares += off * off
		stated += variance / n / n
	}
	sd := math.Sqrt(squares / rounds)
	stated = math.Sqrt(stated / rounds)
	if bias := sum / rounds; math.Abs(bias) > 4*sd/math.Sqrt(rounds) {
		t.Errorf("bias %v, standard deviation %v", bias, sd)
	}
	if sd > 1.25*stated || sd < stated/1.25 {
		t.Errorf("standard deviation %v, stated %v", sd, stated)
	}
}
