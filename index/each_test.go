package index

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

// eachOf calls EachPack and fails if a pack comes twice.
func eachOf(t testing.TB, db *DB) (map[pack.Name]*pack.Trailer, error) {
	t.Helper()
	all := map[pack.Name]*pack.Trailer{}
	err := db.EachPack(t.Context(), func(x *pack.Trailer) error {
		if all[x.Name] != nil {
			t.Errorf("pack %s comes twice", x.Name)
		}
		all[x.Name] = x
		return nil
	})
	return all, err
}

func TestEachPack(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached=%v", cached), func(t *testing.T) {
			owner := ownerKeys(t)
			node, hostile := writerKeys(t, 1, owner), writerKeys(t, 2, owner)
			meet(node, hostile)
			b, dir := newBackend(), ""
			if cached {
				dir = t.TempDir()
			}
			db, _ := openAs(t, b, owner, dir)
			publish(t, db, testPacks(0, 30)...)
			put(t, b, owner, testPacks(20, 40)...) // some twice, some not read yet
			if err := db.Drop(t.Context(), []pack.Name{testName(1), testName(29)}); err != nil {
				t.Fatal(err)
			}
			added, _ := storedBy(t, b, owner, 1)
			vanished, _ := storedBy(t, b, owner, 2)
			delete(b.objects, vanished.Name.Object())
			for _, x := range []*pack.Trailer{added, vanished} { // not published
				if err := db.Add(x); err != nil {
					t.Fatal(err)
				}
			}
			disputed, _ := storedBy(t, b, node, 3)
			put(t, b, hostile, lie(t, hostile, disputed, testID(1<<30)))
			put(t, b, node, disputed)
			nobodys, _ := storedBy(t, b, node, 4) // listed falsely, in two ways
			again := lie(t, hostile, nobodys, testID(1<<30))
			again.Session[0]++
			if err := again.Sign(hostile); err != nil {
				t.Fatal(err)
			}
			put(t, b, hostile, lie(t, hostile, nobodys, testID(1<<30)))
			put(t, b, hostile, again)
			for range 2 {
				all, err := eachOf(t, db)
				if err != nil {
					t.Fatal(err)
				}
				if len(all) != 38+3 {
					t.Errorf("%d packs, want 41", len(all))
				}
				for _, x := range append(testPacks(2, 29), added, disputed, nobodys) {
					if y := all[x.Name]; y == nil || y.Writer != x.Writer || len(y.Frames) != len(x.Frames) || y.Frames[0].Chunks[0] != x.Frames[0].Chunks[0] {
						t.Errorf("pack %s: %v", x.Name, y)
					}
				}
			}
			db.Close()
			if _, err := eachOf(t, db); !errors.Is(err, fs.ErrClosed) {
				t.Error(err)
			}
		})
	}
}

// A segment that cannot be read is reported after all else: its packs come
// where the cache knows them, by their own trailers.
func TestEachPackDamaged(t *testing.T) {
	for _, known := range []bool{false, true} {
		b := newBackend()
		owner := ownerKeys(t)
		db, _ := openAs(t, b, owner, "")
		publish(t, db, testPacks(0, 10)...)
		x, _ := storedBy(t, b, owner, 1)
		before := b.names("index/")
		put(t, b, owner, x)
		if known {
			mustSync(t, db)
		}
		var bad string
		for _, name := range b.names("index/") {
			if !strings.Contains(strings.Join(before, " "), name) {
				bad = name
			}
		}
		b.objects[bad][60] ^= 1
		all, err := eachOf(t, db)
		if !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), bad) || strings.Count(err.Error(), "index/") != 1 {
			t.Errorf("known %v: %v", known, err)
		}
		if (all[x.Name] != nil) != known || len(all) < 10 {
			t.Errorf("known %v: %d packs", known, len(all))
		}
		orphans, err := db.Orphans(t.Context())
		if known != (len(orphans) == 0) || (err == nil) != known {
			t.Errorf("known %v: orphans %v, %v", known, orphans, err)
		}
	}
}

// Segments are merged while EachPack reads them.
func TestEachPackBesideMerge(t *testing.T) {
	b := newBackend()
	w, _ := openDB(t, b, "")
	stands(b, testPacks(0, 70)...)
	publish(t, w, testPacks(0, 70)...)
	db, _ := openDB(t, b, "")
	mustSync(t, db)
	var once sync.Once
	all := map[pack.Name]bool{}
	err := db.EachPack(t.Context(), func(x *pack.Trailer) error {
		once.Do(func() {
			if n, err := w.Merge(t.Context()); n != 70 || err != nil {
				t.Errorf("merged %d, %v", n, err)
			}
		})
		all[x.Name] = true
		return nil
	})
	if err != nil || len(all) != 70 {
		t.Errorf("%d packs, %v", len(all), err)
	}
}

func TestEachPackEnds(t *testing.T) {
	b := newBackend()
	db, _ := openDB(t, b, "")
	publish(t, db, testPacks(0, 20)...)
	enough := errors.New("enough")
	n := 0
	err := db.EachPack(t.Context(), func(*pack.Trailer) error {
		if n++; n == 7 {
			return enough
		}
		return nil
	})
	if err != enough || n != 7 {
		t.Errorf("%d packs, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = db.EachPack(ctx, func(*pack.Trailer) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	broken := errors.New("the wire is cut")
	b.hook = func(op, _ string) error {
		if op == "list" {
			return broken
		}
		return nil
	}
	if _, err := eachOf(t, db); !errors.Is(err, broken) {
		t.Error(err)
	}
}

// f may use the index, while others publish, merge, compact and drop.
func TestEachPackConcurrently(t *testing.T) {
	b := newBackend()
	stands(b, testPacks(0, 200)...)
	w, _ := openDB(t, b, t.TempDir())
	db, _ := openDB(t, b, t.TempDir())
	publish(t, w, testPacks(0, 60)...)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(stop)
		for n := 60; n < 200; n++ {
			publish(t, w, testPack(n))
			if n%20 == 0 {
				falls(b, testPack(n-60))
				if err := w.Drop(t.Context(), []pack.Name{testName(n - 60)}); err != nil {
					t.Error(err)
				}
				if _, err := w.Compact(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if _, err := w.Merge(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
	for done := false; !done; {
		select {
		case <-stop:
			done = true
		default:
		}
		all := map[pack.Name]bool{}
		err := db.EachPack(t.Context(), func(x *pack.Trailer) error {
			all[x.Name] = true
			_, err := db.Lookup(x.Frames[0].Chunks[0].ID, nil)
			if len(all)%50 == 0 {
				_, e := db.Sync(t.Context())
				err = errors.Join(err, e)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		for n := range 60 {
			if n%20 != 0 && !all[testName(n)] {
				t.Errorf("pack %d was not seen", n)
			}
		}
	}
	wg.Wait()
}

// compactor is the child process of TestCompactByProcesses: it compacts until
// its input ends.
func compactor() error {
	db, err := Open(context.Background(), dirBackend{os.Getenv("INDEX_TEST_REPO")}, testKeys(), Options{Dir: os.Getenv("INDEX_TEST_DIR"), MemoryLimit: 500})
	if err != nil {
		return err
	}
	defer db.Close()
	db.segment = 64 << 10
	end := make(chan struct{})
	go func() {
		for bufio.NewScanner(os.Stdin).Scan() {
		}
		close(end)
	}()
	fmt.Println("ready")
	for {
		if _, err := db.Compact(context.Background()); err != nil {
			return err
		}
		if _, err := db.Merge(context.Background()); err != nil {
			return err
		}
		select {
		case <-end:
			return nil
		default:
		}
	}
}

// Two processes compact, one of them is killed, while this one publishes and
// removes packs.
func TestCompactByProcesses(t *testing.T) {
	repo, dir := t.TempDir(), t.TempDir()
	start := func() *process {
		p := &process{Cmd: exec.Command(os.Args[0])}
		p.Env = append(os.Environ(), "INDEX_TEST_CHILD=compact", "INDEX_TEST_REPO="+repo, "INDEX_TEST_DIR="+dir)
		p.Stderr = &p.errs
		in, err := p.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); p.Process.Kill() })
		p.lines = bufio.NewScanner(out)
		p.lines.Scan()
		p.close = in.Close
		return p
	}
	b := dirBackend{repo}
	db, _ := openDB(t, b, dir)
	stays, killed := start(), start()
	const packs = 80
	for n := range packs {
		x := testPack(n)
		if err := b.Put(t.Context(), x.Name.Object(), nil); err != nil {
			t.Fatal(err)
		}
		publish(t, db, x)
		if n%4 == 3 {
			if err := b.Remove(t.Context(), x.Name.Object()); err != nil {
				t.Fatal(err)
			}
			if err := db.Drop(t.Context(), []pack.Name{x.Name}); err != nil {
				t.Fatal(err)
			}
		}
		if n%20 == 10 {
			killed.Process.Kill()
			killed.Wait()
			killed = start()
		}
	}
	for _, p := range []*process{stays, killed} {
		p.close()
		if err := p.Wait(); err != nil {
			t.Errorf("%v\n%s", err, p.errs.String())
		}
	}
	fresh, _ := openDB(t, b, "")
	for range 2 {
		mustCompact(t, fresh)
	}
	mustSync(t, fresh)
	for _, x := range []*DB{db, fresh} {
		mustSync(t, x)
		for n := range packs {
			if got, of := found(t, x, n, n+1); n%4 != 3 && got != of || n%4 == 3 && got != 0 {
				t.Errorf("pack %d: %d of %d chunks are known", n, got, of)
			}
		}
	}
	all, err := eachOf(t, fresh)
	if err != nil || len(all) != packs-packs/4 {
		t.Errorf("%d packs, %v", len(all), err)
	}
}

// BenchmarkEachPack reads what 5,000 packs of 500 chunks list.
func BenchmarkEachPack(b *testing.B) {
	const packs = 5000
	r := newBackend()
	w, err := Open(b.Context(), r, testKeys(), Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for i := 0; i < packs; i += 500 {
		var ts []*pack.Trailer
		for j := range 500 {
			ts = append(ts, benchTrailer(i+j))
		}
		if err := w.Publish(b.Context(), ts); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		err := w.EachPack(b.Context(), func(*pack.Trailer) error { n++; return nil })
		if err != nil || n != packs {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.N*packs)/b.Elapsed().Seconds(), "packs/s")
	var size int64
	for _, name := range r.names("index/") {
		size += int64(len(r.objects[name]))
	}
	b.ReportMetric(float64(size)/1e6, "MB-of-segments")
}

// BenchmarkCompact rewrites the segments of 5,000 packs of 500 chunks, every
// third of which is gone.
func BenchmarkCompact(b *testing.B) {
	const packs = 5000
	full := newBackend()
	w, err := Open(b.Context(), full, testKeys(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for i := 0; i < packs; i += 500 {
		var ts []*pack.Trailer
		for j := range 500 {
			x := benchTrailer(i + j)
			if ts = append(ts, x); j%3 > 0 {
				full.objects[x.Name.Object()] = nil
			}
		}
		if err := w.Publish(b.Context(), ts); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		db, err := Open(b.Context(), full.clone(), testKeys(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		if res, err := db.Compact(b.Context()); err != nil || res.Listings != 10*167 {
			b.Fatalf("%+v, %v", res, err)
		}
		db.Close()
	}
}
