package restore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/repo/tree"
)

func TestFilter(t *testing.T) {
	paths := []string{"a", "a/x.go", "a/b", "a/b/y.go", "a/b/y.txt", "c", "c/z.go", "top.go"}
	for _, c := range []struct{ inc, exc, want string }{
		{"", "", "a a/x.go a/b a/b/y.go a/b/y.txt c c/z.go top.go"},
		{"a", "", "a a/x.go a/b a/b/y.go a/b/y.txt"},
		{"/a/b/", "", "a/b a/b/y.go a/b/y.txt"},
		{"a/**", "", "a a/x.go a/b a/b/y.go a/b/y.txt"},
		{"*.go", "", "top.go"},
		{"**/*.go", "", "a/x.go a/b/y.go c/z.go top.go"},
		{"**/*.go", "a/b", "a/x.go c/z.go top.go"},
		{"a/b", "**/*.txt", "a/b a/b/y.go"},
		{"{a/b,c}/*.go", "", "a/b/y.go c/z.go"},
		{"a/?.go c", "", "a/x.go c c/z.go"},
		{"", "* top.go", ""},
		{"", "a/*", "a c c/z.go top.go"},
	} {
		f, err := newFilter(strings.Fields(c.inc), strings.Fields(c.exc))
		if err != nil {
			t.Fatal(err)
		}
		in := map[string][2]bool{"": {len(f.include) == 0, true}}
		var got []string
		for _, p := range paths {
			up := ""
			if i := strings.LastIndexByte(p, '/'); i >= 0 {
				up = p[:i]
			}
			if !in[up][1] {
				continue
			}
			inc, desc := f.verdict(p, in[up][0])
			in[p] = [2]bool{inc, desc}
			if inc {
				got = append(got, p)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("include %q, exclude %q: got %q, want %q", c.inc, c.exc, got, c.want)
		}
	}
	for _, p := range []string{"", "/", "[a", "{a"} {
		if _, err := newFilter(nil, []string{p}); err == nil {
			t.Errorf("pattern %q: no error", p)
		}
	}
}

func TestFilterRestores(t *testing.T) {
	node := memDir("", memDir("a", memDir("b", memFile("x.txt", []byte("x"))), memDir("none", memFile("n", nil))), memFile("y.txt", []byte("y")))
	dir := t.TempDir()
	if err := os.Chtimes(dir, time.Unix(5, 0), time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
	restoreTo(t, node, dir, Options{Include: []string{"a/**/*.txt"}})
	if got, want := list(t, dir), map[string]string{"a": "/", "a/b": "/", "a/b/x.txt": "x"}; !maps.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	st, err := lstatat(-100, filepath.Join(dir, "a"))
	if err != nil || st.mtime != someTime {
		t.Errorf("a created parent has time %v, %v", st.mtime, err)
	}
}

func TestItems(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "target")
	items := []Item{{Path: "home/u/d", Node: memDir("src", memFile("f", []byte("1")))}, {Path: "home/u/file", Node: memFile("other", []byte("2"))}}
	if _, err := Run(t.Context(), items, dir, Options{}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"home": "/", "home/u": "/", "home/u/d": "/", "home/u/d/f": "1", "home/u/file": "2"}
	if got := list(t, dir); !maps.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	bare := t.TempDir()
	if err := os.Chmod(bare, 0o711); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), []Item{{Node: memDir("", memFile("f", nil)), Bare: true}}, bare, Options{}); err != nil {
		t.Fatal(err)
	}
	if st, _ := lstatat(-100, bare); st.mode != 0o711 {
		t.Errorf("bare: mode %o", st.mode)
	}
}

func TestPolicies(t *testing.T) {
	newer, older := someTime.Time().Add(time.Hour), someTime.Time().Add(-time.Hour)
	same := someTime.Time()
	for _, c := range []struct {
		p    Policy
		old  string // the snapshot holds "new!"
		at   time.Time
		want string
	}{
		{IfChanged, "old!", newer, "new!"}, {IfChanged, "old!", older, "new!"}, {IfChanged, "old!", same, "old!"}, {IfChanged, "longer", same, "new!"},
		{Always, "old!", same, "new!"}, {Always, "old!", newer, "new!"},
		{IfNewer, "old!", newer, "old!"}, {IfNewer, "old!", older, "new!"}, {IfNewer, "longer", same, "longer"},
		{Never, "old!", older, "old!"}, {Never, "longer", newer, "longer"},
	} {
		dir := t.TempDir()
		put(t, dir, map[string]string{"f": c.old})
		if err := os.Chtimes(filepath.Join(dir, "f"), c.at, c.at); err != nil {
			t.Fatal(err)
		}
		restoreTo(t, memDir("", memFile("f", []byte("new!")), memFile("missing", []byte("m"))), dir, Options{Overwrite: c.p})
		got := list(t, dir)
		if got["f"] != c.want || got["missing"] != "m" {
			t.Errorf("policy %d, %q at %v: got %q", c.p, c.old, c.at.Sub(same), got)
		}
	}
}

// TestComesMeanwhile: what somebody puts into the target while the restore runs is
// kept by the policies that keep what exists.
func TestComesMeanwhile(t *testing.T) {
	for policy, want := range map[Policy]string{Never: "precious", IfNewer: "precious", IfChanged: "restored", Always: "restored"} {
		for _, kind := range []string{"file", "symlink", "hard link"} {
			dir := t.TempDir()
			place := func(int64) error { return os.WriteFile(filepath.Join(dir, "z"), []byte("precious"), 0o600) }
			first, n := memFile("f", []byte("restored")), memLink("z", "f")
			first.onRead = place
			switch kind {
			case "file":
				n = memFile("z", []byte("restored"))
				n.onRead = place
			case "hard link":
				n = memFile("z", []byte("restored"))
				first.attr.Nlink, n.attr.Nlink = 2, 2
			}
			_, err := Run(t.Context(), []Item{{Node: memDir("", first, n)}}, dir, Options{Overwrite: policy, Workers: 1})
			if errors.Is(err, fs.ErrExist) != (want == "precious") {
				t.Errorf("policy %d, %s: %v", policy, kind, err)
			}
			got := list(t, dir)
			if z, _ := os.ReadFile(filepath.Join(dir, "z")); string(z) != want || len(got) != 2 {
				t.Errorf("policy %d, %s: got %q, %d entries", policy, kind, z, len(got))
			}
		}
	}
}

func TestDamage(t *testing.T) {
	kind := func(name string, k tree.ExtentKind) *mem {
		f := memFile(name, random(7, 5*memChunk))
		f.exts[3].Kind = k
		return f
	}
	gap := memFile("gap", random(8, 5*memChunk))
	gap.exts = append(gap.exts[:2], gap.exts[3:]...)
	short := memFile("short", random(9, 5*memChunk))
	short.exts = short.exts[:3]
	missing := memFile("missing", random(10, 5*memChunk))
	missing.onRead = func(int64) error { return chunk.ErrMissing }
	node := memDir("", kind("absent", tree.Absent), gap, memFile("good", []byte("g")), kind("lost", tree.Lost), missing, short, kind("what", 77))
	for _, opt := range []Options{{}, {InPlace: true}} {
		dir := t.TempDir()
		if opt.InPlace { // the old contents stay
			for _, k := range node.kids {
				put(t, dir, map[string]string{k.attr.Name: "old"})
			}
		}
		_, err := Run(t.Context(), []Item{{Node: node}}, dir, opt)
		var p *ProblemsError
		if !errors.As(err, &p) || p.Count != 6 || !errors.Is(err, syscall.ENODATA) || !errors.Is(err, syscall.EIO) || !errors.Is(err, chunk.ErrMissing) {
			t.Errorf("got %v", err)
		}
		for name, data := range list(t, dir) {
			if name != "good" && (!opt.InPlace || data != "old") {
				t.Errorf("in place %v: left %s of %d bytes", opt.InPlace, name, len(data))
			}
		}
	}
}

func TestDelete(t *testing.T) {
	node := memDir("", memDir("d", memFile("keep", []byte("k"))), memFile("f", []byte("f")))
	files := map[string]string{"d/keep": "k", "f": "f", "d/extra": "1", "x/y/z": "2", "x/y/w.log": "3", "out": "-> ../outside", "e.log": "4"}
	for _, c := range []struct {
		name    string
		opt     Options
		gone    string // of what exists, sorted
		refused bool
	}{
		{"refused", Options{}, "", true},
		{"share", Options{MaxDelete: 0.8}, "d/extra e.log out x x/y x/y/w.log x/y/z", false},
		{"yes", Options{Yes: true}, "d/extra e.log out x x/y x/y/w.log x/y/z", false},
		{"protected", Options{Yes: true, Exclude: []string{"**/*.log"}}, "d/extra out x/y/z", false},
		{"scope", Options{Yes: true, Include: []string{"**/*.log"}}, "e.log x/y/w.log", false},
		{"scope, counted", Options{Include: []string{"**/*.log"}}, "", true},
		{"no include", Options{Yes: true, Include: []string{"d"}}, "d/extra", false},
	} {
		for _, dry := range []bool{true, false} {
			top := t.TempDir()
			dir := filepath.Join(top, "target")
			put(t, top, map[string]string{"outside/f": "safe"})
			put(t, dir, files)
			before := list(t, top)
			opt := c.opt
			opt.Delete, opt.DryRun = true, dry
			var planned []string
			opt.Observer.Planned = func(a Action) {
				if a.Op == Delete {
					planned = append(planned, a.Path)
				}
			}
			_, err := Run(t.Context(), []Item{{Node: node}}, dir, opt)
			var refused *DeleteRefusedError
			if errors.As(err, &refused) != c.refused || err != nil && !c.refused {
				t.Errorf("%s, dry %v: %v", c.name, dry, err)
			}
			after := list(t, top)
			if dry || c.refused {
				if !maps.Equal(before, after) {
					t.Errorf("%s, dry %v: changed to %q", c.name, dry, after)
				}
				if dry && !c.refused && len(planned) != len(strings.Fields(c.gone)) {
					t.Errorf("%s: planned %q", c.name, planned)
				}
				continue
			}
			for _, p := range strings.Fields(c.gone) {
				if _, ok := after["target/"+p]; !ok {
					delete(before, "target/"+p)
				}
			}
			if !maps.Equal(before, after) {
				t.Errorf("%s: got %q\nwant %q", c.name, after, before)
			}
		}
	}
}

// TestDeleteMounts: what is mounted in the target is not deleted.
func TestDeleteMounts(t *testing.T) {
	if os.Getuid() != 0 {
		skipOrFail(t, "fuse", "mounting needs root")
	}
	top := t.TempDir()
	dir := filepath.Join(top, "target")
	put(t, top, map[string]string{"outside/f": "safe", "target/m/": "", "target/x/n/": ""})
	for _, m := range []string{"m", "x/n"} { // a bind mount: the same device
		p := filepath.Join(dir, m)
		if err := syscall.Mount(filepath.Join(top, "outside"), p, "", syscall.MS_BIND, ""); err != nil {
			skipOrFail(t, "fuse", "cannot mount: "+err.Error())
		}
		defer syscall.Unmount(p, syscall.MNT_DETACH)
	}
	restoreTo(t, memDir("", memDir("m")), dir, Options{Delete: true, Yes: true})
	if got := list(t, top); got["outside/f"] != "safe" || got["target/x/n"] != "/" {
		t.Errorf("got %q", got)
	}
}

// TestDryRun: the plan is what a run then does, and planning changes nothing.
func TestDryRun(t *testing.T) {
	data := random(11, 30*memChunk)
	node := memDir("", memFile("changed", data), memDir("d", memFile("new", data), memFile("same", data)), memLink("l", "x"), memDir("was-file"))
	dir := t.TempDir()
	put(t, dir, map[string]string{"d/same": string(data), "changed": string(data[memChunk:]), "l": "-> y", "extra/x": "x", "was-file": ""})
	if err := os.Chtimes(filepath.Join(dir, "d/same"), someTime.Time(), someTime.Time()); err != nil {
		t.Fatal(err)
	}
	stats := func() map[string]stat {
		m := map[string]stat{}
		for p := range list(t, dir) {
			m[p], _ = lstatat(-100, filepath.Join(dir, p))
		}
		m["."], _ = lstatat(-100, dir)
		return m
	}
	before := stats()
	plan, real := map[string]Action{}, map[string]Action{}
	opt := Options{Sum: hasher.Sum, Delete: true, Yes: true, DryRun: true}
	opt.Observer.Planned = func(a Action) { plan[a.Path] = a }
	opt.Observer.Done = func(a Action) { real[a.Path] = a }
	t1 := restoreTo(t, node, dir, opt)
	if after := stats(); !maps.Equal(before, after) {
		t.Errorf("planning changed the target:\n%v\n%v", before, after)
	}
	opt.DryRun = false
	t2 := restoreTo(t, node, dir, opt)
	if !maps.Equal(plan, real) || t1 != t2 {
		t.Errorf("planned %v\ndone    %v\n%+v\n%+v", plan, real, t1, t2)
	}
	missing := filepath.Join(dir, "none", "at", "all")
	opt.DryRun = true
	if tot := restoreTo(t, node, missing, opt); tot.Created != 7 {
		t.Errorf("a missing target: %+v", tot)
	}
	if _, err := os.Lstat(filepath.Dir(missing)); err == nil {
		t.Error("planning made the target")
	}
}

// TestCancel: temporary files go, finished files stay.
func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	big := memFile("big", random(12, 400*memChunk))
	big.onRead = func(off int64) error {
		if off > 200*memChunk {
			cancel(why)
		}
		return nil
	}
	dir := t.TempDir()
	node := memDir("", memFile("a", []byte("a")), big, memFile("c", []byte("c")))
	if _, err := Run(ctx, []Item{{Node: node}}, dir, Options{Workers: 1}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if got := list(t, dir); !maps.Equal(got, map[string]string{"a": "a"}) {
		t.Errorf("left %d entries", len(got))
	}
}

// TestDamageInPlace: what cannot be restored whole is not touched.
func TestDamageInPlace(t *testing.T) {
	f := memFile("f", random(20, 1600*memChunk)) // more than is looked at ahead
	f.exts[1599].Kind = tree.Absent
	old := string(random(21, 1600*memChunk))
	dir := t.TempDir()
	put(t, dir, map[string]string{"f": old})
	if _, err := Run(t.Context(), []Item{{Node: memDir("", f)}}, dir, Options{InPlace: true}); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("got %v", err)
	}
	if got := list(t, dir); got["f"] != old {
		t.Error("the old contents are damaged")
	}
}

func TestProblemsAreBounded(t *testing.T) {
	var kids []*mem
	for i := range 250 {
		f := memFile(fmt.Sprintf("%03d", i), []byte("x"))
		f.exts[0].Kind = tree.Lost
		kids = append(kids, f)
	}
	told := 0
	tot, err := Run(t.Context(), []Item{{Node: memDir("", kids...)}}, t.TempDir(), Options{Observer: Observer{Problem: func(string, error) { told++ }}})
	var p *ProblemsError
	if !errors.As(err, &p) || p.Count != 250 || len(p.First) != 100 || told != 250 || tot.Problems != 250 {
		t.Errorf("%+v, told %d: %.200v", tot, told, err)
	}
	if s := err.Error(); strings.Count(s, "\n") != 11 {
		t.Errorf("message: %s", s)
	}
}
