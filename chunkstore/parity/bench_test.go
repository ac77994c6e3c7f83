package parity_test

import (
	"fmt"
	"testing"

	"github.com/cutbankfs/cutbank/chunkstore/parity"
)

// BenchmarkCompute makes the parity of a usual pack, hashes included. cost% is
// the parity object's size in per cent of the pack's.
func BenchmarkCompute(b *testing.B) {
	for _, percent := range []float64{1, 2, 5, 10, 100} {
		b.Run(fmt.Sprintf("%g%%", percent), func(b *testing.B) {
			p := testPack(1, 32<<20)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, err := parity.Compute(testName, p, percent); err != nil {
					b.Fatal(err)
				}
			}
			n, err := parity.Size(int64(len(p)), percent)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(100*float64(n)/float64(len(p)), "cost%")
		})
	}
}

// BenchmarkSmall is what parity costs packs that are far from full.
func BenchmarkSmall(b *testing.B) {
	for _, size := range []int{10 << 10, 100 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			p := testPack(1, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := parity.Compute(testName, p, 2); err != nil {
					b.Fatal(err)
				}
			}
			n, err := parity.Size(int64(size), 2)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(100*float64(n)/float64(size), "cost%")
		})
	}
}

// BenchmarkRebuild rebuilds a usual pack: one byte damaged, and all that
// parity covers.
func BenchmarkRebuild(b *testing.B) {
	p := testPack(1, 32<<20)
	o := testObject(b, p, 2)
	x := mustOpen(b, o)
	for what, bad := range map[string][]byte{"byte": flip(p, 12345), "extent": erase(p, 1<<20, 640<<10)} {
		b.Run(what, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				if _, _, err := x.Rebuild(bad); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
