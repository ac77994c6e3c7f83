package main

import (
	"testing"
	"time"
)

// TestProgressLine: work that is not measured in bytes is not told in bytes.
func TestProgressLine(t *testing.T) {
	for _, c := range []struct {
		what   string
		counts bool
		s      status
		want   string
	}{
		{"verify", false, status{1 << 20, 4 << 20, "1 of 4 packs"}, "verify: 1.00 MiB of 4.00 MiB, 512.0 KiB/s, 6s left, 1 of 4 packs"},
		{"snapshot", false, status{1 << 20, 0, "3 files"}, "snapshot: 1.00 MiB, 512.0 KiB/s, 3 files"},
		{"prune", true, status{5, 20, "5 of 20 packs"}, "prune: 5 of 20 packs, 6s left"},
		{"prune", true, status{0, 0, "writers waited for: 1"}, "prune: writers waited for: 1"},
	} {
		p := progress{what: c.what, counts: c.counts}
		if got := p.line(c.s, 2*time.Second); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}
