package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cutbankfs/cutbank/repo"
)

// verificationStats shows what the ledger says of the packs.
func (a *app) verificationStats(ctx context.Context) error {
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	c, err := r.Coverage(ctx)
	if err != nil {
		return err
	}
	a.sayf("%s packs, %s; read by verify and proven chunk by chunk:", countText(c.Packs), bytesText(c.Bytes))
	if err := a.table(func(w *tabwriter.Writer) {
		for _, g := range c.Groups {
			share := ratio(g.Bytes, c.Bytes)
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", groupText(g.Name), barText(share, 30), percentText(share), bytesText(g.Bytes), packsText(g.Packs))
		}
	}); err != nil {
		return err
	}
	switch never := coverageGroup(c, "never"); {
	case c.Packs == 0:
	case never.Packs > 0:
		a.sayf("%s never proven: `cutbank verify --budget 1h` reads those first", packsText(never.Packs))
	case !c.Oldest.IsZero():
		a.sayf("the oldest proof is of %s", dayText(c.Oldest, now()))
	}
	if bad := coverageGroup(c, "damaged"); bad.Packs > 0 {
		a.sayf("%s found damaged: `cutbank verify` names what they are", packsText(bad.Packs))
	}
	return a.emit("verification", coverageObject(c))
}

func groupText(name string) string {
	switch name {
	case "older", "never", "damaged":
		return name
	case "1d":
		return "within a day"
	}
	return "within " + strings.TrimSuffix(name, "d") + " days"
}

func packsText(n uint64) string {
	if n == 1 {
		return "1 pack"
	}
	return countText(n) + " packs"
}

// barText draws a share as a bar, in eighths of a character. Whatever is more
// than nothing is seen.
func barText(share float64, width int) string {
	n := int(share*float64(width)*8 + 0.5)
	if share > 0 {
		n = max(n, 1)
	}
	bar := strings.Repeat("█", n/8)
	if n%8 > 0 {
		bar += string([]rune("▏▎▍▌▋▊▉")[n%8-1])
	}
	return bar + strings.Repeat("·", width-(n+7)/8)
}

// percentText rounds so that only all is 100 % and only nothing is 0 %.
func percentText(share float64) string {
	p := share * 100
	switch {
	case p > 0 && p < 0.1:
		return "< 0.1 %"
	case p > 99.9 && p < 100:
		return "> 99.9 %"
	}
	return fmt.Sprintf("%.1f %%", p)
}

// dayText tells a time and how long ago that was.
func dayText(t, at time.Time) string {
	days := int(at.Sub(t) / (24 * time.Hour))
	ago := fmt.Sprintf("%d days ago", days)
	switch {
	case days <= 0:
		ago = "less than a day ago"
	case days == 1:
		ago = "a day ago"
	}
	return t.UTC().Format(time.RFC3339) + ", " + ago
}

// coverageText sums coverage up in a line.
func coverageText(c *repo.Coverage, at time.Time) string {
	var recent uint64
	for _, name := range []string{"1d", "7d", "30d"} {
		recent += coverageGroup(c, name).Bytes
	}
	text := percentText(ratio(recent, c.Bytes)) + " of the packs' bytes were proven within 30 days"
	switch never := coverageGroup(c, "never"); {
	case never.Packs > 0:
		text += fmt.Sprintf("; %s, %s, never", packsText(never.Packs), bytesText(never.Bytes))
	case !c.Oldest.IsZero():
		text += "; the oldest proof is of " + dayText(c.Oldest, at)
	}
	return text
}

func coverageGroup(c *repo.Coverage, name string) repo.CoverageGroup {
	for _, g := range c.Groups {
		if g.Name == name {
			return g
		}
	}
	return repo.CoverageGroup{}
}

func coverageObject(c *repo.Coverage) object {
	o := object{"packs": c.Packs, "bytes": c.Bytes}
	groups := object{}
	for _, g := range c.Groups {
		groups[g.Name] = object{"packs": g.Packs, "bytes": g.Bytes}
	}
	o["groups"] = groups
	if !c.Oldest.IsZero() {
		o["oldest"] = c.Oldest.UTC()
	}
	return o
}
