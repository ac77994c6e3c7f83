package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cutbankfs/cutbank/bench/tool"
)

// plant makes files of that size, some in each of several folders, and a link.
func plant(t *testing.T, dir string, files int, size int64) {
	t.Helper()
	for i := range files {
		path := filepath.Join(dir, fmt.Sprint(i%7), fmt.Sprint(i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte(i)}, int(size)), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
}

func TestTalliesAgree(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, 50, 300)
	if err := os.Link(filepath.Join(dir, "0", "0"), filepath.Join(dir, "another name")); err != nil {
		t.Fatal(err)
	}
	want := tool.Tally{Files: 51, Dirs: 8, Links: 1, Bytes: 51 * 300}
	ctx := context.Background()
	if got, err := tool.TallyDir(ctx, dir); err != nil || got != want {
		t.Errorf("TallyDir: got %v, %v; want %v", got, err, want)
	}
	b := &bench{tree: dir, whole: want}
	for name, read := range map[string]func(context.Context, *bench, *participant) (tool.Usage, error){"find": walk, "tar": tarball} {
		u, err := read(ctx, b, &participant{name: disk})
		if err != nil || u.Wall == 0 {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
	}
	b.whole.Bytes++
	for name, read := range map[string]func(context.Context, *bench, *participant) (tool.Usage, error){"find": walk, "tar": tarball} {
		if _, err := read(ctx, b, &participant{name: disk}); err == nil {
			t.Errorf("%s: a byte is missing, and no error", name)
		}
	}
}

func TestCopyTree(t *testing.T) {
	src := t.TempDir()
	plant(t, src, 700, 1000)
	if err := os.WriteFile(filepath.Join(src, "huge"), make([]byte, 150_000), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	t.Run("all", func(t *testing.T) {
		dst := filepath.Join(t.TempDir(), "tree")
		got, err := copyTree(ctx, dst, []string{src, src}, unlimited, unlimited)
		want := tool.Tally{Files: 1402, Dirs: 1 + 2*8, Links: 2, Bytes: 2 * 850_000}
		if err != nil || got != want {
			t.Fatalf("got %v, %v; want %v", got, err, want)
		}
		from, err := os.Stat(filepath.Join(src, "3", "3"))
		if err != nil {
			t.Fatal(err)
		}
		to, err := os.Stat(filepath.Join(dst, "0-"+filepath.Base(src), "3", "3"))
		if err != nil {
			t.Fatal(err)
		}
		if !to.ModTime().Equal(from.ModTime()) || to.Mode() != fs.FileMode(0o600) {
			t.Errorf("time %v, mode %v; the source has %v, and writable it must be", to.ModTime(), to.Mode(), from.ModTime())
		}
	})
	for _, c := range []struct{ files, bytes int64 }{{200, unlimited}, {unlimited, 200_000}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			got, err := copyTree(ctx, filepath.Join(t.TempDir(), "tree"), []string{src}, c.files, c.bytes)
			if err != nil {
				t.Fatal(err)
			}
			// A sample: about as much as asked for, from all folders.
			if got.Files > 201 || got.Files < 140 || got.Bytes > c.bytes || got.Dirs != 9 {
				t.Errorf("got %v", got)
			}
		})
	}
	if _, err := copyTree(ctx, filepath.Join(t.TempDir(), "tree"), []string{src}, unlimited, 10); err == nil {
		t.Error("nothing fits, and no error")
	}
	if _, err := copyTree(ctx, filepath.Join(t.TempDir(), "tree"), []string{filepath.Join(src, "none")}, unlimited, unlimited); err == nil {
		t.Error("no source, and no error")
	}
}
