package repo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
)

// The repository that prune is measured with: snapshots of a tree of dirs*files
// files, in each of which one file in a thousand has changed.
const (
	benchSnapshots = 1000
	benchDirs      = 1000
	benchFiles     = 100 // in each directory
	benchChanged   = benchDirs * benchFiles / 1000
)

// BenchmarkPrunePlan measures what a prune costs that finds nothing to remove: to
// mark what a thousand snapshots need and look at every pack, in a process of its
// own and without local state. Making the repository takes about a minute.
//
//	go test -run '^$' -bench PrunePlan -benchtime 1x -timeout 30m ./repo
func BenchmarkPrunePlan(b *testing.B) {
	if dir := os.Getenv("CUTBANK_BENCH_PLAN"); dir != "" {
		planOnce(b, dir)
		return
	}
	dir := "/tmp/h/planrepo"
	if _, err := os.Stat(dir); err != nil {
		benchRepository(b, dir)
	}
	for b.Loop() {
		cmd := exec.Command(os.Args[0], "-test.run", "^$", "-test.bench", "PrunePlan", "-test.benchtime", "1x")
		cmd.Env = append(os.Environ(), "CUTBANK_BENCH_PLAN="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			var seconds, megabytes float64
			var pages int
			if n, _ := fmt.Sscanf(line, "planned in %f s, %f MB at most, %d pages", &seconds, &megabytes, &pages); n == 3 {
				b.ReportMetric(seconds, "plan-s")
				b.ReportMetric(megabytes, "peak-MB")
				b.ReportMetric(float64(pages), "pages")
			}
		}
	}
}

// planOnce is the process that is measured.
func planOnce(b *testing.B, dir string) {
	s, err := local.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	opt := testOptions(b)
	opt.Logf = nil
	opt.CacheDir = b.TempDir()
	opt.FrameCache = 24 << 20 // as the program does
	begin := time.Now()
	r, err := Open(b.Context(), s, opt)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	res, err := r.Prune(b.Context(), PruneOptions{DryRun: true, MaxRepack: -1})
	if err != nil || res.Snapshots != benchSnapshots || res.Unneeded.Packs > 0 {
		b.Fatalf("%+v, %v", res, err)
	}
	fmt.Printf("planned in %.2f s, %.0f MB at most, %d pages\n", time.Since(begin).Seconds(), peakMB(b), res.Pages)
}

// peakMB is the most memory that this process had at a time.
func peakMB(tb testing.TB) float64 {
	p, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Skip(err)
	}
	for line := range strings.Lines(string(p)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	tb.Fatal("no VmHWM")
	return 0
}

// benchRepository makes the repository. The chunks are stored empty of meaning,
// but stored.
func benchRepository(b *testing.B, dir string) {
	b.Helper()
	s, err := local.Create(dir)
	if err != nil {
		b.Fatal(err)
	}
	in := testParams(b)
	in.FrameSize, in.PackSize = 256<<10, 32<<20
	opt := testOptions(b)
	opt.Logf = nil
	r, err := Init(b.Context(), s, in, opt)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	rnd := rand.New(rand.NewPCG(1, 2))
	versions := make([]uint32, benchDirs*benchFiles)
	dirs := make([]tree.Entry, benchDirs)
	witness := make([]tree.Witness, benchDirs)
	dirty := map[int]bool{}
	for d := range dirs {
		dirty[d] = true
	}
	for range benchSnapshots {
		benchSnapshot(b, r, versions, dirs, witness, dirty)
		clear(dirty)
		for range benchChanged {
			f := rnd.IntN(len(versions))
			versions[f]++
			dirty[f/benchFiles] = true
		}
	}
}

func benchSnapshot(b *testing.B, r *Repo, versions []uint32, dirs []tree.Entry, witness []tree.Witness, dirty map[int]bool) {
	b.Helper()
	s := testBegin(b, r)
	meta, data := s.Writer.Stream(pack.Meta), s.Writer.Stream(pack.Data)
	put := func(p []byte) (chunk.ID, error) {
		id := r.k.Tree.Sum(p)
		_, err := meta.Put(id, p)
		return id, err
	}
	for d := range dirty {
		w, ww := tree.NewDirWriter(put), tree.NewWitnessWriter(put)
		for f := range benchFiles {
			v := versions[d*benchFiles+f]
			text := fmt.Appendf(nil, "file %d of directory %d, version %d", f, d, v)
			id := r.k.Data.Sum(text)
			if _, err := data.Put(id, text); err != nil {
				b.Fatal(err)
			}
			name := fmt.Sprintf("some-file-%03d.txt", f)
			e := tree.Entry{Attr: tree.Attr{Name: name, Kind: tree.File, Mode: 0o644, UID: 1000, GID: 1000, Nlink: 1, Size: int64(len(text)),
				Mtime: tree.Time{Sec: 1700000000 + int64(v), Nsec: 123456789}}, Extents: []tree.Extent{{Len: int64(len(text)), Kind: tree.Data, ID: id}}}
			if err := errors.Join(w.Add(&e), ww.Add(&tree.Witness{Name: name, Ino: uint64(d*benchFiles + f), Dev: 42, Ctime: e.Mtime})); err != nil {
				b.Fatal(err)
			}
		}
		dirs[d] = tree.Entry{Attr: tree.Attr{Name: fmt.Sprintf("directory-%04d", d), Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
		root, err := ww.Finish()
		if err := errors.Join(err, w.Finish(&dirs[d])); err != nil {
			b.Fatal(err)
		}
		witness[d] = tree.Witness{Name: dirs[d].Name, Ino: uint64(1e9 + d), Dev: 42, Root: root}
	}
	w, ww := tree.NewDirWriter(put), tree.NewWitnessWriter(put)
	for d := range dirs {
		e := dirs[d]
		if err := errors.Join(w.Add(&e), ww.Add(&witness[d])); err != nil {
			b.Fatal(err)
		}
	}
	top := tree.Entry{Attr: tree.Attr{Name: tree.RootName, Kind: tree.Dir, Mode: 0o755, Nlink: 1}}
	wroot, err := ww.Finish()
	rw, page := tree.NewDirWriter(put), tree.Entry{}
	if err := errors.Join(err, w.Finish(&top), rw.Add(&top), rw.Finish(&page)); err != nil {
		b.Fatal(err)
	}
	meta.Flush()
	data.Flush()
	rec := &Snapshot{Name: "host", Time: start, Tree: PageID{page.Root}, Witness: PageID{wroot}}
	if err := s.Commit(b.Context(), rec); err != nil {
		b.Fatal(err)
	}
	if _, err := r.ix.Merge(b.Context()); err != nil {
		b.Fatal(err)
	}
}
