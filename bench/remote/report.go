package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// find returns what was measured of a step.
func (b *bench) find(step, tool string) (measurement, bool) {
	i := slices.IndexFunc(b.found, func(m measurement) bool { return m.Step == step && m.Tool == tool })
	if i < 0 {
		return measurement{}, false
	}
	return b.found[i], true
}

// addUp appends the rows that add up others.
func (b *bench) addUp() {
	for _, s := range sums {
		for _, tool := range b.opt.tools {
			sum := measurement{V: 1, Type: "sum", Step: s.key, Tool: tool, traffic: traffic{Kinds: map[string]int{}}}
			for _, key := range s.of {
				m, ok := b.find(key, tool)
				if !ok || m.Err != "" {
					sum.Err, sum.Skip = "a part of it failed", true
					break
				}
				sum.add(m)
			}
			b.found = append(b.found, sum)
			b.report(sum)
		}
	}
}

func (m *measurement) add(n measurement) {
	m.Wall, m.CPU, m.Peak = m.Wall+n.Wall, m.CPU+n.CPU, max(m.Peak, n.Peak)
	m.Requests, m.Errors, m.Up, m.Down = m.Requests+n.Requests, m.Errors+n.Errors, m.Up+n.Up, m.Down+n.Down
	for kind, k := range n.Kinds {
		m.Kinds[kind] += k
	}
}

// Widths in characters.
const (
	titleWidth = 28
	countWidth = 8
	bytesWidth = 9
	wallWidth  = 8
	ratioWidth = 9
)

// writeReport prints everything for people.
func (b *bench) writeReport(w io.Writer) {
	s := b.setup
	fmt.Fprintf(w, "small: %s\nbig: %s\n%.0f ms added to each request; %d cores; ratios to %s\n", s.Small, s.Big, s.Latency*1000, s.Cores, s.Base)
	for _, tool := range b.opt.tools {
		fmt.Fprintf(w, "%s: %s\n", tool, s.Versions[tool])
	}
	head, unit := strings.Repeat(" ", titleWidth), strings.Repeat(" ", titleWidth)
	for i, tool := range b.opt.tools {
		ratio := ratioWidth
		if i == 0 {
			ratio = 0
		}
		head += fmt.Sprintf("%*s%*s", countWidth, tool, bytesWidth+wallWidth+2*ratio, "")
		unit += fmt.Sprintf("%*s%*s%*s%*s%*s", countWidth, "requests", ratio, "", bytesWidth, "MB", wallWidth, "s", ratio, "")
	}
	fmt.Fprintf(w, "\n%s\n%s\n", strings.TrimRight(head, " "), strings.TrimRight(unit, " "))
	for _, st := range steps {
		b.writeRow(w, st.key, st.title)
	}
	for _, sum := range sums {
		b.writeRow(w, sum.key, sum.title)
	}
	for _, m := range b.found {
		if m.Err != "" && !m.Skip {
			fmt.Fprintf(w, "\nfailed: %s, %s: %s\n", m.Step, m.Tool, m.Err)
		}
	}
}

func (b *bench) writeRow(w io.Writer, key, title string) {
	row := fmt.Sprintf("%-*s", titleWidth, title)
	base, _ := b.find(key, b.opt.tools[0])
	for i, tool := range b.opt.tools {
		m, _ := b.find(key, tool)
		requests, wall := "", ""
		if i > 0 {
			requests = fmt.Sprintf("%*s", ratioWidth, times(float64(m.Requests), float64(base.Requests), m.Err == "" && base.Err == ""))
			wall = fmt.Sprintf("%*s", ratioWidth, times(m.Wall, base.Wall, m.Err == "" && base.Err == ""))
		}
		if m.Err != "" {
			row += fmt.Sprintf("%*s%s%*s%*s%s", countWidth, "failed", requests, bytesWidth, "", wallWidth, "", wall)
			continue
		}
		row += fmt.Sprintf("%*d%s%*.2f%*.2f%s", countWidth, m.Requests, requests, bytesWidth, float64(m.Up+m.Down)/1e6, wallWidth, m.Wall, wall)
	}
	fmt.Fprintln(w, strings.TrimRight(row, " "))
}

// times is a ratio, or nothing where there is none.
func times(v, base float64, ok bool) string {
	if !ok || base == 0 {
		return ""
	}
	return fmt.Sprintf("%.2fx", v/base)
}
