package restore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"sync"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

const farAhead = 24 << 20 // what a store across a network says

// hints counts what Prefetch is told.
type hints struct {
	mu   sync.Mutex
	told map[chunk.ID]int
	most int // at once
}

func (h *hints) prefetch(_ context.Context, ids []chunk.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told == nil {
		h.told = map[chunk.ID]int{}
	}
	h.most = max(h.most, len(ids))
	for _, id := range ids {
		h.told[id]++
	}
}

func (h *hints) count(id chunk.ID) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.told[id]
}

// manyFiles is n directories of 20 small files each, the last of each linked to
// the first, and what a restore of them leaves.
func manyFiles(n int, onRead func(f *mem, off int64) error) (*mem, map[string]string) {
	var dirs []*mem
	want := map[string]string{}
	for i := range n {
		var kids []*mem
		name := fmt.Sprintf("d%03d", i)
		want[name] = "/"
		for j := range 20 {
			k := j % 19
			f := memFile(fmt.Sprintf("f%02d", j), random(uint64(i*20+k), 100+i*500*k%(3*memChunk)))
			if k == 0 {
				f.attr.Nlink, f.attr.Ino = 2, uint64(i)
			}
			f.onRead = func(off int64) error { return onRead(f, off) }
			want[name+"/"+f.attr.Name] = string(f.data)
			kids = append(kids, f)
		}
		dirs = append(dirs, memDir(name, kids...))
	}
	return memDir("", dirs...), want
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestAhead: what is held back until Prefetch was told of it is restored all the
// same, and was told before it is read.
func TestAhead(t *testing.T) {
	var h hints
	n, want := manyFiles(70, func(f *mem, off int64) error {
		if id := f.exts[off/memChunk].ID; h.count(id) == 0 {
			t.Errorf("%s at %d was not announced", f.attr.Name, off)
		}
		return nil
	})
	dir, before := t.TempDir(), openFiles(t)
	tot := restoreTo(t, n, dir, Options{Ahead: farAhead, Prefetch: h.prefetch, Sum: hasher.Sum})
	if got := list(t, dir); !maps.Equal(got, want) || tot.Files != 70*20 {
		t.Errorf("%d entries, want %d; %+v", len(got), len(want), tot)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors are left open", after-before)
	}
}

// TestAheadStopped: names that are held back are let go of when the run ends early.
func TestAheadStopped(t *testing.T) {
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	n, _ := manyFiles(70, func(f *mem, off int64) error {
		cancel(stop)
		return nil
	})
	dir, before := t.TempDir(), openFiles(t)
	var h hints
	if _, err := Run(ctx, []Item{{Node: n}}, dir, Options{Ahead: farAhead, Prefetch: h.prefetch}); !errors.Is(err, stop) {
		t.Errorf("error %v, want %v", err, stop)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors are left open", after-before)
	}
	for name := range list(t, dir) {
		if isTemp(name[max(0, len(name)-len(tempPrefix+tempSuffix)-16):]) {
			t.Errorf("%s is left", name)
		}
	}
}

// TestAheadDescriptors: names that are held back keep few directories open, however
// deep each of them lies.
func TestAheadDescriptors(t *testing.T) {
	const depth = 9
	var kids []*mem
	for i := range 300 {
		n := memFile("f", []byte(fmt.Sprint(i)))
		for range depth - 1 {
			n = memDir("d", n)
		}
		n.attr.Name = fmt.Sprintf("d%03d", i)
		kids = append(kids, n)
	}
	before, most := openFiles(t), 0
	opt := Options{Ahead: farAhead, Workers: 4, Prefetch: func(context.Context, []chunk.ID) {}}
	opt.Observer.Done = func(a Action) {
		if path.Base(a.Path) == "f" {
			most = max(most, openFiles(t)-before)
		}
	}
	if tot := restoreTo(t, memDir("", kids...), t.TempDir(), opt); tot.Files != 300 {
		t.Errorf("%+v", tot)
	}
	// Each job in the queue and at work has its own way down.
	if limit := aheadDirs + (5*opt.Workers+2)*(depth+1); most > limit {
		t.Errorf("%d descriptors were open, want at most %d", most, limit)
	}
}

// TestDescriptors: however many workers there are, and names that wait for them, few
// directories are open.
func TestDescriptors(t *testing.T) {
	const depth = 9
	var kids []*mem
	for i := range 200 {
		n := memFile("f", []byte(fmt.Sprint(i)))
		n.onRead = func(int64) error {
			time.Sleep(300 * time.Millisecond)
			return nil
		}
		for range depth - 1 {
			n = memDir("d", n)
		}
		n.attr.Name = fmt.Sprintf("d%03d", i)
		kids = append(kids, n)
	}
	before, most := openFiles(t), 0
	opt := Options{Workers: 40}
	opt.Observer.Done = func(a Action) {
		if path.Base(a.Path) == "f" {
			most = max(most, openFiles(t)-before)
		}
	}
	if tot := restoreTo(t, memDir("", kids...), t.TempDir(), opt); tot.Files != 200 {
		t.Errorf("%+v", tot)
	}
	if limit := maxDirs + 3*depth + 3*opt.Workers; most > limit {
		t.Errorf("%d descriptors were open, want at most %d", most, limit)
	}
}

// TestAheadLinks: what is restored by a link is not asked for.
func TestAheadLinks(t *testing.T) {
	var days []*mem
	for i := range 30 {
		f := memFile("f", random(15, 10*memChunk))
		f.attr.Nlink, f.attr.Ino = 30, 7
		days = append(days, memDir(fmt.Sprintf("%02d", i), f))
	}
	var h hints
	restoreTo(t, memDir("", days...), t.TempDir(), Options{Ahead: farAhead, Prefetch: h.prefetch})
	for _, e := range days[0].kids[0].exts {
		if n := h.count(e.ID); n < 1 || n > 2 { // by the walker, and by who restores it
			t.Errorf("the chunk at %d was announced %d times", e.Off, n)
		}
	}
}

// TestAheadSmallChunks: extents of a few bytes do not make the hints long.
func TestAheadSmallChunks(t *testing.T) {
	f := memFile("f", random(16, 100_000))
	f.exts = nil
	for off := range f.data {
		f.exts = append(f.exts, tree.Extent{Off: int64(off), Len: 1, Kind: tree.Data, ID: hasher.Sum(f.data[off : off+1])})
	}
	g := *f
	g.attr.Name = "g"
	var h hints
	restoreTo(t, memDir("", f, &g), t.TempDir(), Options{Ahead: farAhead, Prefetch: h.prefetch})
	if h.most > maxQueue {
		t.Errorf("%d chunks were announced at once, want at most %d", h.most, maxQueue)
	}
}

// TestAheadIsShared: however many workers there are, no more is asked for ahead of
// reading than all of them together are told to.
func TestAheadIsShared(t *testing.T) {
	const ahead = 4 << 20
	var mu sync.Mutex
	left, size, most := map[chunk.ID]int64{}, int64(0), int64(0)
	var kids []*mem
	for i := range 5 {
		f := memFile(fmt.Sprint(i), random(uint64(i), 8<<20))
		f.onRead = func(off int64) error {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range f.exts[off/memChunk : min((off+blockSize)/memChunk, int64(len(f.exts)))] {
				size -= left[e.ID]
				left[e.ID] = 0
			}
			return nil
		}
		kids = append(kids, f)
	}
	restoreTo(t, memDir("", kids...), t.TempDir(), Options{Ahead: ahead, Workers: 3, Prefetch: func(_ context.Context, ids []chunk.ID) {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range ids {
			if _, again := left[id]; !again {
				left[id], size = memChunk, size+memChunk
			}
		}
		most = max(most, size)
	}})
	if limit := int64(2*ahead + 4*blockSize); most > limit {
		t.Errorf("%d bytes were asked for ahead of reading, want at most %d", most, limit)
	}
}
