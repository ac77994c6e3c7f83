package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
)

// Run tests that what open returns keeps every sentence of backend.Backend's
// contract. open is called once a test and returns an empty Backend; what it
// must tidy up it registers with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	for _, tt := range []struct {
		name string
		f    func(t *testing.T, b backend.Backend)
	}{
		{"PutGet", testPutGet},
		{"PutKeepsNoReference", testReference},
		{"PutExisting", testExisting},
		{"PutRace", testRace},
		{"PutIsAtomic", testAtomic},
		{"GetRanges", testRanges},
		{"Missing", testMissing},
		{"List", testList},
		{"ListTimes", testListTimes},
		{"ListWhileChanging", testListChanging},
		{"ListStops", testListStops},
		{"Remove", testRemove},
		{"Names", testNames},
		{"Cancelled", testCancelled},
		{"String", testString},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.f(t, open(t)) })
	}
}

func put(t *testing.T, b backend.Backend, name string, p []byte) {
	t.Helper()
	if err := b.Put(t.Context(), name, p); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func want(t *testing.T, b backend.Backend, name string, p []byte) {
	t.Helper()
	got, err := b.Get(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatalf("get %s: %v", name, err)
	}
	if !bytes.Equal(got, p) {
		t.Fatalf("get %s: got %d bytes, want %d others", name, len(got), len(p))
	}
}

// list returns the names and sizes, and fails on a name that comes twice.
func list(t *testing.T, b backend.Backend, prefix string) map[string]int64 {
	t.Helper()
	all := make(map[string]int64)
	for info, err := range b.List(t.Context(), prefix) {
		if err != nil {
			t.Fatalf("list %q: %v", prefix, err)
		}
		if _, ok := all[info.Name]; ok {
			t.Fatalf("list %q: %s comes twice", prefix, info.Name)
		}
		all[info.Name] = info.Size
	}
	return all
}

// pattern is n bytes that tell where they are.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return p
}

func testPutGet(t *testing.T, b backend.Backend) {
	for name, n := range map[string]int{
		"empty": 0, "one": 1, "packs/ab/abcdef": 100, "a/b/c/d/e": 4096, "snapshots/a.b_c-9": 4097, "big": 40 << 20,
	} {
		p := pattern(n)
		put(t, b, name, p)
		want(t, b, name, p)
		if got := list(t, b, name); len(got) != 1 || got[name] != int64(n) {
			t.Errorf("list %q: got %v, want a size of %d", name, got, n)
		}
	}
}

func testReference(t *testing.T, b backend.Backend) {
	p := pattern(1000)
	put(t, b, "object", p)
	clear(p)
	want(t, b, "object", pattern(1000))
	got, err := b.Get(t.Context(), "object", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	clear(got[:cap(got)]) // the slice is the caller's
	want(t, b, "object", pattern(1000))
}

func testExisting(t *testing.T, b backend.Backend) {
	put(t, b, "config/1", []byte("first"))
	put(t, b, "empty", nil)
	for name, there := range map[string]string{"config/1": "first", "empty": ""} {
		for _, p := range []string{"second", "first", "firs", ""} {
			err := b.Put(t.Context(), name, []byte(p))
			if same := p == there && err == nil; !same && !errors.Is(err, fs.ErrExist) {
				t.Errorf("put %s again: got %v, want fs.ErrExist", name, err)
			}
		}
	}
	want(t, b, "config/1", []byte("first"))
	want(t, b, "empty", nil)
	if got := list(t, b, ""); len(got) != 2 {
		t.Errorf("the backend holds %v", got)
	}
}

// testRace: of 16 clients that put different bytes under one name exactly one
// wins, and its bytes are there.
func testRace(t *testing.T, b backend.Backend) {
	for round := range 20 {
		name := fmt.Sprintf("snapshots/%d/x", round)
		var winners atomic.Int32
		var winner atomic.Value
		var group sync.WaitGroup
		start := make(chan struct{})
		for i := range 16 {
			group.Go(func() {
				p := bytes.Repeat([]byte{byte(i)}, 1000+i)
				<-start
				switch err := b.Put(t.Context(), name, p); {
				case err == nil:
					winners.Add(1)
					winner.Store(p)
				case !errors.Is(err, fs.ErrExist):
					t.Errorf("client %d: %v", i, err)
				}
			})
		}
		close(start)
		group.Wait()
		if n := winners.Load(); n != 1 {
			t.Fatalf("%d clients won, want one", n)
		}
		want(t, b, name, winner.Load().([]byte))
	}
}

// testAtomic: who looks while an object is put sees nothing or all of it.
func testAtomic(t *testing.T, b backend.Backend) {
	p := pattern(3 << 20)
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		defer close(done)
		for i := range 10 {
			if err := b.Put(t.Context(), fmt.Sprintf("packs/%d", i), p); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for i := range 10 {
			got, err := b.Get(t.Context(), fmt.Sprintf("packs/%d", i), 0, -1)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if err == nil && !bytes.Equal(got, p) {
				t.Errorf("got %d of %d bytes while it was put", len(got), len(p))
			}
		}
		for name, n := range list(t, b, "") {
			if n != int64(len(p)) {
				t.Errorf("%s is listed with %d of %d bytes, or is no object", name, n, len(p))
			}
		}
	}
	group.Wait()
}

func testRanges(t *testing.T, b backend.Backend) {
	p := pattern(10_000)
	put(t, b, "packs/aa/x", p)
	for _, r := range []struct{ off, n int64 }{{0, 0}, {0, 1}, {0, 10_000}, {1, 9_999}, {9_999, 1}, {10_000, 0}, {4096, 4096}, {0, -1}, {1, -1}, {9_999, -1}, {10_000, -1}, {5, math.MinInt64}} {
		n := r.n
		if n < 0 {
			n = 10_000 - r.off
		}
		got, err := b.Get(t.Context(), "packs/aa/x", r.off, r.n)
		if err != nil || !bytes.Equal(got, p[r.off:r.off+n]) {
			t.Errorf("get %d from %d on: got %d bytes, %v", r.n, r.off, len(got), err)
		}
	}
	for _, r := range []struct{ off, n int64 }{{0, 10_001}, {9_999, 2}, {10_000, 1}, {10_001, -1}, {1 << 40, 1}, {1, math.MaxInt64}, {math.MaxInt64, math.MaxInt64}} {
		if got, err := b.Get(t.Context(), "packs/aa/x", r.off, r.n); !errors.Is(err, io.ErrUnexpectedEOF) || got != nil {
			t.Errorf("get %d from %d on: got %d bytes, %v, want io.ErrUnexpectedEOF", r.n, r.off, len(got), err)
		}
	}
	if _, err := b.Get(t.Context(), "packs/aa/x", -1, 1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("get from -1 on: got %v, want fs.ErrInvalid", err)
	}
}

func testMissing(t *testing.T, b backend.Backend) {
	put(t, b, "packs/aa/x", []byte("x"))
	for _, name := range []string{"y", "packs", "packs/aa", "packs/aa/y", "packs/bb/x", "packs/aa/x/y", "none/at/all"} {
		for _, n := range []int64{-1, 0, 1} {
			if _, err := b.Get(t.Context(), name, 0, n); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("get %s: got %v, want fs.ErrNotExist", name, err)
			}
		}
	}
}

func testList(t *testing.T, b backend.Backend) {
	if got := list(t, b, ""); len(got) != 0 {
		t.Errorf("an empty backend lists %v", got)
	}
	names := []string{"a", "ab", "packs/aa/1", "packs/aa/2", "packs/ab/1", "packs/b", "packs.old", "snapshots/1"}
	for i, name := range names {
		put(t, b, name, make([]byte, i))
	}
	for _, prefix := range append(names, "", "a", "pack", "packs", "packs/", "packs/a", "packs/aa", "packs/aa/", "packs/aa/1/", "s", "z", "z/y/", "/", "/packs", "..", "../", "packs/../packs/", "packs//", "./packs") {
		expect := make(map[string]int64)
		for i, name := range names {
			if strings.HasPrefix(name, prefix) {
				expect[name] = int64(i)
			}
		}
		if got := list(t, b, prefix); !maps.Equal(got, expect) {
			t.Errorf("list %q: got %v, want %v", prefix, got, expect)
		}
	}
}

func testListTimes(t *testing.T, b backend.Backend) {
	put(t, b, "first", nil)
	put(t, b, "second", nil)
	times := make(map[string]time.Time)
	for info, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		times[info.Name] = info.ModTime
	}
	if times["first"].IsZero() || times["second"].Before(times["first"]) {
		t.Errorf("modification times %v", times)
	}
}

// testListChanging: what is there all the while is listed once, whatever comes
// and goes beside it.
func testListChanging(t *testing.T, b backend.Backend) {
	var steady []string
	for i := range 50 {
		name := fmt.Sprintf("packs/%02x/steady", i)
		steady = append(steady, name)
		put(t, b, name, nil)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("packs/%02x/%d", i%60, i)
			if err := b.Put(t.Context(), name, []byte("x")); err != nil {
				t.Error(err)
			}
			if err := b.Remove(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		got := list(t, b, "packs/")
		for _, name := range steady {
			if _, ok := got[name]; !ok {
				t.Errorf("%s was not listed", name)
			}
		}
	}
	stop()
	group.Wait()
	if got := slices.Sorted(maps.Keys(list(t, b, ""))); !slices.Equal(got, steady) {
		t.Errorf("afterwards the backend holds %v", got)
	}
}

func testListStops(t *testing.T, b backend.Backend) {
	for i := range 5 {
		put(t, b, fmt.Sprintf("a/%d", i), nil)
	}
	n := 0
	for range b.List(t.Context(), "") {
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("the loop ran %d times", n)
	}
	seq := b.List(t.Context(), "a/") // may be ranged over again
	for range 2 {
		n := 0
		for _, err := range seq {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != 5 {
			t.Errorf("listed %d objects, want 5", n)
		}
	}
}

func testRemove(t *testing.T, b backend.Backend) {
	put(t, b, "packs/aa/x", []byte("x"))
	put(t, b, "packs/aa/y", []byte("y"))
	for _, name := range []string{"packs/aa/x", "packs/aa/x", "none", "none/at/all", "packs/aa/y/z"} {
		if err := b.Remove(t.Context(), name); err != nil {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if _, err := b.Get(t.Context(), "packs/aa/x", 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get after remove: got %v", err)
	}
	if got := list(t, b, ""); len(got) != 1 || got["packs/aa/y"] != 1 {
		t.Errorf("the backend holds %v", got)
	}
	put(t, b, "packs/aa/x", []byte("new"))
	want(t, b, "packs/aa/x", []byte("new"))
}

func testNames(t *testing.T, b backend.Backend) {
	for _, name := range []string{"", ".", "..", "/", "/a", "a/", "a//b", "./a", "a/..", "../a", "a/../../b", "A", "a b", "a\x00b", "a\\b", "ä", "a~", "\xff", "a\n", strings.Repeat("a", 201)} {
		if err := b.Put(t.Context(), name, []byte("x")); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("put %q: got %v, want fs.ErrInvalid", name, err)
		}
		if _, err := b.Get(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("get %q: got %v, want fs.ErrInvalid", name, err)
		}
		if err := b.Remove(t.Context(), name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("remove %q: got %v, want fs.ErrInvalid", name, err)
		}
	}
	if got := list(t, b, ""); len(got) != 0 {
		t.Errorf("the backend holds %v", got)
	}
	for _, name := range []string{"...", ".a", "a.", "-", "_/-", "tmp/x", strings.Repeat("a", 200), strings.Repeat("a/", 99) + "a"} {
		put(t, b, name, []byte(name))
		want(t, b, name, []byte(name))
		if got := list(t, b, name); len(got) != 1 {
			t.Errorf("list %q: got %v", name, got)
		}
	}
}

func testCancelled(t *testing.T, b backend.Backend) {
	put(t, b, "a", []byte("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Put(ctx, "b", []byte("b")); !errors.Is(err, context.Canceled) {
		t.Errorf("put: got %v, want context.Canceled", err)
	}
	if _, err := b.Get(ctx, "a", 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("get: got %v, want context.Canceled", err)
	}
	if err := b.Remove(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("remove: got %v, want context.Canceled", err)
	}
	var last error
	for _, err := range b.List(ctx, "") {
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("list: got %v, want context.Canceled", last)
	}
	if got := list(t, b, ""); len(got) != 1 {
		t.Errorf("the backend holds %v", got)
	}
}

func testString(t *testing.T, b backend.Backend) {
	if b.String() == "" {
		t.Error("the backend has no name for messages")
	}
	if b.Lag() < 0 {
		t.Errorf("lag %v", b.Lag())
	}
}
