package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

// TestHostileNames: an entry that is no path element is refused, the others
// are restored, and nothing is deleted in such a directory.
func TestHostileNames(t *testing.T) {
	for _, name := range []string{"..", ".", "", "a/b", "../x", "/etc", "n\x00ul", strings.Repeat("x", 256)} {
		top := t.TempDir()
		dir := filepath.Join(top, "target")
		put(t, dir, map[string]string{"extra": "mine"})
		for _, bad := range []*mem{memFile(name, []byte("evil")), memDir(name, memFile("b", nil)), memLink(name, "/")} {
			_, err := Run(t.Context(), []Item{{Node: memDir("", bad, memFile("z", []byte("good")))}}, dir, Options{Delete: true, Yes: true})
			var p *ProblemsError
			if !errors.As(err, &p) || p.Count != 1 || !strings.Contains(err.Error(), "refused") {
				t.Errorf("%q: got %v", name, err)
			}
		}
		want := map[string]string{"target": "/", "target/extra": "mine", "target/z": "good"}
		if got := list(t, top); !maps.Equal(got, want) {
			t.Errorf("%q: got %q", name, got)
		}
	}
}

func TestBadItems(t *testing.T) {
	f, d := memFile("f", nil), memDir("d")
	for _, items := range [][]Item{
		{{Path: "..", Node: d}}, {{Path: "/a", Node: d}}, {{Path: "a//b", Node: d}}, {{Path: "a/../b", Node: f}},
		{{Path: "", Node: f}}, {{Path: "a", Node: d}, {Path: "a/b", Node: d}}, {{Path: "a", Node: d}, {Path: "", Node: d}}, {{Path: "a"}},
	} {
		dir := t.TempDir()
		if _, err := Run(t.Context(), items, dir, Options{}); err == nil {
			t.Errorf("%+v: no error", items)
		}
		if got := list(t, dir); len(got) > 0 {
			t.Errorf("%+v left %v", items, got)
		}
	}
}

// TestTargetLinks: links in the target are replaced, never followed.
func TestTargetLinks(t *testing.T) {
	node := memDir("", memDir("dir", memFile("f", []byte("new"))), memFile("file", []byte("new")), memLink("link", "x"))
	top := t.TempDir()
	dir := filepath.Join(top, "target")
	outside := map[string]string{"out/f": "safe", "out/keep": "safe", "secret": "safe"}
	for _, in := range []map[string]string{
		{"dir": "-> ../out", "file": "-> ../secret", "link": "-> ../out"},
		{"dir": "-> " + top + "/out", "file": "-> " + top + "/secret", "link": "plain"},
		{"dir/f": "-> ../../secret", "file": "-> nowhere", "extra": "-> ../out"},
	} {
		for _, opt := range []Options{{}, {InPlace: true}, {Overwrite: Always, Sum: hasher.Sum}, {Verify: true, InPlace: true}} {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			put(t, top, outside)
			put(t, dir, in)
			opt.Delete, opt.Yes = true, true
			restoreTo(t, node, dir, opt)
			got := list(t, top)
			want := map[string]string{"out": "/", "out/f": "safe", "out/keep": "safe", "secret": "safe", "target": "/",
				"target/dir": "/", "target/dir/f": "new", "target/file": "new", "target/link": "-> x"}
			if !maps.Equal(got, want) {
				t.Errorf("%v %+v: got %q", in, opt, got)
			}
		}
	}

	// A link within the path of an item stands for no node: it is refused.
	put(t, top, map[string]string{"target/way": "-> ../out"})
	_, err := Run(t.Context(), []Item{{Path: "way/in", Node: node}}, dir, Options{})
	if !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("item below a link: %v", err)
	}
	// And one where the policy keeps what exists, too.
	put(t, top, map[string]string{"target2/dir": "-> ../out"})
	_, err = Run(t.Context(), []Item{{Node: node}}, filepath.Join(top, "target2"), Options{Overwrite: Never})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("policy never: %v", err)
	}
	if got := list(t, filepath.Join(top, "out")); !maps.Equal(got, map[string]string{"f": "safe", "keep": "safe"}) {
		t.Errorf("outside now: %q", got)
	}
}

// TestForeignLinks: a file of the target that has a name outside keeps its
// contents and attributes there.
func TestForeignLinks(t *testing.T) {
	old, data := random(1, 100_000), random(1, 100_000)
	copy(data[50_000:], "something else")
	linked := memFile("b", data)
	linked.attr.Nlink, linked.attr.Ino = 2, 9
	again := memFile("c", data)
	again.attr = linked.attr
	again.attr.Name = "c"
	chmod1, chmod2 := memFile("b", old), memFile("c", old)
	chmod1.attr.Nlink, chmod1.attr.Ino = 2, 9
	chmod2.attr.Nlink, chmod2.attr.Ino = 2, 9
	for name, node := range map[string]*mem{
		"mode of a group": memDir("", chmod1, chmod2),
		"contents":        memDir("", memFile("b", data)),
		"mode":            memDir("", memFile("b", old)),
		"a group":         memDir("", linked, again),
	} {
		for _, opt := range []Options{{}, {InPlace: true}, {InPlace: true, Sum: hasher.Sum}, {Overwrite: Always, Sum: hasher.Sum}, {Verify: true}} {
			top := t.TempDir()
			dir := filepath.Join(top, "target")
			put(t, top, map[string]string{"target/": "", "outside": string(old)})
			out := filepath.Join(top, "outside")
			if err := os.Link(out, filepath.Join(dir, "b")); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(out, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(out, someTime.Time(), someTime.Time()); err != nil {
				t.Fatal(err)
			}
			opt.Verify = opt.Verify || !strings.HasPrefix(name, "mode") // size and time are those of the snapshot
			restoreTo(t, node, dir, opt)
			st, err := lstatat(-100, out)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(out); string(got) != string(old) || st.mode != 0o600 || st.nlink != 1 {
				t.Errorf("%s, %+v: the outside file changed: mode %o, %d links", name, opt, st.mode, st.nlink)
			}
			if got, _ := os.ReadFile(filepath.Join(dir, "b")); string(got) != string(node.kids[0].data) {
				t.Errorf("%s, %+v: the file was not restored", name, opt)
			}
		}
	}
}

// TestRace flips a directory of the target into a link to the outside and
// back while a restore writes into it.
func TestRace(t *testing.T) {
	top := t.TempDir()
	dir, out := filepath.Join(top, "target"), filepath.Join(top, "out")
	put(t, top, map[string]string{"out/": "", "target/d/": ""})
	var kids []*mem
	for i := range 40 {
		kids = append(kids, memDir(fmt.Sprintf("s%02d", i), memFile("f", []byte("x")), memLink("l", "x")))
	}
	node := memDir("", memDir("d", kids...))
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			d, aside := filepath.Join(dir, "d"), filepath.Join(dir, "aside")
			if os.Rename(d, aside) == nil {
				_ = os.Symlink(out, d)
				_ = os.Remove(d)
				_ = os.Rename(aside, d)
			}
			sub := filepath.Join(d, "s20")
			if os.RemoveAll(sub) == nil && os.Symlink(out, sub) == nil {
				_ = os.Remove(sub)
			}
		}
		done <- n
	}()
	for range 60 {
		// It may fail, as someone works against it. It must not write outside.
		_, _ = Run(t.Context(), []Item{{Node: node}}, dir, Options{Overwrite: Always, InPlace: true, Delete: true, Yes: true})
	}
	stop.Store(true)
	t.Logf("%d flips", <-done)
	if got := list(t, out); len(got) > 0 {
		t.Errorf("written outside: %q", got)
	}
}

// TestSetuid: no moment at which a file of the wrong owner has the bit.
func TestSetuid(t *testing.T) {
	f := memFile("su", []byte("prog"))
	f.attr.Mode = 0o6755
	f.attr.UID, f.attr.GID = 12345, 12345
	dir := t.TempDir()
	restoreTo(t, memDir("", f), dir, Options{})
	st, err := lstatat(-100, filepath.Join(dir, "su"))
	if err != nil {
		t.Fatal(err)
	}
	want := uint32(0o6755)
	if os.Getuid() != 0 {
		want = 0o755 // it belongs to somebody else than was meant
	}
	if st.mode != want {
		t.Errorf("mode %o, want %o", st.mode, want)
	}
}

// TestClosedDirs: directories whose owner may not enter them are filled, now
// and when they exist, and hard links lead out of them.
func TestClosedDirs(t *testing.T) {
	one := memFile("one", []byte("data"))
	one.attr.Nlink, one.attr.Ino = 2, 5
	two := memFile("two", []byte("data"))
	two.attr.Nlink, two.attr.Ino = 2, 5
	a, b := memDir("a", one, memFile("x", []byte("x"))), memDir("b", memDir("c", two))
	a.attr.Mode, b.attr.Mode, b.kids[0].attr.Mode = 0, 0o555, 0
	node := memDir("", a, b)
	dir := t.TempDir()
	t.Cleanup(func() { // or an ordinary user could not remove it
		for _, d := range []string{"a", "b", "b/c"} {
			_ = os.Chmod(filepath.Join(dir, d), 0o755)
		}
	})
	for i := range 2 {
		tot := restoreTo(t, node, dir, Options{})
		if i == 1 && tot.Kept != 7 {
			t.Errorf("second run: %+v", tot)
		}
		for d, mode := range map[string]uint32{"a": 0, "b": 0o555} {
			st, err := lstatat(-100, filepath.Join(dir, d))
			if err != nil || st.mode != mode || st.mtime != someTime {
				t.Errorf("%s: mode %o, time %v, %v", d, st.mode, st.mtime, err)
			}
		}
	}
	for _, d := range []string{"a", "b", "b/c"} {
		if err := os.Chmod(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s1, err1 := lstatat(-100, filepath.Join(dir, "a/one"))
	s2, err2 := lstatat(-100, filepath.Join(dir, "b/c/two"))
	if err1 != nil || err2 != nil || s1.inode != s2.inode {
		t.Errorf("not linked: %v %v", err1, err2)
	}
}

func TestHardLinkSubsets(t *testing.T) {
	var kids []*mem
	for _, n := range []string{"a", "b", "c", "d"} {
		f := memFile(n, []byte("same"))
		f.attr.Nlink, f.attr.Ino = 4, 77
		kids = append(kids, f)
	}
	stranger := memFile("e", []byte("same"))
	node := memDir("", append(kids, stranger)...)
	dir := t.TempDir()
	links := func(name string) (stat, error) { return lstatat(-100, filepath.Join(dir, name)) }
	restoreTo(t, node, dir, Options{Exclude: []string{"a"}})
	b, _ := links("b")
	d, err := links("d")
	if err != nil || b.inode != d.inode || b.nlink != 3 {
		t.Errorf("b and d: %+v %+v %v", b, d, err)
	}
	// A name that should not be linked is separated, one that should be is
	// linked, and what is right is kept.
	if err := os.Remove(filepath.Join(dir, "e")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "d"), filepath.Join(dir, "e")); err != nil {
		t.Fatal(err)
	}
	restoreTo(t, node, dir, Options{Workers: 1})
	a, _ := links("a")
	d, _ = links("d")
	e, _ := links("e")
	if a.inode != d.inode || a.nlink != 4 || e.nlink != 1 || e.inode == a.inode {
		t.Errorf("a %+v\nd %+v\ne %+v", a, d, e)
	}
}

// TestWrongGroups: names that are one file in the target but two in the
// snapshot are separated.
func TestWrongGroups(t *testing.T) {
	var kids []*mem
	for i, n := range []string{"a1", "a2", "b1", "b2"} {
		f := memFile(n, []byte("same"))
		f.attr.Nlink, f.attr.Ino = 2, uint64(1+i/2)
		kids = append(kids, f)
	}
	dir := t.TempDir()
	restoreTo(t, memDir("", kids[0]), dir, Options{})
	if err := os.Link(filepath.Join(dir, "a1"), filepath.Join(dir, "b1")); err != nil {
		t.Fatal(err)
	}
	restoreTo(t, memDir("", kids...), dir, Options{})
	var st [4]stat
	for i, k := range kids {
		st[i], _ = lstatat(-100, filepath.Join(dir, k.attr.Name))
	}
	if st[0].inode != st[1].inode || st[2].inode != st[3].inode || st[0].inode == st[2].inode || st[0].nlink != 2 {
		t.Errorf("%+v", st)
	}
}

// TestClosedTarget: a target and a parent that keep their owner out.
func TestClosedTarget(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"p/": ""})
	t.Cleanup(func() { _, _ = os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "p"), 0o755) })
	if err := errors.Join(os.Chmod(filepath.Join(dir, "p"), 0o555), os.Chmod(dir, 0o555)); err != nil {
		t.Fatal(err)
	}
	d := memDir("x", memFile("f", []byte("f")))
	slow := memFile("slow", []byte("s")) // p is done with before its neighbour comes
	slow.onRead = func(int64) error { time.Sleep(100 * time.Millisecond); return nil }
	items := []Item{{Path: "p/slow", Node: slow}, {Path: "p/next", Node: d.kids[0]}, {Path: "p/x", Node: d}, {Path: "z", Node: d}}
	if _, err := Run(t.Context(), items, dir, Options{Workers: 1}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, filepath.Join(dir, "p")} {
		if st, err := lstatat(-100, p); st.mode != 0o555 || err != nil {
			t.Errorf("%s: mode %o, %v", p, st.mode, err)
		}
	}
	if got := list(t, dir); len(got) != 7 {
		t.Errorf("got %q", got)
	}
}

// TestDamagedListing: where the stored listing is not whole nothing is
// deleted, and out of order means damaged.
func TestDamagedListing(t *testing.T) {
	f := func(n string) *mem { return memFile(n, []byte("new")) }
	cut := memDir("", f("a"))
	cut.fails = errors.New("page lost")
	for name, node := range map[string]*mem{"cut": cut, "order": memDir("", f("b"), f("a")), "twice": memDir("", f("a"), f("a"))} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"0": "mine", "a": "old", "b": "old", "z": "mine"})
		if _, err := Run(t.Context(), []Item{{Node: node}}, dir, Options{Delete: true, Yes: true}); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := list(t, dir); len(got) != 4 || got["0"] != "mine" || got["z"] != "mine" {
			t.Errorf("%s: left %q", name, got)
		}
	}
}

func TestKindsThatDiffer(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, map[string]string{"dir": "a file", "empty/": "", "full/x": "mine", "link": "a file"})
	node := memDir("", memDir("dir", memFile("f", []byte("f"))), memFile("empty", []byte("e")), memFile("full", []byte("full")), memLink("link", "t"))
	_, err := Run(t.Context(), []Item{{Node: node}}, dir, Options{})
	if !errors.Is(err, errInWay) {
		t.Errorf("a full directory in the way: %v", err)
	}
	want := map[string]string{"dir": "/", "dir/f": "f", "empty": "e", "full": "/", "full/x": "mine", "link": "-> t"}
	if got := list(t, dir); !maps.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	restoreTo(t, node, dir, Options{Delete: true, Yes: true})
	want["full"] = "full"
	delete(want, "full/x")
	if got := list(t, dir); !maps.Equal(got, want) {
		t.Errorf("with delete: got %q", got)
	}
}

func TestStrangeKinds(t *testing.T) {
	odd := memFile("odd", nil)
	odd.attr.Kind = tree.Kind(99)
	late := memFile("late", []byte("x"))
	late.attr.Mtime.Nsec = 1<<30 - 1 // UTIME_NOW
	big := memFile("big", nil)
	big.attr.Size = -1
	_, err := Run(t.Context(), []Item{{Node: memDir("", big, late, odd)}}, t.TempDir(), Options{})
	var p *ProblemsError
	if !errors.As(err, &p) || p.Count != 3 {
		t.Errorf("got %v", err)
	}
}
