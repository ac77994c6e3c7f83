package index

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
)

const benchPack = 500 // chunks, as a pack of 32 MiB has

// benchTrailer is testPack in the size of a real pack.
func benchTrailer(n int) *pack.Trailer {
	t := makePack(n)
	t.Size, t.Frames = 32<<20, t.Frames[:0]
	for f := range benchPack / 4 {
		fr := pack.Frame{Off: uint32(2000 + f*200_000), Stored: 190_000}
		for c := range 4 {
			fr.Chunks = append(fr.Chunks, pack.Chunk{ID: testID(n*benchPack + f*4 + c), Len: 60_000})
		}
		fr.Plain = fr.Start(len(fr.Chunks))
		t.Frames = append(t.Frames, fr)
	}
	if err := t.Sign(testKeys()); err != nil {
		panic(err)
	}
	return t
}

// benchDB returns an index of n chunks, all of them in a generation if there
// is a directory, else in memory.
func benchDB(b *testing.B, n int, dir string) *DB {
	b.Helper()
	db, err := Open(b.Context(), newBackend(), testKeys(), Options{Dir: dir, MemoryLimit: 1 << 30, Logf: b.Logf})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	for i := range n / benchPack {
		db.insert(benchTrailer(i), true, false)
	}
	if dir != "" && n > 0 {
		buildNow(b, db)
	}
	return db
}

func buildNow(b *testing.B, db *DB) {
	b.Helper()
	db.buildAt = 1
	db.build(context.Background())
	db.buildAt = 1 << 30
	if db.gen == nil || db.mem.n > 0 {
		b.Fatal("no generation was built")
	}
}

// anonymous returns the process's anonymous memory in bytes.
func anonymous() int64 {
	p, _ := os.ReadFile("/proc/self/status")
	_, s, _ := strings.Cut(string(p), "RssAnon:")
	f := strings.Fields(s)
	if len(f) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(f[0], 10, 64)
	return n << 10
}

// sizes of the index, in chunks. Set INDEX_BENCH_CHUNKS for another one.
func benchSizes(b *testing.B) []int {
	if s := os.Getenv("INDEX_BENCH_CHUNKS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		return []int{n}
	}
	return []int{1_000_000}
}

func BenchmarkLookup(b *testing.B) {
	for _, cached := range []bool{false, true} {
		for _, n := range benchSizes(b) {
			dir, where := "", "memory"
			if cached {
				dir, where = b.TempDir(), "generation"
			}
			var db *DB
			for _, hit := range []bool{true, false} {
				for _, parallel := range []bool{false, true} {
					b.Run(fmt.Sprintf("%s/n=%d/hit=%v/parallel=%v", where, n, hit, parallel), func(b *testing.B) {
						if db == nil || db.closed {
							db = benchDB(b, n, dir)
						}
						ids := make([]chunk.ID, 1<<16)
						for i := range ids {
							k := i * (n / len(ids))
							if !hit {
								k += n
							}
							ids[i] = testID(k)
						}
						b.ReportAllocs()
						b.ResetTimer()
						if !parallel {
							lookups(b, db, ids, 0, hit, func(i int) bool { return i < b.N })
							return
						}
						var workers atomic.Int64
						b.RunParallel(func(pb *testing.PB) {
							lookups(b, db, ids, int(workers.Add(1))*777, hit, func(int) bool { return pb.Next() })
						})
					})
				}
			}
		}
	}
}

func lookups(b *testing.B, db *DB, ids []chunk.ID, at int, hit bool, more func(int) bool) {
	room := make([]pack.Location, 0, 4)
	for i := 0; more(i); i++ {
		locs, err := db.Lookup(ids[(at+i*7919)&(len(ids)-1)], room)
		if err != nil || (len(locs) > 0) != hit {
			b.Errorf("%v, %v", locs, err)
			return
		}
	}
}

// BenchmarkMemory fills the memory half.
func BenchmarkMemory(b *testing.B) {
	db := benchDB(b, 0, "")
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		db.insert(benchTrailer(n), true, false)
		n++
	}
	b.ReportMetric(float64(n*benchPack)/b.Elapsed().Seconds(), "chunks/s")
	b.ReportMetric(float64(len(db.mem.pages)*int(unsafe.Sizeof([pageEntries]entry{}))+4*len(db.mem.heads))/float64(db.mem.n), "B/chunk")
}

// BenchmarkBuild writes a generation of everything, and then one that adds
// 400,000 chunks to it, and opens it.
func BenchmarkBuild(b *testing.B) {
	for _, n := range benchSizes(b) {
		b.Run(fmt.Sprintf("n=%d", n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				db := benchDB(b, 0, dir)
				for i := 0; i < n; i += DefaultMemoryLimit {
					for j := i / benchPack; j < min(n, i+DefaultMemoryLimit)/benchPack; j++ {
						db.insert(benchTrailer(j), true, false)
					}
					if i+DefaultMemoryLimit < n {
						buildNow(b, db)
					}
				}
				before := anonymous()
				b.StartTimer()
				start := time.Now()
				buildNow(b, db)
				b.ReportMetric(float64(n)/time.Since(start).Seconds(), "chunks/s")
				b.StopTimer()
				b.ReportMetric(float64(anonymous()-before)/1e6, "MB-anonymous-more")
				b.ReportMetric(float64(db.gen.bytes())/float64(n), "B/chunk")
				db.Close()
				start = time.Now()
				again, err := Open(b.Context(), newBackend(), testKeys(), Options{Dir: dir, Logf: b.Logf})
				if err != nil || again.gen == nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "ms-to-open")
				again.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkSync reads published segments into memory.
func BenchmarkSync(b *testing.B) {
	r := newBackend()
	w, err := Open(b.Context(), r, testKeys(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	const packs = 400
	for i := 0; i < packs; i += 40 {
		var ts []*pack.Trailer
		for j := range 40 {
			ts = append(ts, benchTrailer(i+j))
		}
		if err := w.Publish(b.Context(), ts); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		db, err := Open(b.Context(), r, testKeys(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		mustSync(b, db)
		db.Close()
	}
	b.ReportMetric(float64(b.N*packs*benchPack)/b.Elapsed().Seconds(), "chunks/s")
}
