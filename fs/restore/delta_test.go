package restore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// TestDelta: only ranges that differ are fetched, and in place only they are
// written.
func TestDelta(t *testing.T) {
	old := random(3, 100*memChunk)
	data := bytes.Clone(old)
	data[10*memChunk] ^= 1
	data[11*memChunk] ^= 1
	data[70*memChunk+5] ^= 1
	data = append(data, random(4, 3*memChunk)...)
	for _, c := range []struct {
		name        string
		opt         Options
		read, write int64
	}{
		{"copy", Options{Sum: hasher.Sum}, 6 * memChunk, int64(len(data))},
		{"in place", Options{Sum: hasher.Sum, InPlace: true}, 6 * memChunk, 6 * memChunk},
		{"in place, no sum", Options{InPlace: true}, int64(len(data)), 6 * memChunk},
		{"no sum", Options{}, int64(len(data)), int64(len(data))},
	} {
		for _, dry := range []bool{true, false} {
			dir := t.TempDir()
			put(t, dir, map[string]string{"f": string(old)})
			f, read := memFile("f", data).counted()
			opt := c.opt
			opt.DryRun = dry
			tot := restoreTo(t, memDir("", f), dir, opt)
			wantRead, wantWrite := c.read, c.write
			if dry && c.name == "in place, no sum" {
				wantWrite = wantRead // it cannot know
			}
			if c.name == "in place, no sum" && !dry {
				wantWrite = tot.BytesWrite // by whole blocks
				if wantWrite > int64(len(data)) {
					t.Errorf("%s: wrote %d", c.name, wantWrite)
				}
			}
			if tot.BytesRead != wantRead || tot.BytesWrite != wantWrite || tot.Changed != 1 {
				t.Errorf("%s, dry %v: %+v, want %d read, %d written", c.name, dry, tot, wantRead, wantWrite)
			}
			if !dry && read.Load() != c.read {
				t.Errorf("%s: fetched %d bytes, want %d", c.name, read.Load(), c.read)
			}
			want := data
			if dry {
				want = old
				if read.Load() != 0 {
					t.Errorf("%s: a dry run fetched %d bytes", c.name, read.Load())
				}
			}
			if got, _ := os.ReadFile(filepath.Join(dir, "f")); !bytes.Equal(got, want) {
				t.Errorf("%s, dry %v: wrong contents", c.name, dry)
			}
		}
	}
}

// TestSameContents: a file with another time but the same contents is not
// written, and one that is trusted not even read.
func TestSameContents(t *testing.T) {
	data := random(5, 20*memChunk)
	for _, inPlace := range []bool{false, true} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"f": string(data)})
		before, _ := lstatat(-100, filepath.Join(dir, "f"))
		f, read := memFile("f", data).counted()
		tot := restoreTo(t, memDir("", f), dir, Options{Sum: hasher.Sum, InPlace: inPlace})
		after, _ := lstatat(-100, filepath.Join(dir, "f"))
		if tot.BytesWrite != 0 || read.Load() != 0 || tot.Meta != 2 || after.inode != before.inode || after.mtime != someTime {
			t.Errorf("in place %v: %+v, read %d", inPlace, tot, read.Load())
		}
	}
}

func TestHoles(t *testing.T) {
	const k = 1 << 20
	f := memFile("f", nil)
	f.data = make([]byte, 4*k+100)
	copy(f.data[k:], random(6, 64<<10))
	f.attr.Size = int64(len(f.data))
	f.exts = []tree.Extent{
		{Off: 0, Len: k, Kind: tree.Hole},
		{Off: k, Len: 64 << 10, Kind: tree.Data, ID: hasher.Sum(f.data[k : k+64<<10])},
		{Off: k + 64<<10, Len: k, Kind: tree.Zero},
		{Off: 2*k + 64<<10, Len: 2*k - 64<<10 + 100, Kind: tree.Hole},
	}
	full := string(bytes.Repeat([]byte{7}, 5*k))
	for _, c := range []struct {
		name string
		opt  Options
		old  string
		max  int64 // KiB on disk
	}{
		{"new", Options{}, "", 64 + 1024},
		{"sparse", Options{Sparse: true}, "", 64},
		{"over", Options{Sum: hasher.Sum}, full, 64 + 1024},
		{"in place", Options{InPlace: true, Sum: hasher.Sum}, full, 64 + 1024},
		{"in place, sparse", Options{InPlace: true, Sparse: true, Sum: hasher.Sum}, full, 64},
		{"in place, short", Options{InPlace: true, Sparse: true}, "x", 64},
		{"same zeros", Options{InPlace: true, Sparse: true, Sum: hasher.Sum}, string(f.data), 64},
	} {
		dir := t.TempDir()
		if c.old != "" {
			put(t, dir, map[string]string{"f": c.old})
		}
		restoreTo(t, memDir("", f), dir, c.opt)
		st, err := lstatat(-100, filepath.Join(dir, "f"))
		if got, _ := os.ReadFile(filepath.Join(dir, "f")); !bytes.Equal(got, f.data) || err != nil || st.mtime != someTime {
			t.Errorf("%s: wrong contents or time, %v", c.name, err)
		}
		if kib := st.blocks / 2; kib > c.max+16 {
			t.Errorf("%s: %d KiB on disk, want %d", c.name, kib, c.max)
		}
	}
}

// TestResume: a run that was killed left finished files and half a file. The
// finished are not read, the half one is continued, other leftovers go unless
// a living run holds them.
func TestResume(t *testing.T) {
	data := random(13, 400*memChunk)
	big, bigRead := memFile("big", data).counted()
	done, doneRead := memFile("done", data).counted()
	dir := t.TempDir()
	put(t, dir, map[string]string{
		"done": string(data), tempFor(&big.attr): string(data[:300*memChunk]),
		".cutbank-0123456789abcdef.tmp": "old", ".cutbank-00000000deadbeef.tmp": "alive", ".cutbank-mine.tmp": "a user's",
	})
	if err := os.Chtimes(filepath.Join(dir, "done"), someTime.Time(), someTime.Time()); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, tempFor(&big.attr)), 0o600); err != nil {
		t.Fatal(err)
	}
	alive, err := os.Open(filepath.Join(dir, ".cutbank-00000000deadbeef.tmp"))
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := lockTemp(int(alive.Fd())); err != nil {
		t.Fatal(err)
	}
	restoreTo(t, memDir("", big, done), dir, Options{Sum: hasher.Sum})
	if doneRead.Load() != 0 || bigRead.Load() != 100*memChunk {
		t.Errorf("fetched %d and %d bytes", doneRead.Load(), bigRead.Load())
	}
	want := map[string]string{"big": string(data), "done": string(data), ".cutbank-00000000deadbeef.tmp": "alive", ".cutbank-mine.tmp": "a user's"}
	if got := list(t, dir); !maps.Equal(got, want) {
		t.Errorf("left %d entries", len(got))
	}
}

// TestResumeAfterStop: a run that ends before it has come to a file leaves what a
// killed run had of it.
func TestResumeAfterStop(t *testing.T) {
	data := random(17, 40*memChunk)
	enough := errors.New("enough")
	for _, how := range []string{"stopped", "damaged listing", "neither"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		first, big, dir := memFile("a", data), memFile("big", data), t.TempDir()
		put(t, dir, map[string]string{tempFor(&big.attr): string(data[:30*memChunk])})
		if err := os.Chmod(filepath.Join(dir, tempFor(&big.attr)), 0o600); err != nil {
			t.Fatal(err)
		}
		n, left := memDir("", first, big), true
		switch how {
		case "stopped":
			first.onRead = func(int64) error { cancel(enough); return enough }
		case "damaged listing":
			n = memDir("", first)
			n.fails = enough
		case "neither":
			n, left = memDir("", first), false
		}
		if _, err := Run(ctx, []Item{{Node: n}}, dir, Options{Sum: hasher.Sum, Workers: 1}); left != errors.Is(err, enough) {
			t.Errorf("%s: %v", how, err)
		}
		if _, err := os.Stat(filepath.Join(dir, tempFor(&big.attr))); left != (err == nil) {
			t.Errorf("%s: %v", how, err)
		}
		cancel(nil)
	}
}

// TestPrefetch: hints name chunks before they are read, each once, and are always
// almost two windows ahead; chunks of any size.
func TestPrefetch(t *testing.T) {
	for _, size := range []int{memChunk, 3 << 20} {
		data := random(14, 24<<20)
		f := memFile("f", data)
		f.exts = nil
		for p := range slices.Chunk(data, size) {
			f.exts = append(f.exts, tree.Extent{Off: int64(len(f.exts) * size), Len: int64(len(p)), Kind: tree.Data, ID: hasher.Sum(p)})
		}
		hinted, told := map[chunk.ID]bool{}, int64(0)
		f.onRead = func(off int64) error {
			if id := f.exts[off/int64(size)].ID; !hinted[id] {
				t.Errorf("chunk at %d was not announced", off)
			}
			if ahead := told - off; told < int64(len(data)) && ahead < 2*window*3/4 {
				t.Errorf("at %d %d bytes are ahead", off, ahead)
			}
			return nil
		}
		n := 0
		restoreTo(t, memDir("", f), t.TempDir(), Options{Prefetch: func(_ context.Context, ids []chunk.ID) {
			for _, id := range ids {
				told += f.exts[n].Len
				n++
				hinted[id] = true
			}
		}})
		if n != len(f.exts) {
			t.Errorf("%d hints for %d chunks", n, len(f.exts))
		}
	}
}
