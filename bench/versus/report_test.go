package main

import (
	"fmt"
	"strings"
	"testing"
)

func wall(run int, step, tool string, seconds float64, err string) measurement {
	return measurement{Run: run, Step: step, Tool: tool, Wall: seconds, Err: err}
}

func TestSummarize(t *testing.T) {
	found := []measurement{
		// The machine is half as fast in the second run: ratios do not mind.
		wall(1, "first", "cutbank", 2, ""), wall(1, "first", "restic", 6, ""),
		wall(2, "first", "cutbank", 4, ""), wall(2, "first", "restic", 12, ""),
		wall(3, "first", "cutbank", 2, ""), wall(3, "first", "restic", 8, ""),
		wall(1, "tar", "cutbank", 1, ""), wall(1, "tar", "restic", 0.1, "it printed nothing"),
		wall(2, "tar", "cutbank", 1, ""), wall(2, "tar", "restic", 3, ""),
		wall(1, "walk", "cutbank", 1, "broken"), wall(1, "walk", "restic", 5, ""),
		wall(1, "umount", "cutbank", 0, ""),
	}
	for _, c := range []struct {
		step, tool   string
		value, ratio float64
		failed       bool
	}{
		{"first", "cutbank", 2, 1, false},
		{"first", "restic", 8, 3, false},
		{"tar", "restic", 0, 0, true}, // one failure is enough: it is not fast
		{"walk", "restic", 5, 0, false},
		{"walk", "cutbank", 0, 0, true},
		{"umount", "cutbank", 0, 0, false},
		{"first", "borg", 0, 0, false},
	} {
		got := summarize(found, metrics[0], c.step, c.tool, "cutbank")
		if got.Value != c.value || got.Ratio != c.ratio || got.Failed != c.failed {
			t.Errorf("%s of %s: got %+v, want %+v", c.step, c.tool, got, c)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{4, 1}, 2.5}, {[]float64{9, 1, 2}, 2}} {
		if got := median(c.of); got != c.want {
			t.Errorf("%v: got %v, want %v", c.of, got, c.want)
		}
	}
}

func TestTableAndPlot(t *testing.T) {
	found := []measurement{
		wall(1, "first", "cutbank", 2, ""), wall(1, "first", "restic", 8, ""), wall(1, "first", "borg", 1, "no space left"),
		wall(1, "walk", "cutbank", 0.5, ""), wall(1, "walk", "restic", 0.004, ""),
	}
	tools := []string{"cutbank", "restic", "borg"}
	rs := rows(found, metrics[0], tools)
	if len(rs) != 2 {
		t.Fatalf("%d rows, want those of two steps: %+v", len(rs), rs)
	}
	var table, plot strings.Builder
	writeTable(&table, metrics[0], tools, rs)
	wantTable := `
wall time, seconds
                       cutbank    restic               borg
first snapshot            2.00      8.00    4.00x    failed
walk                      0.50      0.00    0.01x         -
`
	if table.String() != wantTable {
		t.Errorf("got the table\n%s\nwant\n%s", table.String(), wantTable)
	}
	writePlot(&plot, metrics[0], tools, rs)
	wantPlot := fmt.Sprintf(`
wall time, seconds: bars within a step compare, between steps they do not
first snapshot
  cutbank %-40s 2.00
  restic  %-40s 8.00  4.00x
  borg    %-40s failed
walk
  cutbank %-40s 0.50
  restic  %-40s 0.00  0.01x
`, strings.Repeat("#", 10), strings.Repeat("#", 40), "", strings.Repeat("#", 40), "#")
	if plot.String() != wantPlot {
		t.Errorf("got the plot\n%s\nwant\n%s", plot.String(), wantPlot)
	}
}

func TestBar(t *testing.T) {
	for _, c := range []struct {
		v, longest float64
		want       int
	}{{0, 5, 0}, {5, 0, 0}, {5, 5, barWidth}, {1e-9, 5, 1}, {2.5, 5, barWidth / 2}, {6, 5, barWidth}} {
		if got := len(bar(c.v, c.longest)); got != c.want {
			t.Errorf("%v of %v: %d characters, want %d", c.v, c.longest, got, c.want)
		}
	}
}
