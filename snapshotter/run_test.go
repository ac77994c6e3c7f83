package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

// TestChangingFile changes while it is read: it is read again, twice at most,
// and then stored and marked.
func TestChangingFile(t *testing.T) {
	for times, want := range map[int]struct {
		marked bool
		data   string
	}{1: {false, "version 1"}, 2: {false, "version 2"}, 3: {true, ""}, 100: {true, ""}} {
		r := newRepo(t, chunk.Gear)
		f := file("log", []byte("version 0"))
		reads, changes := 0, 0
		f.onRead = func(m *mem) {
			reads++
			if changes < times {
				changes++
				m.set(fmt.Appendf(nil, "version %d", changes))
				m.attr.Mtime.Nsec++
			}
		}
		s := mustRun(t, r, dir("", f), nil)
		n := at(t, r, s, "log")
		if n.Attr().Changed != want.marked || want.marked != (s.Changed == 1) {
			t.Errorf("changed %d times: marked %v, counted %d", times, n.Attr().Changed, s.Changed)
		}
		if reads > rereads+1 {
			t.Errorf("changed %d times: read %d times", times, reads)
		}
		if got := contents(t, n); !want.marked && got != want.data {
			t.Errorf("changed %d times: stored %q, want %q", times, got, want.data)
		}
		// A marked file is read again by the next snapshot, whatever its times
		// say.
		f.onRead = nil
		var opened []string
		f.opened = &opened
		s = mustRun(t, r, dir("", f), nil)
		if (len(opened) == 1) != want.marked {
			t.Errorf("changed %d times: the next snapshot opened %q", times, opened)
		}
		if n := at(t, r, s, "log"); n.Attr().Changed || contents(t, n) != string(f.data) {
			t.Errorf("changed %d times: the next snapshot has %q", times, contents(t, n))
		}
	}
}

// TestGrowingAndShrinking files are as long as what was read of them.
func TestGrowingAndShrinking(t *testing.T) {
	for _, to := range []int{0, 10, 4096, 100_000} {
		r := newRepo(t, chunk.Gear)
		f := file("f", random(1, 20_000))
		f.onRead = func(m *mem) {
			m.set(random(uint64(to), to))
			m.attr.Mtime.Nsec++
			m.onRead = nil
		}
		s := mustRun(t, r, dir("", f), nil)
		if got := contents(t, at(t, r, s, "f")); got != string(f.data) {
			t.Errorf("20,000 bytes became %d: stored %d", to, len(got))
		}
	}
}

// TestPartial names what it cannot read, keeps the rest, and says so.
func TestPartial(t *testing.T) {
	r := newRepo(t, chunk.Gear)
	secret := file("secret", []byte("x"))
	secret.reading = syscall.EACCES
	half := dir("half", file("first", []byte("1")))
	half.listing = syscall.EIO
	gone := file("gone", []byte("x"))
	gone.reading = fs.ErrNotExist
	var told []string
	s, err := try(t, r, dir("", secret, half, gone, file("good", []byte("g"))), func(o *Options) {
		o.Problem = func(path string, err error) { told = append(told, path) }
	})
	if !errors.Is(err, ErrPartial) || s == nil || s.Unread != 2 || len(s.Problem) != 2 {
		t.Fatalf("snapshot %+v, %v", s, err)
	}
	slices.Sort(told)
	if !slices.Equal(told, []string{"half", "secret"}) {
		t.Errorf("told of %q: a file that vanished is no problem", told)
	}
	if !strings.Contains(strings.Join(s.Problem, "\n"), "permission denied") {
		t.Errorf("the record says %q", s.Problem)
	}
	root := at(t, r, s, "")
	if got := names(t, root); !slices.Equal(got, []string{"good", "half"}) {
		t.Errorf("root holds %q", got)
	}
	if got := names(t, at(t, r, s, "half")); !slices.Equal(got, []string{"first"}) {
		t.Errorf("half holds %q", got)
	}
	if snaps, err := r.Snapshots(t.Context()); err != nil || len(snaps) != 1 {
		t.Errorf("%d snapshots, %v", len(snaps), err)
	}
}

// TestUnchanged is decided by size, both times and inode; anything else is
// read.
func TestUnchanged(t *testing.T) {
	later := tree.TimeOf(epoch.Add(-time.Minute))
	for name, c := range map[string]struct {
		change func(*mem)
		read   bool
	}{
		"nothing":             {func(*mem) {}, false},
		"device":              {func(m *mem) { m.attr.Dev = 2 }, false},
		"device, coarse time": {func(m *mem) { m.attr.Dev = 2; m.attr.Ctime.Nsec = 0 }, true},
		"mtime":               {func(m *mem) { m.attr.Mtime = later }, true},
		"ctime":               {func(m *mem) { m.attr.Ctime = later }, true},
		"inode":               {func(m *mem) { m.attr.Ino += 1000 }, true},
		"size":                {func(m *mem) { m.set([]byte("longer than before")) }, true},
		"mode":                {func(m *mem) { m.attr.Mode = 0o600 }, false}, // a new mode comes with a new ctime
	} {
		r := newRepo(t, chunk.Gear)
		f := file("f", []byte("as before"))
		f.attr.Ctime.Nsec = 1
		mustRun(t, r, dir("", f), nil)
		var opened []string
		f.opened = &opened
		c.change(f)
		s := mustRun(t, r, dir("", f), nil)
		if (len(opened) > 0) != c.read {
			t.Errorf("%s: opened %q", name, opened)
		}
		n := at(t, r, s, "f")
		if contents(t, n) != string(f.data) || n.Attr().Mode != f.attr.Mode || n.Attr().Mtime != f.attr.Mtime {
			t.Errorf("%s: stored %+v", name, n.Attr())
		}
	}
}

// TestUnchangedSparseFile keeps its holes, and what they take on disk.
func TestUnchangedSparseFile(t *testing.T) {
	f := file("f", slices.Concat(random(12, 8192), make([]byte, 100_000), random(13, 4096)))
	f.attr.Allocated = 12_288
	f.holes = []tree.Extent{{Len: 8192, Kind: tree.Data}, {Off: 8192, Len: 100_000, Kind: tree.Hole}, {Off: 108_192, Len: 4096, Kind: tree.Data}}
	r := newRepo(t, chunk.Gear)
	a := mustRun(t, r, dir("", f), nil)
	b := mustRun(t, r, dir("", f), nil)
	x, y := at(t, r, a, "f").Attr(), at(t, r, b, "f").Attr()
	if a.Tree != b.Tree || x.Allocated != 12_288 || y.Allocated != x.Allocated {
		t.Errorf("allocated %d, then %d; trees equal: %v", x.Allocated, y.Allocated, a.Tree == b.Tree)
	}
}

// TestRacilyClean: what was written within two seconds of the last snapshot's
// start may have changed again since.
func TestRacilyClean(t *testing.T) {
	for before, read := range map[time.Duration]bool{
		0: true, time.Second: true, 2 * time.Second: true, 2*time.Second + time.Nanosecond: false, time.Hour: false, -time.Hour: true,
	} {
		for _, what := range []string{"mtime", "ctime"} {
			r := newRepo(t, chunk.Gear)
			f := file("f", []byte("x"))
			if at := tree.TimeOf(epoch.Add(-before)); what == "mtime" {
				f.attr.Mtime = at
			} else {
				f.attr.Ctime = at
			}
			mustRun(t, r, dir("", f), nil)
			var opened []string
			f.opened = &opened
			mustRun(t, r, dir("", f), nil)
			if (len(opened) > 0) != read {
				t.Errorf("%s %s before the start: opened %q", what, before, opened)
			}
		}
	}
}

// TestUnchangedButGone stores a file again whose chunks, or whose recipe, no
// pack holds any more.
func TestUnchangedButGone(t *testing.T) {
	for _, kind := range []pack.Kind{pack.Data, pack.Meta} {
		for _, size := range []int{2000, 500_000} {
			r := newRepo(t, chunk.Gear)
			f := file("f", random(3, size))
			mustRun(t, r, dir("", f), nil)
			for info, err := range r.Backend().List(t.Context(), "packs/") {
				if err != nil {
					t.Fatal(err)
				}
				head, err := r.Backend().Get(t.Context(), info.Name, 0, 11)
				if err != nil {
					t.Fatal(err)
				}
				if pack.Kind(head[10]) != kind {
					continue
				}
				if err := r.Backend().Remove(t.Context(), info.Name); err != nil {
					t.Fatal(err)
				}
			}
			s := mustRun(t, r, dir("", f), nil)
			if got := contents(t, at(t, r, s, "f")); got != string(f.data) {
				t.Errorf("%s packs gone, %d bytes: %d are stored", kind, size, len(got))
			}
		}
	}
}

func TestFilter(t *testing.T) {
	r := newRepo(t, chunk.Gear)
	src := dir("", dir("skip", file("a", nil)), dir("shallow", file("b", nil)), dir("keep", file("c", nil), file("no", nil)))
	var asked []string
	s := mustRun(t, r, src, func(o *Options) {
		o.Filter = func(path string, a *tree.Attr) Take {
			asked = append(asked, path)
			switch path {
			case "skip", "keep/no":
				return Skip
			case "shallow":
				return Shallow
			}
			return Whole
		}
	})
	if want := []string{"keep", "keep/c", "keep/no", "shallow", "skip"}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	got := fmt.Sprint(names(t, at(t, r, s, "")), names(t, at(t, r, s, "shallow")), names(t, at(t, r, s, "keep")))
	if want := "[keep shallow] [] [c]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestHardLinks are read once, wherever their names are, also if the first
// name cannot be read.
func TestHardLinks(t *testing.T) {
	link := func(f *mem, name string) *mem {
		l := *f
		l.attr.Name = name
		return &l
	}
	var opened []string
	f := file("b", random(4, 30_000))
	f.attr.Nlink, f.opened = 4, &opened // a fourth name is elsewhere
	bad := file("bad", []byte("x"))
	bad.attr.Nlink, bad.reading = 2, syscall.EIO
	r := newRepo(t, chunk.Gear)
	src := dir("", f, dir("sub", link(f, "a"), link(bad, "bad2")), link(f, "z"), bad)
	s, err := try(t, r, src, nil)
	if !errors.Is(err, ErrPartial) || s.Unread != 2 {
		t.Errorf("unread %d, want both names of what cannot be read; %v", s.Unread, err)
	}
	if len(opened) != 1 {
		t.Errorf("opened %q", opened)
	}
	first := at(t, r, s, "b")
	for _, path := range []string{"sub/a", "z"} {
		n := at(t, r, s, path)
		if n.Attr().Ino != first.Attr().Ino || contents(t, n) != string(f.data) || n.Attr().Nlink != 4 {
			t.Errorf("%s: inode %d, the first name's is %d", path, n.Attr().Ino, first.Attr().Ino)
		}
	}
	if got := names(t, at(t, r, s, "sub")); !slices.Equal(got, []string{"a"}) {
		t.Errorf("sub holds %q: a name of what could not be read", got)
	}
}

// TestHardLinkWhoseFirstNameVanished is read by its next name.
func TestHardLinkWhoseFirstNameVanished(t *testing.T) {
	data := random(11, 20_000)
	first, second, third := file("a", data), file("b", data), file("c", data)
	for _, f := range []*mem{first, second, third} {
		f.attr.Nlink, f.attr.Ino = 3, first.attr.Ino
	}
	first.reading = fs.ErrNotExist
	r := newRepo(t, chunk.Gear)
	s := mustRun(t, r, dir("", first, second, third), nil)
	if got := names(t, at(t, r, s, "")); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("root holds %q", got)
	}
	b, c := at(t, r, s, "b"), at(t, r, s, "c")
	if b.Attr().Ino != c.Attr().Ino || contents(t, c) != string(data) {
		t.Errorf("inodes %d and %d", b.Attr().Ino, c.Attr().Ino)
	}
}

// TestGuidedCutsAreTheSame changes a file in many ways: with the previous
// recipe as a guide it is cut exactly where the splitter alone cuts.
func TestGuidedCutsAreTheSame(t *testing.T) {
	zeros := make([]byte, 20_000)
	base := slices.Concat(random(5, 40_000), zeros, random(6, 30_000), zeros[:4096], random(7, 9000), zeros[:5000])
	for _, kind := range []chunk.SplitterKind{chunk.Rabin, chunk.Gear} {
		guided, plain := newRepo(t, kind), newRepo(t, kind)
		f := file("f", base)
		for i := range 100 {
			a := mustRun(t, guided, dir("", f), nil)
			b := mustRun(t, plain, dir("", f), func(o *Options) { o.NoParent = true })
			if a.Tree != b.Tree {
				t.Fatalf("%s: after change %d (seed %d) the trees differ", kind, i, i)
			}
			if got := contents(t, at(t, guided, a, "f")); got != string(f.data) {
				t.Fatalf("%s: after change %d other bytes are stored", kind, i)
			}
			f.set(mutate(f.data, uint64(i)))
			f.attr.Mtime.Nsec++
		}
	}
}

// mutate inserts, removes, overwrites or zeroes a piece of p.
func mutate(p []byte, seed uint64) []byte {
	r := random(seed+1000, 16)
	at := (int(r[0])<<16 | int(r[1])<<8 | int(r[2])) % (len(p) + 1)
	n := (int(r[3])<<8 | int(r[4])) % 9000
	end := min(at+n, len(p))
	switch seed % 7 {
	case 0:
		return slices.Concat(p[:at], random(seed, n), p[at:])
	case 1:
		return slices.Concat(p[:at], p[end:], random(seed, 100))
	case 2:
		return slices.Concat(p[:at], random(seed, end-at), p[end:])
	case 3:
		return slices.Concat(p[:at], make([]byte, end-at), p[end:])
	case 4:
		return slices.Concat(p, random(seed, n))
	case 5:
		return slices.Concat(p[:at], make([]byte, n), p[at:])
	}
	return slices.Concat(p[:max(len(p)/2, 50_000)%(len(p)+1)], p[at:])
}

func TestLabelsAndNames(t *testing.T) {
	r := newRepo(t, chunk.Gear)
	label := func(name, label string, tags ...string) error {
		_, err := try(t, r, dir("", file("f", nil)), func(o *Options) { o.Name, o.Label, o.Tags = name, label, tags })
		return err
	}
	if err := label("web", "one"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, label, tag string
		ok               bool
	}{
		{"web", "one", "", false}, {"db", "one", "", true}, {"web", "two", "", true}, {"web", "", "", true},
		{"ids", "", "", false}, {"web", "a/b", "", false}, {"web", "latest", "", false}, {"web", "", "no good", false},
	} {
		var tags []string
		if c.tag != "" {
			tags = []string{c.tag}
		}
		if err := label(c.name, c.label, tags...); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestCancelled leaves no record and no intent, and what it stored serves the
// next.
func TestCancelled(t *testing.T) {
	r := newRepo(t, chunk.Gear)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	src := dir("")
	for i := range 200 {
		src.children = append(src.children, file(fmt.Sprintf("f%03d", i), random(uint64(i), 20_000)))
	}
	src.children[150].onRead = func(*mem) { cancel() }
	_, err := Run(ctx, r, src, nil, Options{Name: "host", Now: func() time.Time { return epoch }})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	for _, prefix := range []string{"snapshots/", "intents/"} {
		for info := range r.Backend().List(t.Context(), prefix) {
			t.Errorf("%s is left", info.Name)
		}
	}
	s := mustRun(t, r, src, nil)
	if s.Stats.NewBytes >= 200*20_000 {
		t.Errorf("%d bytes were stored: all of them, again", s.Stats.NewBytes)
	}
}

// TestStdin keeps a stream of unknown length.
func TestStdin(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 300_000} {
		r := newRepo(t, chunk.Rabin)
		data := random(8, n)
		root, err := Stdin("dump.sql", io.NopCloser(strings.NewReader(string(data))), tree.TimeOf(epoch))
		if err != nil {
			t.Fatal(err)
		}
		s := mustRun(t, r, root, nil)
		f := at(t, r, s, "dump.sql")
		if contents(t, f) != string(data) || f.Attr().Mtime != tree.TimeOf(epoch) {
			t.Errorf("%d bytes: stored %+v", n, f.Attr())
		}
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("n", 256)} {
		if _, err := Stdin(bad, strings.NewReader(""), tree.Time{}); err == nil {
			t.Errorf("%q was taken for a name", bad)
		}
	}
}

// TestFS makes a snapshot of any io/fs.
func TestFS(t *testing.T) {
	fsys := fstest.MapFS{"a/b/c": {Data: random(9, 10_000), Mode: 0o640}, "d": {Data: []byte("d")}}
	r := newRepo(t, chunk.Gear)
	s := mustRun(t, r, source.FS(fsys), nil)
	for path, f := range fsys {
		if got := contents(t, at(t, r, s, path)); got != string(f.Data) {
			t.Errorf("%s: other bytes", path)
		}
	}
	if s.Totals.Files != 2 || s.Totals.Dirs != 2 || s.Totals.Bytes != 10_001 {
		t.Errorf("totals %+v", s.Totals)
	}
}

// TestCopy makes a snapshot of a snapshot: the tree is the same.
func TestCopy(t *testing.T) {
	a := newRepo(t, chunk.Gear)
	s := mustRun(t, a, dir("", dir("d", file("f", random(10, 20_000))), file("e", nil)), nil)
	b := newRepo(t, chunk.Gear)
	c := mustRun(t, b, at(t, a, s, ""), nil)
	if got := contents(t, at(t, b, c, "d/f")); got != string(random(10, 20_000)) {
		t.Error("other bytes")
	}
	if c.Tree != s.Tree {
		t.Errorf("tree %s became %s, with the same secrets", s.Tree, c.Tree)
	}
}

// TestJoin puts each path where it stands.
func TestJoin(t *testing.T) {
	world := dir("", dir("usr", dir("share", file("x", []byte("x"))), dir("lib", file("y", nil))), dir("etc", file("passwd", []byte("root"))))
	world.children[0].attr.Mode = 0o711
	open := func(path string) (tree.Node, error) {
		var n tree.Node = world
		for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			var err error
			if n, err = n.Lookup(t.Context(), name); err != nil {
				return nil, err
			}
		}
		return n, nil
	}
	for _, c := range []struct {
		paths []string
		want  string
	}{
		{[]string{"/usr/share"}, "[usr] [share] [x]"},
		{[]string{"/usr/share", "/etc/passwd"}, "[etc usr] [share] [x]"},
		{[]string{"/usr/share", "/usr", "/usr/share/x"}, "[usr] [lib share] [x]"},
		{[]string{"/usr/share/x", "/usr/share"}, "[usr] [share] [x]"},
	} {
		root, err := Join(c.paths, open)
		if err != nil {
			t.Fatal(err)
		}
		r := newRepo(t, chunk.Gear)
		s := mustRun(t, r, root, nil)
		got := fmt.Sprint(names(t, at(t, r, s, "")), names(t, at(t, r, s, "usr")), names(t, at(t, r, s, "usr/share")))
		if got != c.want {
			t.Errorf("%q: got %s, want %s", c.paths, got, c.want)
		}
		if m := at(t, r, s, "usr").Attr().Mode; m != 0o711 {
			t.Errorf("%q: mode %o of a directory on the way", c.paths, m)
		}
	}
	if _, err := Join([]string{"/usr/nothing"}, open); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing path: %v", err)
	}
}
