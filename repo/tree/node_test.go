package tree_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/cutbankfs/cutbank/repo/tree"
)

func TestTime(t *testing.T) {
	for _, tt := range []struct {
		t time.Time
		w tree.Time
	}{
		{time.Unix(0, 0), tree.Time{}},
		{time.Unix(1, 999_999_999), tree.Time{Sec: 1, Nsec: 999_999_999}},
		{time.Unix(-1, 1), tree.Time{Sec: -1, Nsec: 1}},
		{time.Unix(0, -1), tree.Time{Sec: -1, Nsec: 999_999_999}},
		{time.Date(1901, 1, 1, 0, 0, 0, 5, time.UTC), tree.Time{Sec: -2177452800, Nsec: 5}},
	} {
		if got := tree.TimeOf(tt.t); got != tt.w || !got.Time().Equal(tt.t) || got.Time().Location() != time.UTC {
			t.Errorf("%s is %+v, and back %s", tt.t, got, got.Time())
		}
	}
	order := []tree.Time{{Sec: -2, Nsec: 5}, {Sec: -1}, {Sec: -1, Nsec: 1}, {}, {Nsec: 1}, {Sec: 1}}
	for i, a := range order {
		for j, b := range order {
			if got, want := a.Compare(b), min(1, max(-1, i-j)); got != want {
				t.Errorf("%+v against %+v: %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestKinds(t *testing.T) {
	want := []string{"kind(0)", "dir", "file", "symlink", "fifo", "socket", "chardev", "blockdev", "kind(8)"}
	for k, s := range want {
		if got := tree.Kind(k).String(); got != s {
			t.Errorf("kind %d is %q, want %q", k, got, s)
		}
	}
}

// TestTotalsJSON: the names are part of a record's format.
func TestTotalsJSON(t *testing.T) {
	p, err := json.Marshal(tree.Totals{Nodes: 1, Files: 2, Dirs: 3, Bytes: 4})
	if want := `{"nodes":1,"files":2,"dirs":3,"bytes":4}`; err != nil || string(p) != want {
		t.Errorf("%s, %v; want %s", p, err, want)
	}
}
