package mount

import (
	"fmt"
	"path/filepath"
	"testing"
)

// The benchmarks show the cost of FUSE alone: the tree is in memory. Each
// iteration mounts anew, so the kernel's caches are cold.

func benchMount(b *testing.B, root *memNode, opt Options, work func(dir string)) {
	t := newMemTree(root)
	opt.Root, opt.Logf = t.root, b.Logf
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		s, dir := mountTest(b, opt)
		b.StartTimer()
		work(dir)
		b.StopTimer()
		st := s.Stats()
		b.ReportMetric(float64(st.Reads), "READs/op")
		if err := s.Unmount(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkWalk(b *testing.B) {
	benchMount(b, smallFiles(500, 40), Options{}, func(dir string) { run(b, "find", dir, "-size", "1000k") })
	b.ReportMetric(20_000, "files/op")
}

func BenchmarkWalkWide(b *testing.B) {
	benchMount(b, smallFiles(1, 100_000), Options{}, func(dir string) { run(b, "find", dir, "-size", "1000k") })
	b.ReportMetric(100_000, "files/op")
}

func BenchmarkTar(b *testing.B) {
	for _, push := range []int64{-1, 0} {
		b.Run(fmt.Sprintf("push=%v", push == 0), func(b *testing.B) {
			benchMount(b, smallFiles(250, 40), Options{PushBytes: push}, func(dir string) { tarOf(b, dir) })
			b.ReportMetric(10_000, "files/op")
		})
	}
}

func BenchmarkSequential(b *testing.B) {
	for _, kb := range []int{-1, 1024} {
		b.Run(fmt.Sprintf("readahead=%d", kb), func(b *testing.B) {
			const size = 512 << 20
			big := fileNode("big", size, 0)
			b.SetBytes(size)
			benchMount(b, dirNode("", big), Options{ReadAhead: kb}, func(dir string) {
				run(b, "dd", "if="+filepath.Join(dir, "big"), "of=/dev/null", "bs=1M", "status=none")
			})
		})
	}
}
