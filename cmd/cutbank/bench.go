package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync/atomic"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/bench/dedup"
	"github.com/cutbankfs/cutbank/chunkstore/chunk"
	"github.com/cutbankfs/cutbank/chunkstore/seal"
)

type dedupFlags struct {
	columns    []string
	limit      int
	noCompress bool
	plot       bool
}

func (a *app) benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "bench",
		Short:   "Measure",
		Long:    `bench measures; its subcommands say what.`,
		Example: `  cutbank bench dedup /home`,
		Args:    subcommand("dedup"),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.benchDedupCommand())
	return c
}

func (a *app) benchDedupCommand() *cobra.Command {
	var s dedupFlags
	c := &cobra.Command{
		Use:   "dedup PATH...",
		Short: "Measure how well data deduplicates, before storing it",
		Long: `dedup reads files once and cuts them in several ways side by side: for each way the
chunks, the unique bytes, what they take compressed, the ratio, and how many
bytes a second one core cuts and hashes. It needs no repository and writes
nothing.

A way is KIND:SIZE, where KIND is rabin, gear or fixed and SIZE the average. Its
memory is bounded: beyond --sample-limit distinct chunks it estimates, and shows
the standard error.`,
		Example: `  cutbank bench dedup /var/lib/postgresql
  cutbank bench dedup /home --splitter gear:16KiB --splitter gear:64KiB --splitter fixed:4MiB
  cutbank bench dedup /srv --plot
  cutbank bench dedup /srv --json`,
		Args: between(1, -1, "one PATH or more"),
		RunE: func(c *cobra.Command, args []string) error { return a.benchDedup(c.Context(), &s, args) },
	}
	f := c.Flags()
	f.StringArrayVar(&s.columns, "splitter", nil, "a way to cut, such as rabin:64KiB; repeatable (default: a choice of seven)")
	f.IntVar(&s.limit, "sample-limit", dedup.DefaultDistinct, "distinct chunks that each way remembers, about 11 bytes each")
	f.BoolVar(&s.noCompress, "no-compress", false, "do not compress: no stored bytes, but faster")
	f.BoolVar(&s.plot, "plot", false, "draw the ratios")
	return c
}

func parseColumn(s string) (dedup.Column, error) {
	kind, size, ok := strings.Cut(s, ":")
	k := chunk.SplitterKind(kind)
	n, err := parseSize(size)
	if !ok || err != nil || k != chunk.Rabin && k != chunk.Gear && k != dedup.Fixed || n > 1<<30 {
		return dedup.Column{}, usagef("--splitter %q: write it like rabin:64KiB, gear:16KiB or fixed:4MiB", s)
	}
	return dedup.Column{Kind: k, Avg: int(n)}, nil
}

func (a *app) benchDedup(ctx context.Context, s *dedupFlags, paths []string) error {
	opt := dedup.Options{Paths: paths, Distinct: s.limit, Compress: seal.Compress}
	if s.noCompress {
		opt.Compress = nil
	}
	for _, c := range s.columns {
		col, err := parseColumn(c)
		if err != nil {
			return err
		}
		opt.Columns = append(opt.Columns, col)
	}
	var files, bytes atomic.Uint64
	opt.Progress = func(f, b int64, _ string) {
		files.Store(uint64(f))
		bytes.Store(uint64(b))
	}
	stop := a.showProgress("bench dedup", func() status {
		return status{bytes.Load(), 0, countText(files.Load()) + " files"}
	}, nil)
	rep, err := dedup.Run(ctx, opt)
	stop()
	if err != nil && ctx.Err() == nil {
		return usagef("%v", err)
	}
	if err != nil {
		return err
	}
	for _, e := range rep.Errors {
		a.errorf("%s", e)
	}
	if err := a.emitReport(rep); err != nil {
		return err
	}
	if err := a.table(func(w *tabwriter.Writer) { dedupTable(w, rep) }); err != nil {
		return err
	}
	if s.plot {
		a.printf("\n%s", plotText(rep))
	}
	a.sayf("%s files, %s read in %.1fs", countText(uint64(rep.Files)), bytesText(uint64(rep.Bytes)), rep.Seconds)
	if rep.HoleBytes > 0 || rep.HardLinks > 0 {
		a.sayf("  without %s of holes and %s hard links", bytesText(uint64(rep.HoleBytes)), countText(uint64(rep.HardLinks)))
	}
	if rep.Unreadable > 0 {
		return fmt.Errorf("%d files or directories could not be read and are not in these numbers", rep.Unreadable)
	}
	return nil
}

func (a *app) emitReport(rep *dedup.Report) error {
	if !a.json {
		return nil
	}
	p, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	o := object{}
	if err := json.Unmarshal(p, &o); err != nil {
		return err
	}
	return a.emit("bench-dedup", o)
}

func dedupTable(w *tabwriter.Writer, rep *dedup.Report) {
	fmt.Fprintln(w, "SPLITTER\tCHUNKS\tUNIQUE\tUNIQUE BYTES\tZEROS\tSTORED\tDEDUP\tRATIO\tMB/S\tERROR")
	for _, c := range rep.Columns {
		stored, total, off := "-", "-", "exact"
		if c.StoredBytes > 0 {
			stored, total = bytesText(uint64(c.StoredBytes)), fmt.Sprintf("%.2f", c.Ratio)
		}
		if c.Sampled < 1 {
			off = fmt.Sprintf("%.1f%%", c.Error*100)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%s\t%.0f\t%s\n", c.Column, countText(uint64(c.Chunks)), countText(uint64(c.UniqueChunks)),
			bytesText(uint64(c.UniqueBytes)), bytesText(uint64(c.ZeroBytes)), stored, c.Dedup, total, c.MBPerSecond, off)
	}
}

// plotText draws a bar for each column: the ratio, or, where nothing was
// compressed, the deduplication.
func plotText(rep *dedup.Report) string {
	const width = 50
	value := func(c dedup.Result) float64 {
		if c.Ratio > 0 {
			return c.Ratio
		}
		return c.Dedup
	}
	most, name := 0.0, 0
	for _, c := range rep.Columns {
		most, name = max(most, value(c)), max(name, len(c.Column))
	}
	var b strings.Builder
	for _, c := range rep.Columns {
		n := 0
		if most > 0 {
			n = int(value(c)/most*width + 0.5)
		}
		fmt.Fprintf(&b, "%-*s %s %.2f\n", name, c.Column, strings.Repeat("#", n), value(c))
	}
	return b.String()
}
