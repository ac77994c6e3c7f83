package index

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// builtPacks is how many packs the generation of built holds.
const builtPacks = 11

// built returns a repository of builtPacks packs and a cache directory with the one
// generation that holds them.
func built(t *testing.T) (*memBackend, string) {
	t.Helper()
	b, dir := newBackend(), t.TempDir()
	db, _ := openDB(t, b, "")
	if err := db.Publish(t.Context(), testPacks(0, builtPacks)); err != nil {
		t.Fatal(err)
	}
	db, _ = openDB(t, b, dir)
	mustSync(t, db)
	db.Close()
	if g := generations(t, dir); len(g) != 1 {
		t.Fatalf("generations: %v", g)
	}
	return b, dir
}

// survives fails unless an index over a damaged cache answers nothing wrong,
// and everything after one Sync, and says what it did.
func survives(t *testing.T, b *memBackend, dir string) {
	t.Helper()
	db, log := openDB(t, b, dir)
	defer db.Close()
	before, of := found(t, db, 0, builtPacks)
	for range db.Packs() {
	}
	for n := range builtPacks {
		db.Pack(testName(n))
	}
	mustSync(t, db)
	check(t, db, 0, builtPacks)
	if before < of && log.String() == "" {
		t.Error("damage went without a word")
	}
	db.Close()
	db, log = openDB(t, b, dir)
	check(t, db, 0, builtPacks)
	if log.String() != "" {
		t.Errorf("the cache was not built again: %s", log)
	}
}

func TestFlippedBytes(t *testing.T) {
	b, dir := built(t)
	const seed = 7
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	gen := generations(t, dir)[0]
	files, err := os.ReadDir(gen)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		p, err := os.ReadFile(filepath.Join(gen, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if len(p) == 0 {
			continue
		}
		// The lengths and checksums at the end, some of the index before it,
		// and some of everything.
		var at []int
		for i := range 16 {
			at = append(at, len(p)-1-i)
		}
		for range 6 {
			at = append(at, rnd.IntN(len(p)), len(p)-1-rnd.IntN(min(len(p), 5000)))
		}
		for _, i := range at {
			bad := filepath.Join(t.TempDir(), "cache")
			if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			q := slices.Clone(p)
			q[i] ^= 1 << rnd.IntN(8)
			if err := os.WriteFile(filepath.Join(generations(t, bad)[0], f.Name()), q, 0o600); err != nil {
				t.Fatal(err)
			}
			survives(t, b, bad)
			if t.Failed() {
				t.Fatalf("%s, byte %d of %d", f.Name(), i, len(p))
			}
		}
	}
}

func TestMissingAndShortFiles(t *testing.T) {
	b, dir := built(t)
	for _, f := range []string{lockName, metaName, "c000001.sst", "p000001.sst"} {
		for _, how := range []string{"missing", "empty", "half", "longer", "zeros"} {
			if f == lockName && how != "missing" {
				continue
			}
			t.Run(f+" "+how, func(t *testing.T) {
				bad := filepath.Join(t.TempDir(), "cache")
				if err := os.CopyFS(bad, os.DirFS(dir)); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(generations(t, bad)[0], f)
				fi, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				switch how {
				case "missing":
					err = os.Remove(path)
				case "empty":
					err = os.Truncate(path, 0)
				case "half":
					err = os.Truncate(path, fi.Size()/2)
				case "longer":
					err = os.Truncate(path, fi.Size()*2)
				case "zeros":
					err = os.WriteFile(path, make([]byte, fi.Size()), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
				survives(t, b, bad)
			})
		}
	}
}

// A disk that fails under an open mapping, or a file that is truncated there,
// is SIGBUS; that must not end the process.
func TestTruncatedWhileOpen(t *testing.T) {
	for _, f := range []string{"c000001.sst", "p000001.sst"} {
		b, dir := built(t)
		db, log := openDB(t, b, dir)
		check(t, db, 0, builtPacks)
		if err := os.Truncate(filepath.Join(generations(t, dir)[0], f), 0); err != nil {
			t.Fatal(err)
		}
		found(t, db, 0, builtPacks)
		for n := range builtPacks {
			if _, ok, err := db.Pack(testName(n)); ok && f[0] == 'p' || err != nil {
				t.Errorf("pack %d: %v, %v", n, ok, err)
			}
		}
		for range db.Packs() {
		}
		if !strings.Contains(log.String(), "setting it aside") {
			t.Errorf("log: %q", log)
		}
		if !mustSync(t, db) {
			t.Error("nothing was read again")
		}
		check(t, db, 0, builtPacks)
	}
}

// The base of the next generation turns out to be damaged while it is read.
func TestDamagedBase(t *testing.T) {
	b, dir := built(t)
	db, log := openDB(t, b, dir)
	mustSync(t, db)
	path := filepath.Join(generations(t, dir)[0], "c000001.sst")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 300), 9000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	publish(t, db, testPacks(builtPacks, 45)...)
	if !strings.Contains(log.String(), "data is damaged") {
		t.Errorf("log: %q", log)
	}
	mustSync(t, db)
	check(t, db, 0, 45)
	other, _ := openDB(t, b, dir)
	mustSync(t, other)
	check(t, other, 0, 45)
}

func TestCacheDeletedWhileOpen(t *testing.T) {
	b, dir := built(t)
	db, log := openDB(t, b, dir)
	for i := range 3 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		check(t, db, 0, builtPacks+15*i)
		mustSync(t, db)
		publish(t, db, testPacks(builtPacks+15*i, builtPacks+15*i+15)...)
		check(t, db, 0, builtPacks+15*i+15)
		if len(generations(t, dir)) == 0 {
			t.Error("no generation was built")
		}
	}
	if log.String() != "" {
		t.Error(log)
	}
	fresh, _ := openDB(t, b, dir)
	mustSync(t, fresh)
	check(t, fresh, 0, builtPacks+45)
}

// An index must not lose what it knew when another process has begun the cache
// anew, with less in it.
func TestOtherLineage(t *testing.T) {
	b, dir := built(t)
	db, _ := openDB(t, b, dir)
	mustSync(t, db)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	stands(b, testPacks(0, 26)...)
	small := newBackend()
	other, _ := openDB(t, small, dir)
	if err := other.Publish(t.Context(), testPacks(builtPacks, 26)); err != nil {
		t.Fatal(err)
	}
	other.background.Wait()
	mustSync(t, db) // takes over a generation that lacks our packs
	check(t, db, 0, 26)
}

func TestUnusableDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("in the way"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		b := newBackend()
		db, log := openDB(t, b, dir)
		publish(t, db, testPacks(0, 40)...)
		mustSync(t, db)
		check(t, db, 0, 40)
		if n := strings.Count(log.String(), "keeping what is new in memory"); n == 0 || n > 20 {
			t.Errorf("%d reports: %s", n, log)
		}
	}
}

func TestMaxBytes(t *testing.T) {
	b, dir := newBackend(), t.TempDir()
	log := &logs{}
	const limit = 600_000
	db, err := Open(t.Context(), b, testKeys(), Options{Dir: dir, MemoryLimit: 1000, MaxBytes: limit, Logf: log.logf})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for n := 0; n < 80; n += 4 {
		publish(t, db, testPacks(n, n+4)...)
		if used, err := size(dir); err != nil || used > limit {
			t.Fatalf("%d bytes are used, the limit is %d; %v", used, limit, err)
		}
	}
	check(t, db, 0, 80)
	if len(generations(t, dir)) == 0 || !strings.Contains(log.String(), errNoRoom.Error()) {
		t.Errorf("generations %v, log %q", generations(t, dir), log)
	}
	// An estimate that is too low is caught while writing.
	room := int64(1000)
	w := &tableWriter{dir: t.TempDir(), prefix: "c", room: &room}
	for n := range 100 {
		if err := w.add(fmt.Appendf(nil, "%032d", n), make([]byte, locationSize)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != errNoRoom {
		t.Error(err)
	}
}

// requireRoot skips loudly, or fails where everything is required.
func requireRoot(t *testing.T, what string) {
	if os.Geteuid() != 0 {
		skip(t, "root is needed for "+what)
	}
}

func skip(t *testing.T, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "fuse") {
		t.Fatal(why)
	}
	t.Skip("SKIPPED: " + why)
}

func TestFullDisk(t *testing.T) {
	requireRoot(t, "a small file system")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=500k"); err != nil {
		skip(t, "a tmpfs cannot be mounted: "+err.Error())
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	b := newBackend()
	db, log := openDB(t, b, dir)
	for n := 0; n < 120; n += 10 {
		publish(t, db, testPacks(n, n+10)...)
	}
	check(t, db, 0, 120)
	if !strings.Contains(log.String(), "no space left") {
		t.Errorf("log: %q", log)
	}
	left, err := filepath.Glob(filepath.Join(dir, subdir, tempPrefix+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	db.Close()
	db, _ = openDB(t, b, dir)
	mustSync(t, db)
	check(t, db, 0, 120)
}

func TestUsageAndClear(t *testing.T) {
	b, cacheDir := newBackend(), t.TempDir()
	dir := RepoDir(cacheDir, testRepo)
	db, _ := openDB(t, b, dir)
	publish(t, db, testPacks(0, 15)...)
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	used, err := Usage(cacheDir)
	if err != nil || len(used) != 1 || used[testRepo] < 15*perPack*50 {
		t.Fatalf("%v, %v", used, err)
	}
	if freed, err := Clear(cacheDir, testRepo); freed != 0 || err != nil {
		t.Errorf("freed %d bytes that are in use, %v", freed, err)
	}
	check(t, db, 0, 15)
	db.Close()
	if freed, err := Clear(cacheDir, testRepo); freed != used[testRepo] || err != nil {
		t.Errorf("freed %d of %d bytes, %v", freed, used[testRepo], err)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "/"} {
		if _, err := Clear(cacheDir, id); err == nil {
			t.Errorf("Clear of %q is allowed", id)
		}
	}
	if freed, err := Clear(cacheDir, "0000"); freed != 0 || err != nil {
		t.Errorf("nothing to clear: %d, %v", freed, err)
	}
	if used, err := Usage(filepath.Join(cacheDir, "nothing")); len(used) != 0 || err != nil {
		t.Errorf("%v, %v", used, err)
	}
}
