package source_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cutbankfs/cutbank/repo/tree"
	"github.com/cutbankfs/cutbank/snapshotter/source"
)

// BenchmarkWalk lists and stats 60,000 files in 600 directories, with and
// without asking for their extended attributes.
func BenchmarkWalk(b *testing.B) {
	dir := b.TempDir()
	const dirs, files = 600, 100
	for i := range dirs {
		d := filepath.Join(dir, fmt.Sprintf("directory%03d", i))
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range files {
			if err := os.WriteFile(filepath.Join(d, fmt.Sprintf("file-%04d.txt", j)), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, xattrs := range []bool{false, true} {
		b.Run(fmt.Sprintf("xattrs=%v", xattrs), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if n := count(b, dir, xattrs); n != 1+dirs*(files+1) {
					b.Fatalf("%d nodes", n)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(dirs*files), "ns/file")
		})
	}
}

// BenchmarkOpen opens, stats and closes a file, as a snapshot does for a small
// one beside reading it.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644); err != nil {
		b.Fatal(err)
	}
	root, err := source.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	for n, err := range root.Entries(context.Background(), 0) {
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			f, err := n.(tree.Opener).Open(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func count(tb testing.TB, dir string, xattrs bool) int {
	root, err := source.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	var walk func(tree.Node) int
	walk = func(n tree.Node) int {
		sum := 1
		if xattrs {
			if _, err := n.Xattrs(context.Background()); err != nil {
				tb.Fatal(err)
			}
		}
		if n.Attr().Kind != tree.Dir {
			return sum
		}
		for c, err := range n.Entries(context.Background(), 0) {
			if err != nil {
				tb.Fatal(err)
			}
			sum += walk(c)
		}
		return sum
	}
	return walk(root)
}
