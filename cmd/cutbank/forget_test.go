package main

import (
	"strings"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/repo"
)

// TestFickle: a name that would mean another snapshot afterwards is none to forget
// by.
func TestFickle(t *testing.T) {
	at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	snap := func(id byte, name, dir, label string, after time.Duration) *repo.Snapshot {
		s := &repo.Snapshot{ID: repo.ID{id}, Dir: dir}
		s.Name, s.Label, s.Time = name, label, at.Add(after)
		return s
	}
	first := snap(1, "box", "2026-11-21T10.00.00Z", "", 0)
	second := snap(2, "box", "2026-11-21T10.00.00Z-2", "two", 900*time.Millisecond)
	later := snap(3, "box", "2026-11-21T10.00.01Z", "", time.Second)
	other := snap(4, "web", "2026-11-21T10.00.00Z", "", 0)
	all := []*repo.Snapshot{first, second, later, other}
	for _, c := range []struct {
		arg     string
		s       *repo.Snapshot
		refused bool
	}{
		{"box/2026-11-21T10.00.00Z", first, true},
		{"box/2026-11-21T10.00.00Z-2", second, true},
		{"box/two", second, false},
		{"02000000", second, false},
		{"box/2026-11-21T10.00.01Z", later, false},
		{"web/2026-11-21T10.00.00Z", other, false},
	} {
		err := fickle(all, []*repo.Snapshot{c.s}, []string{c.arg})
		if (err != nil) != c.refused || c.refused && (exitCode(err) != 2 || !strings.Contains(err.Error(), c.s.ID.String()[:8])) {
			t.Errorf("%s: %v, want refused %v", c.arg, err, c.refused)
		}
	}
}
