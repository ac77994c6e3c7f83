package diff_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/test/gen"
)

// everything compares all that can be compared but the places of holes.
var everything = diff.Options{Content: true}

// changes lists what differs, one line each: "modified a/b mode,owner".
func changes(t *testing.T, a, b tree.Node, opt diff.Options) []string {
	t.Helper()
	var list []string
	for c, err := range diff.Compare(context.Background(), a, b, opt) {
		line := fmt.Sprintf("%s %q", c.Kind, c.Path)
		if c.Kind == diff.Modified {
			line += " " + c.Fields.String()
		}
		if err != nil {
			line = fmt.Sprintf("error %q %v", c.Path, err)
		}
		list = append(list, line)
	}
	return list
}

func live(t *testing.T, path string) tree.Node {
	t.Helper()
	n, err := source.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wantChanges(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("changes:\n  got  %s\n  want %s", strings.Join(got, "\n       "), strings.Join(want, "\n       "))
	}
}

// small is a generated tree that is quick to copy.
func small(t *testing.T, dir string) {
	t.Helper()
	opt := gen.Default(7)
	opt.Files, opt.Bytes, opt.Wide = 60, 1<<20, 200
	t.Logf("seed %d", opt.Seed)
	m, err := gen.Tree(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range m.Skipped {
		t.Logf("not in the tree: %s", s)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		missing(t, name+" on the PATH")
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func TestCopiesAreEqual(t *testing.T) {
	base := t.TempDir()
	src := filepath.Join(base, "src")
	small(t, src)
	for _, c := range []struct {
		name string
		copy func(dst string)
		opt  diff.Options
	}{
		{"itself", func(dst string) { must(t, os.Symlink(src, dst)) }, diff.Options{Content: true, Holes: true}},
		{"cp", func(dst string) { run(t, "cp", "-a", src, dst) }, everything},
		{"rsync", func(dst string) { run(t, "rsync", "-aHAXS", src+"/", dst+"/") }, everything},
		{"rsync quick", func(dst string) { run(t, "rsync", "-aHAXS", src+"/", dst+"/") }, diff.Options{Quick: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst := filepath.Join(base, c.name)
			c.copy(dst)
			start := time.Now()
			wantChanges(t, changes(t, live(t, src), live(t, dst+"/"), c.opt))
			t.Logf("compared in %v", time.Since(start))
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSingleChanges makes one change at a time to a copy, and wants to be told
// of that and nothing else.
func TestSingleChanges(t *testing.T) {
	base := t.TempDir()
	src, dst := filepath.Join(base, "src"), filepath.Join(base, "dst")
	must(t, os.MkdirAll(filepath.Join(src, "d/sub"), 0o755))
	for _, name := range []string{"d/a", "d/b", "d/sub/file", "d/twin"} {
		must(t, os.WriteFile(filepath.Join(src, name), []byte(strings.Repeat("content\n", 1000)), 0o644))
	}
	must(t, os.Link(src+"/d/a", src+"/d/a-link"))
	must(t, os.Link(src+"/d/a", src+"/d/sub/a-link"))
	must(t, os.Symlink("a", src+"/d/symlink"))
	must(t, unix.Mkfifo(src+"/d/fifo", 0o600))
	// One old time for all: no change may hide or show by the clock.
	for _, name := range []string{"d/a", "d/b", "d/sub/file", "d/twin", "d/symlink", "d/fifo", "d/sub", "d", "."} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, src+"/"+name, []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}, unix.AT_SYMLINK_NOFOLLOW))
	}
	at := func(sec int64) []unix.Timespec { return []unix.Timespec{{Sec: sec}, {Sec: sec}} }
	utimes := func(name string, sec int64) func() error {
		return func() error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, dst+"/"+name, at(sec), unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	apply := func(op gen.Op, rel string) func() error {
		return func() error { _, err := gen.Apply(dst, op, rel, 1); return err }
	}
	const dirTime = `modified "d" mtime`
	// A change of all three names of d/a.
	onLinks := func(fields string) []string {
		return []string{`modified "d/a" ` + fields, `modified "d/a-link" ` + fields, `modified "d/sub/a-link" ` + fields}
	}
	for _, c := range []struct {
		name   string
		change func() error
		root   bool
		want   []string
	}{
		{name: "nothing", change: func() error { return nil }},
		{name: "edit", change: apply(gen.Edit, "d/b"), want: []string{`modified "d/b" mtime,content`}},
		{name: "append", change: apply(gen.Append, "d/b"), want: []string{`modified "d/b" mtime,size,content`}},
		{name: "truncate", change: apply(gen.Truncate, "d/b"), want: []string{`modified "d/b" mtime,size,content`}},
		{name: "touch", change: apply(gen.Touch, "d/b"), want: []string{`modified "d/b" mtime`}},
		{name: "chmod", change: apply(gen.Chmod, "d/b"), want: []string{`modified "d/b" mode`}},
		{name: "delete", change: apply(gen.Delete, "d/b"), want: []string{dirTime, `removed "d/b"`}},
		{name: "rename", change: apply(gen.Rename, "d/b"), want: []string{dirTime, `removed "d/b"`, `added "d/b.`}},
		{name: "add", change: apply(gen.Add, "d/b"), want: []string{dirTime, `added "d/b.`}},
		{name: "delete link", change: apply(gen.Delete, "d/a"), want: []string{dirTime, `removed "d/a"`}},
		{name: "edit link", change: apply(gen.Edit, "d/a-link"), want: onLinks("mtime,content")},
		{name: "touch link", change: apply(gen.Touch, "d/sub/a-link"), want: onLinks("mtime")},
		{name: "hidden edit", change: func() error {
			if _, err := gen.Apply(dst, gen.Edit, "d/b", 3); err != nil {
				return err
			}
			return exec.Command("touch", "-r", src+"/d/b", dst+"/d/b").Run()
		}, want: []string{`modified "d/b" content`}},
		{name: "break link", change: func() error {
			p := dst + "/d/a-link"
			if err := exec.Command("cp", "-p", "--remove-destination", src+"/d/a", p).Run(); err != nil {
				return err
			}
			return exec.Command("touch", "-r", src+"/d", dst+"/d").Run()
		}, want: []string{`modified "d/a-link" links`}},
		{name: "join files", change: func() error {
			if err := os.Remove(dst + "/d/twin"); err != nil {
				return err
			}
			if err := os.Link(dst+"/d/b", dst+"/d/twin"); err != nil {
				return err
			}
			return exec.Command("touch", "-r", src+"/d", dst+"/d").Run()
		}, want: []string{`modified "d/twin" links`}},
		{name: "retarget", change: func() error {
			p := dst + "/d/symlink"
			if err := os.Remove(p); err != nil {
				return err
			}
			if err := os.Symlink("b", p); err != nil {
				return err
			}
			return exec.Command("touch", "-h", "-r", src+"/d/symlink", p).Run()
		}, want: []string{dirTime, `modified "d/symlink" target`}},
		{name: "other kind", change: func() error {
			if err := os.Remove(dst + "/d/fifo"); err != nil {
				return err
			}
			return os.Mkdir(dst+"/d/fifo", 0o700)
		}, want: []string{dirTime, `modified "d/fifo" kind`}},
		{name: "directory to file", change: func() error {
			if err := os.RemoveAll(dst + "/d/sub"); err != nil {
				return err
			}
			return os.WriteFile(dst+"/d/sub", nil, 0o755)
		}, want: []string{dirTime, `modified "d/sub" kind`, `removed "d/sub/a-link"`, `removed "d/sub/file"`}},
		{name: "new directory", change: func() error { return os.MkdirAll(dst+"/new/er", 0o755) },
			want: []string{`modified "." mtime`, `added "new"`, `added "new/er"`}},
		{name: "time of link", change: utimes("d/symlink", 5), want: []string{`modified "d/symlink" mtime`}},
		{name: "time of directory", change: utimes("d/sub", -5), want: []string{`modified "d/sub" mtime`}},
		{name: "xattr", change: func() error { return unix.Lsetxattr(dst+"/d/sub", "user.x", []byte("1"), 0) },
			want: []string{`modified "d/sub" xattrs`}},
		{name: "acl", change: func() error {
			return unix.Lsetxattr(dst+"/d/sub", "system.posix_acl_default", gen.ACL(7, 5, 5, 5, 1, 1), 0)
		}, want: []string{`modified "d/sub" xattrs`}},
		{name: "owner", root: true, change: func() error { return os.Lchown(dst+"/d/symlink", 1, 0) },
			want: []string{`modified "d/symlink" owner`}},
		{name: "group", root: true, change: func() error { return os.Lchown(dst+"/d/fifo", 0, 1) },
			want: []string{`modified "d/fifo" owner`}},
		{name: "root", change: func() error { return os.Chmod(dst, 0o700) }, want: []string{`modified "." mode`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				missing(t, "root")
			}
			must(t, os.RemoveAll(dst))
			run(t, "cp", "-a", src, dst)
			must(t, c.change())
			got := changes(t, live(t, src), live(t, dst), everything)
			for i, g := range got { // names that gen chose
				if j := strings.Index(g, "d/b."); j >= 0 {
					got[i] = g[:j+len("d/b.")]
				}
			}
			wantChanges(t, got, c.want...)
		})
	}
}

func TestHolesAreComparedOnRequest(t *testing.T) {
	base := t.TempDir()
	a, b := base+"/a", base+"/b"
	must(t, os.WriteFile(a, make([]byte, 1<<20), 0o644))
	must(t, os.WriteFile(b, nil, 0o644))
	must(t, os.Truncate(b, 1<<20))
	opt := diff.Options{Content: true, Ignore: diff.Mtime}
	wantChanges(t, changes(t, live(t, a), live(t, b), opt))
	opt.Holes = true
	wantChanges(t, changes(t, live(t, a), live(t, b), opt), `modified "." holes`)
}

// TestSparseFilesAreNotReadThrough compares two files of 6 GiB that are all
// hole but for a few bytes. Reading them would take seconds.
func TestSparseFilesAreNotReadThrough(t *testing.T) {
	base := t.TempDir()
	const size = 6 << 30
	for _, name := range []string{"a", "b"} {
		f, err := os.Create(base + "/" + name)
		must(t, err)
		must(t, f.Truncate(size))
		_, err = f.WriteAt([]byte(name), size-1)
		must(t, err)
		must(t, f.Close())
	}
	start := time.Now()
	wantChanges(t, changes(t, live(t, base+"/a"), live(t, base+"/a"), everything))
	wantChanges(t, changes(t, live(t, base+"/a"), live(t, base+"/b"), diff.Options{Content: true, Ignore: diff.Mtime}), `modified "." content`)
	if d := time.Since(start); d > time.Second {
		t.Errorf("took %v: holes were read", d)
	}
}

// TestQuickTrusts pins what Quick and the zero Options leave out.
func TestQuickTrusts(t *testing.T) {
	base := t.TempDir()
	a, b := base+"/a", base+"/b"
	must(t, os.WriteFile(a, []byte("one"), 0o644))
	must(t, os.WriteFile(b, []byte("two"), 0o644))
	at := time.Unix(1e9, 5)
	must(t, os.Chtimes(a, at, at))
	must(t, os.Chtimes(b, at, at))
	wantChanges(t, changes(t, live(t, a), live(t, b), diff.Options{Quick: true, Content: true}))
	wantChanges(t, changes(t, live(t, a), live(t, b), diff.Options{}))
	wantChanges(t, changes(t, live(t, a), live(t, b), everything), `modified "." content`)
	wantChanges(t, changes(t, live(t, a), live(t, b), diff.Options{Content: true, Ignore: diff.Content}))
	must(t, os.Chtimes(b, at, at.Add(1)))
	wantChanges(t, changes(t, live(t, a), live(t, b), diff.Options{Quick: true, Content: true}), `modified "." mtime,content`)
	wantChanges(t, changes(t, live(t, a), live(t, b), diff.Options{Quick: true, Content: true, Ignore: diff.Mtime}), `modified "." content`)
}

// missing skips a test, or fails it where CUTBANK_REQUIRE says that nothing
// may be missing.
func missing(t *testing.T, what string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("CUTBANK_REQUIRE"), ","), "fuse") {
		t.Fatal("needs " + what)
	}
	t.Skip("SKIPPED: needs " + what)
}
