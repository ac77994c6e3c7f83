package gen_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cutbankfs/cutbank/fs/diff"
	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
	"github.com/cutbankfs/cutbank/test/gen"
)

func options(seed uint64) gen.Options {
	opt := gen.Default(seed)
	opt.Files, opt.Bytes, opt.Wide, opt.Deep = 100, 2<<20, 300, 20
	return opt
}

func generate(t *testing.T, opt gen.Options) (string, gen.Manifest) {
	t.Helper()
	dir := t.TempDir()
	m, err := gen.Tree(dir, opt)
	if err != nil {
		t.Fatalf("seed %d: %v", opt.Seed, err)
	}
	for _, s := range m.Skipped {
		t.Logf("not in the tree: %s", s)
	}
	return dir, m
}

func open(t *testing.T, dir string) tree.Node {
	t.Helper()
	n, err := source.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// differences counts what differs, by path.
func differences(t *testing.T, a, b string) map[string]diff.Fields {
	t.Helper()
	list := map[string]diff.Fields{}
	for c, err := range diff.Compare(context.Background(), open(t, a), open(t, b), diff.Options{Content: true, Holes: true}) {
		if err != nil {
			t.Fatal(err)
		}
		list[c.Path] = c.Fields
	}
	return list
}

func TestOneSeedIsOneTree(t *testing.T) {
	a, m := generate(t, options(1))
	b, n := generate(t, options(1))
	for path, fields := range differences(t, a, b) {
		t.Errorf("%q differs in %s", path, fields)
	}
	if !reflect.DeepEqual(m, n) && !slices.ContainsFunc(m.Skipped, func(s string) bool { return strings.Contains(s, a) }) {
		t.Errorf("manifests differ: %+v, %+v", m, n)
	}
	c, _ := generate(t, options(2))
	if d := differences(t, a, c); len(d) < m.Names()/2 {
		t.Errorf("another seed changed only %d of %d names", len(d), m.Names())
	}
}

// TestManifest walks a tree and counts for itself.
func TestManifest(t *testing.T) {
	dir, want := generate(t, options(3))
	var got gen.Manifest
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		first := !seen[st.Ino]
		seen[st.Ino] = true
		switch {
		case e.IsDir():
			got.Dirs++
		case !first:
			got.Links++
		case e.Type().IsRegular():
			got.Files++
			got.Bytes += st.Size
		case e.Type() == fs.ModeSymlink:
			got.Symlinks++
		default:
			got.Specials++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	got.Skipped = want.Skipped
	if !reflect.DeepEqual(got, want) {
		t.Errorf("walked %+v\nmanifest %+v", got, want)
	}
}

// TestWhatMustBeThere asks the file system for the things that this package
// is for.
func TestWhatMustBeThere(t *testing.T) {
	opt := options(4)
	opt.BigSparse = true
	dir, m := generate(t, opt)
	skipped := strings.Join(m.Skipped, "\n")
	stat := func(rel string) (st unix.Stat_t) {
		t.Helper()
		if err := unix.Lstat(dir+"/"+rel, &st); err != nil {
			t.Fatalf("%s: %v", rel, err)
		}
		return st
	}
	xattr := func(rel, name string, size int) {
		t.Helper()
		n, err := unix.Lgetxattr(dir+"/"+rel, name, nil)
		if (err != nil || n != size) && !strings.Contains(skipped, name) && (opt.Root || !strings.HasPrefix(name, "trusted.") && !strings.HasPrefix(name, "security.")) {
			t.Errorf("%s of %s: %d bytes, %v; want %d", name, rel, n, err, size)
		}
	}
	xattr("xattrs/large", "user.large", 3000)
	xattr("xattrs/acl", "system.posix_acl_access", 52)
	xattr("xattrs/acl-dir", "system.posix_acl_default", 52)
	xattr("xattrs/capability", "security.capability", 20)
	xattr("xattrs/symlink", "trusted.link", 11)
	if st := stat("modes/file-7777"); opt.Root && st.Mode&0o7777 != 0o7777 {
		t.Errorf("mode %o", st.Mode)
	}
	if st := stat("times/before-ns"); st.Mtim.Sec != -1 || st.Mtim.Nsec != 999999999 {
		t.Errorf("mtime %+v, want one nanosecond before 1970", st.Mtim)
	}
	if st := stat("sparse/big"); st.Size != 6<<30 || st.Blocks*512 > 1<<20 {
		t.Errorf("big sparse file: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	if st := stat("sparse/hole-all"); st.Blocks != 0 {
		t.Errorf("hole has %d blocks", st.Blocks)
	}
	if st := stat("sparse/zeros-all"); st.Blocks*512 < 200<<10 {
		t.Errorf("written zeros have %d blocks only", st.Blocks)
	}
	if st := stat("links/many7"); st.Nlink != 50 {
		t.Errorf("%d links", st.Nlink)
	}
	if a, b := stat("links/a/across"), stat("links/b/c/across"); a.Ino != b.Ino {
		t.Error("link across directories is none")
	}
	if opt.Root && !strings.Contains(skipped, "char-large") {
		if st := stat("kinds/char-large"); st.Rdev != unix.Mkdev(4095, 1048575) {
			t.Errorf("rdev %#x", st.Rdev)
		}
	}
	if st := stat("kinds/symlink-4095"); st.Size != 4095 {
		t.Errorf("target of %d bytes", st.Size)
	}
	stat("names/\xff\xfe")
	stat("names/new\nline")
	stat("deep/" + strings.TrimPrefix(levels(20), "/") + "/file")
}

func levels(n int) string {
	s := ""
	for i := range n {
		s += "/level" + string(rune('0'+(i+1)/10)) + string(rune('0'+(i+1)%10))
	}
	return strings.ReplaceAll(s, "level0", "level")
}

func TestVeryDeep(t *testing.T) {
	opt := gen.Options{Seed: 5, Files: -1, Wide: -1, Deep: 1500}
	dir, m := generate(t, opt)
	if m.Dirs < 1500 {
		t.Errorf("%d directories", m.Dirs)
	}
	if d := differences(t, dir, dir); len(d) > 0 {
		t.Errorf("differs from itself: %v", d)
	}
}

func TestTreeRefusesWhatIsNotEmpty(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/mine", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := gen.Tree(dir, options(1)); err == nil {
		t.Error("wrote into a directory that was not empty")
	}
}

func TestMutateRepeats(t *testing.T) {
	a, _ := generate(t, options(6))
	b, _ := generate(t, options(6))
	before, _ := generate(t, options(6))
	ops := map[gen.Op]int{}
	for seed := range uint64(3) {
		m, err := gen.Mutate(a, seed, 0.3)
		if err != nil {
			t.Fatal(err)
		}
		n, err := gen.Mutate(b, seed, 0.3)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(m, n) {
			t.Fatalf("seed %d: not the same changes twice", seed)
		}
		for _, x := range m {
			ops[x.Op]++
		}
	}
	for path, fields := range differences(t, a, b) {
		t.Errorf("%q differs in %s", path, fields)
	}
	for _, op := range gen.Ops {
		if ops[op] == 0 {
			t.Errorf("no %s among %v", op, ops)
		}
	}
	if d := differences(t, before, a); len(d) < 100 {
		t.Errorf("only %d paths changed", len(d))
	}
	if m, err := gen.Mutate(a, 9, 0); err != nil || len(m) != 0 {
		t.Errorf("fraction 0 changed %v, %v", m, err)
	}
}
