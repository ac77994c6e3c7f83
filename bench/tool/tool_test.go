package tool

import "testing"

func TestCounts(t *testing.T) {
	for _, c := range []struct {
		tool, list string
		want       int
		fail       bool
	}{
		{"cutbank", `{"v":1,"type":"snapshot"}` + "\n" + `{"v":1,"type":"warning"}` + "\n" + `{"v":1,"type":"snapshot"}` + "\n", 2, false},
		{"restic", `[{"id":"1"},{"id":"2"},{"id":"3"}]`, 3, false},
		{"restic", "null", 0, false},
		{"kopia", "no snapshots", 0, true},
		{"borg", "bench-1\nbench-2\n", 2, false},
		{"borg", "", 0, false},
	} {
		tl, err := New(c.tool, Options{Bin: "true", Base: t.TempDir(), Tree: "/tree", Label: "bench"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := tl.Count([]byte(c.list))
		if got != c.want || (err != nil) != c.fail {
			t.Errorf("%s %q: got %d, %v", c.tool, c.list, got, err)
		}
	}
}
