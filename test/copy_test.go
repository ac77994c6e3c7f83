package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/fs/snapfs"
	"github.com/cutbankfs/cutbank/repo"
	"github.com/cutbankfs/cutbank/test/gen"
)

// beside makes a second repository for copies, beside that of c.
func (c *cli) beside(name string, args ...string) *cli {
	c.t.Helper()
	d := *c
	d.repo = filepath.Join(filepath.Dir(c.repo), name)
	d.env = append(append([]string{}, c.env...), "CUTBANK_REPO="+d.repo)
	d.run(append([]string{"init", "--no-password", "--quiet"}, args...)...)
	return &d
}

// list returns all snapshots, oldest first.
func list(t testing.TB, r *repo.Repo) []*repo.Snapshot {
	t.Helper()
	if err := r.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	snaps, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return snaps
}

// copiesSame compares every snapshot with its copy, holes, links and attributes
// included.
func copiesSame(t testing.TB, what string, src, dst *repo.Repo) {
	t.Helper()
	originals := list(t, src)
	all := list(t, dst)
	copies := dst.Origins(all)
	if len(all) != len(originals) || len(all) == 0 {
		t.Errorf("%s: %d snapshots have %d copies", what, len(originals), len(all))
	}
	x, y := snapfs.NewCache(src.Store()), snapfs.NewCache(dst.Store())
	for _, s := range originals {
		c := copies[src.OriginOf(s)]
		if c == nil {
			t.Errorf("%s: %s has no copy", what, s.ID)
			continue
		}
		a, err := x.Open(t.Context(), s.Tree.ID)
		if err != nil {
			t.Fatal(err)
		}
		b, err := y.Open(t.Context(), c.Tree.ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range differences(t.Context(), a, b, diff.Options{Content: true, Holes: true}) {
			t.Errorf("%s: the copy of %s: %s", what, s.Dir, d)
		}
		if c.Totals != s.Totals || c.Name != s.Name || !c.Time.Equal(s.Time) || c.Unread != s.Unread {
			t.Errorf("%s: the record of the copy of %s says something else", what, s.Dir)
		}
	}
}

// TestCopies takes a tree with everything in it, as it grows older, into
// repositories of all kinds, and back.
func TestCopies(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	src := base + "/src"
	opt := gen.Default(51)
	opt.Files, opt.Bytes, opt.Wide = 150, 4<<20, 300
	if slow() {
		opt.Files, opt.Bytes, opt.Wide, opt.Deep, opt.BigSparse = 2000, 80<<20, 10_000, 200, true
	}
	generate(t, src, opt)
	c := newCLI(t)
	c.init()
	for i := range 4 {
		if i > 0 {
			if _, err := gen.Mutate(src, uint64(50+i), 0.05); err != nil {
				t.Fatal(err)
			}
		}
		c.run("snapshot", "--name", "host", src)
	}
	original := c.open()
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"like", []string{"--like", c.repo}},
		{"fine", []string{"--chunker", "rabin", "--chunk-size", "4KiB", "--frame-size", "32KiB"}},
		{"coarse", []string{"--chunker", "gear", "--chunk-size", "1MiB"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := c.beside(tt.name, tt.args...)
			c.run("copy", "--to", d.repo, "--newest", "1") // what is older comes later
			sum := c.json("copy", "copy", "--to", d.repo, "--verify")
			if sum["copied"] != 3.0 || sum["skipped"] != 1.0 {
				t.Errorf("%v", sum)
			}
			if read := sum["read_bytes"].(float64); read > float64(opt.Bytes) {
				t.Errorf("%.0f bytes were read for three more copies of a tree of %d", read, opt.Bytes)
			}
			d.verified(tt.name)
			copiesSame(t, tt.name, original, d.open())
			out := t.TempDir() + "/out"
			d.run("restore", "host/latest:"+src, out, "--no-receipt")
			rsyncSame(t, "source and restored copy", src, out)
			if sum := d.json("copy", "copy", "--to", c.repo); sum["copied"] != 0.0 {
				t.Errorf("copied back: %v", sum)
			}
			// The host goes on from the copy.
			if next := d.json("snapshot", "snapshot", "--name", "host", src); next["new_files"] != 0.0 || next["modified_files"] != 0.0 {
				t.Errorf("a snapshot into the copies: %v", next)
			}
		})
	}
}

// TestKilledCopies kills a copy at random moments, again and again: what is there
// is always whole, the next run goes on, and what was stored is not stored twice.
func TestKilledCopies(t *testing.T) {
	t.Parallel()
	kills, size := 6, 30
	if slow() {
		kills, size = 30, 100
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	src := t.TempDir()
	c := newCLI(t)
	c.init()
	for i := range 3 {
		bulk(t, src, uint64(i), size)
		if err := os.WriteFile(fmt.Sprintf("%s/only%d", src, i), []byte("text"), 0o644); err != nil {
			t.Fatal(err)
		}
		c.run("snapshot", "--name", "host", src)
	}
	for _, tt := range []struct {
		name string
		args []string
	}{{"like", []string{"--like", c.repo}}, {"unlike", []string{"--chunker", "gear"}}} {
		t.Run(tt.name, func(t *testing.T) {
			d := c.beside("whole-"+tt.name, tt.args...)
			start := time.Now()
			c.run("copy", "--to", d.repo)
			took := time.Since(start)
			d = c.beside(tt.name, tt.args...)
			killed := 0
			for i := range kills {
				p := c.start("copy", "--to", d.repo)
				timer := time.AfterFunc(time.Duration(rng.Int64N(int64(took)))/2, func() { p.Process.Kill() })
				code := p.end()
				timer.Stop()
				switch code {
				case 0:
				case -1:
					killed++
				default:
					t.Fatalf("kill %d: exit code %d\n%s", i, code, p.err.String())
				}
				d.verified(fmt.Sprintf("after kill %d", i))
			}
			if killed == 0 {
				t.Error("none was killed")
			}
			c.run("copy", "--to", d.repo)
			d.verified("at last")
			copiesSame(t, tt.name, c.open(), d.open())
			if n := twice(t, d.open()); n > 0 {
				t.Errorf("%d chunks were stored twice", n)
			}
		})
	}
}

// TestCopyOfRepaired: what a repair could not bring back is as lost in the copy as
// in the original, and all else is there. A snapshot that is damaged is told of,
// and keeps no other from being copied.
func TestCopyOfRepaired(t *testing.T) {
	t.Parallel()
	src := t.TempDir()
	bulk(t, src, 1, 2)
	c := newCLI(t)
	c.init()
	c.run("snapshot", "--name", "host", src)
	before := packFiles(t, c.repo)
	bulk(t, src+"/more", 2, 2)
	damaged := c.json("snapshot", "snapshot", "--name", "host", src)["id"].(string)
	largest, size := "", int64(0)
	for name, n := range packFiles(t, c.repo) {
		if _, old := before[name]; !old && n > size {
			largest, size = name, n
		}
	}
	if err := os.Remove(largest); err != nil {
		t.Fatal(err)
	}
	like, unlike := c.beside("like", "--like", c.repo), c.beside("unlike", "--chunker", "gear")
	for _, d := range []*cli{like, unlike} {
		out, stderr, code := c.try("copy", "--to", d.repo, "--json")
		if code != 3 || !strings.Contains(stderr, "cutbank repair") {
			t.Errorf("a damaged snapshot: exit code %d\n%s", code, stderr)
		}
		if sum := object(t, "copy", out); sum["copied"] != 1.0 || sum["failed"] != 1.0 || object(t, "copy-failed", out)["id"] != damaged {
			t.Errorf("%s", out)
		}
		d.verified("what was copied")
	}
	if _, stderr, code := c.try("repair"); code != 3 {
		t.Fatalf("repair: exit code %d\n%s", code, stderr)
	}
	c.run("forget", damaged)
	for _, d := range []*cli{like, unlike} {
		if sum := c.json("copy", "copy", "--to", d.repo, "--verify"); sum["copied"] != 1.0 || sum["verified"] != 1.0 {
			t.Errorf("the repaired one: %v", sum)
		}
		snaps := list(t, d.open())
		if len(snaps) != 2 || snaps[1].Lost == nil || snaps[1].Lost.Bytes == 0 {
			t.Errorf("%d copies, and the repaired one is not told of", len(snaps))
		}
		if sum := d.json("copy", "copy", "--to", c.repo); sum["copied"] != 0.0 {
			t.Errorf("copied back: %v", sum)
		}
	}
}

// packFiles returns the packs of a repository, and their sizes.
func packFiles(t testing.TB, repo string) map[string]int64 {
	t.Helper()
	sizes := map[string]int64{}
	err := filepath.Walk(filepath.Join(repo, "packs"), func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			sizes[path] = fi.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sizes
}
