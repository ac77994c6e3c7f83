package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// metric is one kind of number.
type metric struct {
	key, title string
	disk       bool                      // the bare disk has it too
	get        func(measurement) float64 // 0: there is none
	text       func(float64) string
}

var metrics = []metric{
	{"wall_seconds", "wall time, seconds", true, func(m measurement) float64 { return m.Wall }, hundredths},
	{"cpu_seconds", "CPU time, seconds, user and system; through the mount that of find and tar too", true, func(m measurement) float64 { return m.CPU }, hundredths},
	{"peak_bytes", "peak of resident memory, MB; through the mount that of the mount", false, func(m measurement) float64 { return float64(m.Peak) }, megabytes},
	{"repo_bytes", "size of the repository, MB", false, func(m measurement) float64 { return float64(m.Repo) }, megabytes},
	{"cache_bytes", "size of the local cache, MB", false, func(m measurement) float64 { return float64(m.Cache) }, megabytes},
}

func hundredths(v float64) string { return fmt.Sprintf("%.2f", v) }
func megabytes(v float64) string  { return fmt.Sprintf("%.1f", v/1e6) }

// cell is what all runs say about one step of one tool. It is written as JSON
// with these names.
type cell struct {
	V      int     `json:"v"`
	Type   string  `json:"type"` // "summary"
	Metric string  `json:"metric"`
	Step   string  `json:"step"`
	Tool   string  `json:"tool"`
	Value  float64 `json:"value"`           // median; 0: there is none
	Ratio  float64 `json:"ratio,omitempty"` // to the base in the same run, median; 0: there is none
	Failed bool    `json:"failed,omitempty"`
}

// summarize makes a cell. One failure in one run is a failure.
func summarize(found []measurement, m metric, step, tool, base string) cell {
	c := cell{V: 1, Type: "summary", Metric: m.key, Step: step, Tool: tool}
	bases := map[int]float64{}
	for _, f := range found {
		if f.Step == step && f.Tool == base && f.Err == "" {
			bases[f.Run] = m.get(f)
		}
	}
	var values, ratios []float64
	for _, f := range found {
		switch {
		case f.Step != step || f.Tool != tool:
		case f.Err != "":
			c.Failed = true
		case m.get(f) > 0:
			values = append(values, m.get(f))
			if b := bases[f.Run]; b > 0 {
				ratios = append(ratios, m.get(f)/b)
			}
		}
	}
	if !c.Failed {
		c.Value, c.Ratio = median(values), median(ratios)
	}
	return c
}

// median returns the middle value, the mean of the middle two, or 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// row is a step's cells, one for each tool.
type row struct {
	title string
	cells []cell
}

// rows returns those in which anybody has a number.
func rows(found []measurement, m metric, tools []string) []row {
	var all []row
	for _, s := range steps {
		r := row{title: s.title}
		some := false
		for _, tool := range tools {
			c := summarize(found, m, s.key, tool, tools[0])
			some = some || c.Value > 0
			r.cells = append(r.cells, c)
		}
		if some {
			all = append(all, r)
		}
	}
	return all
}

// Widths in characters.
const (
	titleWidth = 20
	valueWidth = 9
	ratioWidth = 9
	barWidth   = 40
)

// writeTable prints each tool's number, and its ratio to the first tool's.
func writeTable(w io.Writer, m metric, tools []string, rs []row) {
	line := fmt.Sprintf("%-*s", titleWidth, "")
	for i, tool := range tools {
		line += fmt.Sprintf(" %*s%*s", valueWidth, tool, width(i), "")
	}
	fmt.Fprintf(w, "\n%s\n%s\n", m.title, strings.TrimRight(line, " "))
	for _, r := range rs {
		line = fmt.Sprintf("%-*s", titleWidth, r.title)
		for i, c := range r.cells {
			line += fmt.Sprintf(" %*s%*s", valueWidth, c.text(m), width(i), c.ratioText(i))
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

// width is that of a ratio: the first column has none.
func width(column int) int {
	if column == 0 {
		return 0
	}
	return ratioWidth
}

func (c cell) text(m metric) string {
	switch {
	case c.Failed:
		return "failed"
	case c.Value == 0:
		return "-"
	}
	return m.text(c.Value)
}

func (c cell) ratioText(column int) string {
	if column == 0 || c.Ratio == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", c.Ratio)
}

// writePlot prints bars: each step's longest has the full width.
func writePlot(w io.Writer, m metric, tools []string, rs []row) {
	fmt.Fprintf(w, "\n%s: bars within a step compare, between steps they do not\n", m.title)
	name := 0
	for _, tool := range tools {
		name = max(name, len(tool))
	}
	for _, r := range rs {
		longest := 0.0
		for _, c := range r.cells {
			longest = max(longest, c.Value)
		}
		fmt.Fprintln(w, r.title)
		for i, c := range r.cells {
			if c.Value == 0 && !c.Failed {
				continue
			}
			line := fmt.Sprintf("  %-*s %-*s %s  %s", name, tools[i], barWidth, bar(c.Value, longest), c.text(m), c.ratioText(i))
			fmt.Fprintln(w, strings.TrimRight(line, " "))
		}
	}
}

// bar returns a share of the full width; what is there at all is seen.
func bar(v, longest float64) string {
	if v <= 0 || longest <= 0 {
		return ""
	}
	return strings.Repeat("#", min(barWidth, max(1, int(v/longest*barWidth+0.5))))
}

// writeReport prints everything for people.
func (b *bench) writeReport(w io.Writer) {
	s := b.setup
	fmt.Fprintf(w, "%s\n%d cores, Linux %s; median of %d; ratios within a run, to %s\n", s.Tree, s.Cores, s.Kernel, s.Runs, s.Base)
	for _, tool := range b.opt.tools {
		fmt.Fprintf(w, "%s: %s\n", tool, s.Versions[tool])
	}
	for _, m := range metrics {
		if rs := rows(b.found, m, b.columns(m)); len(rs) > 0 {
			writeTable(w, m, b.columns(m), rs)
		}
	}
	wall := metrics[0]
	writePlot(w, wall, b.columns(wall), rows(b.found, wall, b.columns(wall)))
	for _, f := range b.found {
		if f.Err != "" && !f.Skip {
			fmt.Fprintf(w, "\nfailed: run %d, %s, %s: %s\n", f.Run, f.Step, f.Tool, f.Err)
		}
	}
}

// columns returns the tools and, where it has something to say, the disk.
func (b *bench) columns(m metric) []string {
	if !m.disk {
		return b.opt.tools
	}
	return append(slices.Clone(b.opt.tools), disk)
}
