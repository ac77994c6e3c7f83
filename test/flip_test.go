package test

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/chunkstore/backend/local"
	"github.com/cutbankfs/cutbank/repo"
)

// flipRepo makes a repository of a few kilobytes with every kind of object in
// it: three snapshots, a key without and one with a password.
func flipRepo(t testing.TB, b backend.Backend) {
	t.Helper()
	random := seeded(21)
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("one", "a small file")
	write("two", strings.Repeat("another one, ", 200))
	r := initRepo(t, b, tiny(t, random))
	snapshot(t, r, live(t, dir), nil)
	write("three", strings.Repeat("one more\n", 50))
	snapshot(t, r, live(t, dir), nil)
	everyKind(t, r, random, time.Unix(1.7e9, 0).UTC())
	if _, err := r.AddKey(t.Context(), "secret", "with a password"); err != nil {
		t.Fatal(err)
	}
}

func objects(t testing.TB, b backend.Backend) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for info, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		p, err := b.Get(t.Context(), info.Name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		all[info.Name] = p
	}
	return all
}

// replace puts other bytes under a name, as rot does.
func replace(t testing.TB, b backend.Backend, name string, p []byte) {
	t.Helper()
	if err := errors.Join(b.Remove(t.Context(), name), b.Put(t.Context(), name, p)); err != nil {
		t.Fatal(err)
	}
}

// noticed opens the repository in b and checks it, and reports whether the
// object of that name was named as damaged. If before is not nil it was opened
// before the damage came: trying all passwords for every byte of a key would
// take hours.
func noticed(t testing.TB, b backend.Backend, before *repo.Repo, name string) (named bool, heard []string) {
	hear := func(text string) {
		if named = named || strings.Contains(text, name); len(heard) < 5 {
			heard = append(heard, text)
		}
	}
	r := before
	if r == nil {
		opt := options(t)
		opt.Logf = nil
		var err error
		if r, err = repo.Open(t.Context(), b, opt); err != nil {
			hear(err.Error())
			return named, heard
		}
		defer r.Close()
	}
	_, err := r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) { hear(d.Object + ": " + d.Err.Error()) })
	if err != nil {
		hear(err.Error())
	}
	return named, heard
}

// damage is one object with other bytes.
type damage struct {
	name string
	at   int
	data []byte
	how  string
}

// sweep tries damages on all cores, each on a repository of its own.
func sweep(t *testing.T, all map[string][]byte, damages func(yield func(damage) bool)) {
	t.Helper()
	work := make(chan damage)
	var wg sync.WaitGroup
	var tried, missed atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		mem := backend.NewMem()
		for name, p := range all {
			if err := mem.Put(t.Context(), name, p); err != nil {
				t.Fatal(err)
			}
		}
		before := open(t, mem)
		wg.Go(func() {
			for d := range work {
				keep := before
				if !strings.HasPrefix(d.name, "keys/") {
					keep = nil
				}
				replace(t, mem, d.name, d.data)
				tried.Add(1)
				if named, heard := noticed(t, mem, keep, d.name); !named && missed.Add(1) <= 20 {
					t.Errorf("%s, %s at %d of %d bytes: not named; heard %q", d.name, d.how, d.at, len(all[d.name]), heard)
				}
				replace(t, mem, d.name, all[d.name])
			}
		})
	}
	start := time.Now()
	for d := range damages {
		work <- d
	}
	close(work)
	wg.Wait()
	t.Logf("%d damages tried, %d not noticed, %s", tried.Load(), missed.Load(), time.Since(start).Round(time.Millisecond))
}

// TestEveryByteCounts flips every byte of every file of a repository, one at a
// time: each must be noticed and named. The ordinary run flips the lowest bit
// of every third byte.
func TestEveryByteCounts(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "repo")
	b, err := local.Create(folder)
	if err != nil {
		t.Fatal(err)
	}
	flipRepo(t, b)
	all := objects(t, b)
	var kinds []string
	size := 0
	for name, p := range all {
		kind, _, _ := strings.Cut(name, "/")
		if kinds = append(kinds, kind); !strings.Contains(name, "/") {
			t.Errorf("%s lies at the top", name)
		}
		size += len(p)
	}
	slices.Sort(kinds)
	if kinds = slices.Compact(kinds); !slices.Equal(kinds, kindsOf) {
		t.Fatalf("the repository holds %q, want every kind: %q", kinds, kindsOf)
	}
	t.Logf("%d objects, %d bytes", len(all), size)
	r := open(t, b)
	if res := clean(t, "before", r); len(res.Unknown) > 0 {
		t.Fatalf("unknown objects: %q", res.Unknown)
	}
	step, bits := 3, []byte{0x01}
	if slow() {
		step, bits = 1, []byte{0x01, 0x80, 0xff}
	}
	names := slices.Sorted(maps.Keys(all))
	sweep(t, all, func(yield func(damage) bool) {
		for _, bit := range bits {
			for _, name := range names {
				for at := 0; at < len(all[name]); at += step {
					p := bytes.Clone(all[name])
					p[at] ^= bit
					if !yield(damage{name, at, p, "flipped"}) {
						return
					}
				}
			}
		}
	})
}

// TestEveryLengthCounts cuts files short, adds to them, and puts one in
// another's place.
func TestEveryLengthCounts(t *testing.T) {
	mem := backend.NewMem()
	flipRepo(t, mem)
	all := objects(t, mem)
	names := slices.Sorted(maps.Keys(all))
	sweep(t, all, func(yield func(damage) bool) {
		for i, name := range names {
			p := all[name]
			for _, n := range []int{0, 1, 7, 8, 33, 34, 50, len(p) / 2, len(p) - 96, len(p) - 33, len(p) - 32, len(p) - 1} {
				if !yield(damage{name, n, p[:max(0, n)], "cut"}) {
					return
				}
			}
			for _, more := range [][]byte{{0}, p, make([]byte, 100_000)} {
				if !yield(damage{name, len(p), append(bytes.Clone(p), more...), "longer"}) {
					return
				}
			}
			// Its neighbour is as a rule of the same kind, and whole.
			for _, j := range []int{i + 1, i - 1} {
				if j >= 0 && j < len(names) && !yield(damage{name, 0, all[names[j]], "exchanged for " + names[j]}) {
					return
				}
			}
		}
	})
}

// TestDamageOnDisk flips bytes in a folder, with a password, as users have it.
func TestDamageOnDisk(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "repo")
	b, err := local.Create(folder)
	if err != nil {
		t.Fatal(err)
	}
	flipRepo(t, b)
	for name, p := range objects(t, b) {
		bad := bytes.Clone(p)
		bad[len(bad)/2] ^= 0x10
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		opt := options(t)
		opt.Password = func() (string, error) { return "secret", nil }
		var heard []string
		r, err := tryOpen(t, b, opt)
		if err == nil {
			_, err = r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) { heard = append(heard, d.Object+": "+d.Err.Error()) })
		}
		if err != nil {
			heard = append(heard, err.Error())
		}
		if !strings.Contains(strings.Join(heard, "\n"), name) {
			t.Errorf("%s is damaged and not named: %q", name, heard)
		}
		if strings.HasPrefix(name, "keys/") && r == nil {
			t.Errorf("one key is damaged (%s), and the other does not open: %v", name, err)
		}
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
