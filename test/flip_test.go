package test

import (
	"bytes"
	"errors"
	"fmt"
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

// heard returns all that is said when the repository in b is opened and
// checked. If before is not nil it was opened before the damage came.
func heard(t testing.TB, b backend.Backend, before *repo.Repo) string {
	var all strings.Builder
	r := before
	if r == nil {
		opt := options(t)
		opt.Logf = nil
		var err error
		if r, err = repo.Open(t.Context(), b, opt); err != nil {
			return err.Error()
		}
		defer r.Close()
	}
	_, err := r.Check(t.Context(), repo.CheckOptions{ReadData: true}, func(d repo.Damage) { fmt.Fprintf(&all, "%s: %v\n", d.Object, d.Err) })
	if err != nil {
		fmt.Fprintln(&all, err)
	}
	return all.String()
}

// damage is what is wrong at one time: objects with other bytes.
type damage struct {
	how    string
	data   map[string][]byte
	opened bool // the repository is opened before
}

// sweep tries damages on all cores, each on a repository of its own. Every
// damaged object must be named.
func sweep(t *testing.T, all map[string][]byte, damages func(yield func(damage) bool)) {
	t.Helper()
	work := make(chan damage)
	var wg sync.WaitGroup
	var tried, missed atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		mem := newMem()
		for name, p := range all {
			if err := mem.Put(t.Context(), name, p); err != nil {
				t.Fatal(err)
			}
		}
		before := open(t, mem)
		wg.Go(func() {
			for d := range work {
				var r *repo.Repo
				if d.opened {
					r = before
				}
				for name, p := range d.data {
					replace(t, mem, name, p)
				}
				said := heard(t, mem, r)
				for info, err := range mem.List(t.Context(), "ledger/") {
					// What verify has written down says of a damage that is over.
					if _, was := all[info.Name]; err != nil || !was && mem.Remove(t.Context(), info.Name) != nil {
						t.Errorf("%s: %v", info.Name, err)
					}
				}
				for name := range d.data {
					tried.Add(1)
					if !strings.Contains(said, name) && missed.Add(1) <= 20 {
						t.Errorf("%s, %s: not named among %q", name, d.how, said)
					}
					replace(t, mem, name, all[name])
				}
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

// flipped returns p with some bits of one byte turned.
func flipped(p []byte, at int, bits byte) []byte {
	q := bytes.Clone(p)
	q[at] ^= bits
	return q
}

// isKey is for keys, whose repository is opened before they are damaged: to try
// the password of the other key for each byte would take an hour.
func isKey(name string) bool { return strings.HasPrefix(name, "keys/") }

// TestEveryByteCounts flips every byte of every file of a repository: each must
// be noticed, and the file named. First in all files side by side, then one byte
// at a time, with the repository opened anew for each: in full size every byte,
// in the ordinary run some of them.
func TestEveryByteCounts(t *testing.T) {
	b := newMem()
	flipRepo(t, b)
	all := objects(t, b)
	names := slices.Sorted(maps.Keys(all))
	var kinds []string
	size, longest := 0, 0
	for name, p := range all {
		kind, _, _ := strings.Cut(name, "/")
		kinds = append(kinds, kind)
		size += len(p)
		longest = max(longest, len(p))
	}
	slices.Sort(kinds)
	if kinds = slices.Compact(kinds); !slices.Equal(kinds, kindsOf) {
		t.Fatalf("the repository holds %q, want every kind: %q", kinds, kindsOf)
	}
	t.Logf("%d objects, %d bytes", len(all), size)
	if res := clean(t, "before", open(t, b)); len(res.Unknown) > 0 {
		t.Fatalf("unknown objects: %q", res.Unknown)
	}
	step, together := 23, 1
	if testing.Short() {
		step, together = 211, 17
	}
	if slow() {
		step = 1
	}
	sweep(t, all, func(yield func(damage) bool) {
		for at := 0; at < longest; at += together {
			d := damage{fmt.Sprintf("byte %d flipped in all files", at), map[string][]byte{}, true}
			for name, p := range all {
				if at < len(p) {
					d.data[name] = flipped(p, at, 0x80)
				}
			}
			if !yield(d) {
				return
			}
		}
		for _, name := range names {
			for at := 0; at < len(all[name]); at += step {
				how := fmt.Sprintf("byte %d of %d flipped", at, len(all[name]))
				if !yield(damage{how, map[string][]byte{name: flipped(all[name], at, 0x01)}, isKey(name)}) {
					return
				}
			}
		}
	})
}

// TestEveryLengthCounts cuts files short, adds to them, and puts one in
// another's place.
func TestEveryLengthCounts(t *testing.T) {
	mem := newMem()
	flipRepo(t, mem)
	all := objects(t, mem)
	names := slices.Sorted(maps.Keys(all))
	sweep(t, all, func(yield func(damage) bool) {
		try := func(name, how string, p []byte) bool {
			return yield(damage{how, map[string][]byte{name: p}, isKey(name)})
		}
		for i, name := range names {
			p := all[name]
			for _, n := range []int{0, 1, 7, 8, 33, 34, 50, len(p) / 2, len(p) - 96, len(p) - 33, len(p) - 32, len(p) - 1} {
				if !try(name, fmt.Sprintf("cut to %d of %d bytes", n, len(p)), p[:max(0, n)]) {
					return
				}
			}
			for _, more := range [][]byte{{0}, p, make([]byte, 100_000)} {
				if !try(name, fmt.Sprintf("%d bytes longer", len(more)), append(bytes.Clone(p), more...)) {
					return
				}
			}
			// Its neighbour is as a rule of the same kind, and whole.
			for _, j := range []int{i + 1, i - 1} {
				if j >= 0 && j < len(names) && !try(name, "exchanged for "+names[j], all[names[j]]) {
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
