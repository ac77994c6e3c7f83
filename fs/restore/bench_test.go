package restore

import (
	"fmt"
	"path/filepath"
	"testing"
)

// BenchmarkSmallFiles restores 4,000 files of 8 KiB: new ones, then the same
// again, unchanged; the sync at the end is part of it.
func BenchmarkSmallFiles(b *testing.B) {
	var dirs []*mem
	for i := range 40 {
		var kids []*mem
		for j := range 100 {
			kids = append(kids, memFile(fmt.Sprintf("f%03d", j), random(uint64(i*1000+j), 8<<10)))
		}
		dirs = append(dirs, memDir(fmt.Sprintf("d%02d", i), kids...))
	}
	items := []Item{{Node: memDir("", dirs...)}}
	top, n := b.TempDir(), 0
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			n++
			if _, err := Run(b.Context(), items, filepath.Join(top, fmt.Sprint(n)), Options{}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(4000/(b.Elapsed().Seconds()/float64(b.N)), "files/s")
	})
	b.Run("unchanged", func(b *testing.B) {
		for b.Loop() {
			if _, err := Run(b.Context(), items, filepath.Join(top, "1"), Options{}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(4000/(b.Elapsed().Seconds()/float64(b.N)), "files/s")
	})
}

// BenchmarkBigFile restores one file of 256 MiB: new, and in place where one
// byte in a hundred chunks differs.
func BenchmarkBigFile(b *testing.B) {
	data := random(1, 256<<20)
	other := make([]byte, len(data))
	copy(other, data)
	for i := 0; i < len(other); i += 100 * memChunk {
		other[i] ^= 1
	}
	one, two := []Item{{Node: memDir("", memFile("f", data))}}, []Item{{Node: memDir("", memFile("f", other))}}
	b.Run("new", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		top, n := b.TempDir(), 0
		for b.Loop() {
			n++
			if _, err := Run(b.Context(), one, filepath.Join(top, fmt.Sprint(n)), Options{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("delta", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		top := b.TempDir()
		for b.Loop() {
			for _, items := range [][]Item{one, two} {
				if _, err := Run(b.Context(), items, top, Options{Overwrite: Always, InPlace: true, Sum: hasher.Sum}); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
