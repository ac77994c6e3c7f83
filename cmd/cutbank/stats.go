package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/pack"
	"github.com/cutbankfs/cutbank/index"
	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) statsCommand() *cobra.Command {
	var freed, verification bool
	c := &cobra.Command{
		Use:   "stats [SNAPSHOT...]",
		Short: "Show sizes and ratios",
		Long: `stats shows what the repository holds: the files of all snapshots as they would be
without deduplication, the chunks that are left of them, and what these take.

For SNAPSHOTs it shows the files, what the snapshot refers to, and what no other
snapshot refers to. With --freed it shows what deleting these snapshots together
would free, which is more than the sum of what each has for itself.

With --verification it shows how many of the packs were read and proven by
verify, chunk by chunk, and how long ago.

What a chunk takes is its share of the frame that it is compressed in.`,
		Example: `  cutbank stats -r /backup
  cutbank stats -r /backup web/latest db/latest
  cutbank stats -r /backup --freed 4f3a9c 81d2aa
  cutbank stats -r /backup --verification`,
		Args: between(0, -1, "SNAPSHOTs"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case verification && len(args) > 0:
				return usagef("--verification is about packs, which snapshots share: it takes no SNAPSHOTs")
			case verification:
				return a.verificationStats(c.Context())
			case freed && len(args) == 0:
				return usagef("--freed takes the SNAPSHOTs that would be deleted")
			case len(args) >= maxGroups:
				return usagef("%d snapshots are too many at once", len(args))
			case freed:
				return a.freed(c.Context(), args)
			case len(args) > 0:
				return a.snapshotStats(c.Context(), args)
			}
			return a.repoStats(c.Context())
		},
	}
	c.Flags().BoolVar(&freed, "freed", false, "show what deleting these snapshots together would free")
	c.Flags().BoolVar(&verification, "verification", false, "show how much was proven by verify, and when")
	c.MarkFlagsMutuallyExclusive("freed", "verification")
	return c
}

// marked opens the repository and returns all snapshots and the chosen ones. A
// record that cannot be read is an error here: what it refers to would seem to
// be free.
func (a *app) marked(ctx context.Context, args []string) (r *repo.Repo, all, chosen []*repo.Snapshot, err error) {
	if r, err = a.synced(ctx); err != nil {
		return nil, nil, nil, err
	}
	if all, err = r.Snapshots(ctx); err != nil {
		return nil, nil, nil, fmt.Errorf("nobody knows what these snapshots refer to: %w", err)
	}
	chosen, err = pick(all, args)
	return r, all, chosen, err
}

func (a *app) showMarking(m *marker) func() {
	return a.showProgress("stats", func() status {
		return status{m.plain.Load(), 0, countText(m.pages.Load()) + " pages"}
	}, nil)
}

func (a *app) freed(ctx context.Context, args []string) error {
	r, all, chosen, err := a.marked(ctx, args)
	if err != nil {
		return err
	}
	m := newMarker(r, 2)
	stop := a.showMarking(m)
	for _, s := range all {
		group := uint16(0)
		if slices.Contains(chosen, s) {
			group = 1
		}
		if err = m.snapshot(ctx, s, group); err != nil {
			break
		}
	}
	stop()
	if err != nil {
		return err
	}
	free := m.alone[1]
	t, left := free.total(), m.all.total()
	left.sub(t)
	a.printf("deleting %d of %d snapshots frees %s: %s chunks and pages of %s\n", len(chosen), len(all), bytesText(t.Stored), countText(t.Chunks), bytesText(t.Plain))
	a.printf("  %s stay\n", bytesText(left.Stored))
	return a.emit("freed", object{"snapshots": len(chosen), "of": len(all), "data": free.Data.object(), "meta": free.Meta.object(), "total": t.object(), "left": left.object()})
}

func (a *app) snapshotStats(ctx context.Context, args []string) error {
	r, all, chosen, err := a.marked(ctx, args)
	if err != nil {
		return err
	}
	m := newMarker(r, len(chosen)+1)
	stop := a.showMarking(m)
	for _, s := range all {
		if err = m.snapshot(ctx, s, uint16(slices.Index(chosen, s)+1)); err != nil {
			break
		}
	}
	stop()
	if err != nil {
		return err
	}
	alone := m.alone[1:]
	refers := make([]uses, len(chosen))
	for i, s := range chosen {
		m = newMarker(r, 1) // each for itself
		if err := m.snapshot(ctx, s, 0); err != nil {
			return err
		}
		refers[i] = m.all
	}
	for i, s := range chosen {
		t := s.Totals
		if err := a.emit("snapshot-stats", object{"id": s.ID.String(), "name": s.Name, "dir": s.Dir, "files": t.Files, "dirs": t.Dirs, "nodes": t.Nodes, "bytes": t.Bytes,
			"data": refers[i].Data.object(), "meta": refers[i].Meta.object(), "alone_data": alone[i].Data.object(), "alone_meta": alone[i].Meta.object()}); err != nil {
			return err
		}
	}
	return a.table(func(w *tabwriter.Writer) {
		fmt.Fprintln(w, "ID\tNAME\tTIME\tFILES\tDIRS\tSIZE\tCHUNKS\tSTORED\tRATIO\tALONE")
		for i, s := range chosen {
			u := refers[i].total()
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%.2f\t%s\n", s.ID.String()[:8], s.Name, s.Dir, countText(s.Totals.Files), countText(s.Totals.Dirs),
				bytesText(s.Totals.Bytes), countText(u.Chunks), bytesText(u.Stored), ratio(s.Totals.Bytes, u.Stored), bytesText(alone[i].total().Stored))
		}
	})
}

// objects counts objects of a repository and their bytes.
type objects struct{ N, Bytes uint64 }

func (o *objects) add(n int64) { o.N++; o.Bytes += uint64(n) }

func (o objects) object() object { return object{"count": o.N, "bytes": o.Bytes} }

// repoSums is what a repository holds.
type repoSums struct {
	snapshots            int
	logical              uint64
	unique               uses
	copies               uint64 // stored bytes of chunks that are there more than once
	data, meta, unlisted objects
	segments, rest, all  objects
	parity               objects // of the rest
}

func (a *app) repoStats(ctx context.Context) error {
	r, err := a.synced(ctx)
	if err != nil {
		return err
	}
	snaps, damage := r.Snapshots(ctx)
	if damage != nil {
		a.warnf("%v", damage)
	}
	s := repoSums{snapshots: len(snaps)}
	for _, rec := range snaps {
		s.logical += rec.Totals.Bytes
	}
	if err := s.countObjects(ctx, r); err != nil {
		return err
	}
	if err := s.countChunks(ctx, r); err != nil {
		return err
	}
	if err := a.printRepoStats(&s); err != nil {
		return err
	}
	return damage
}

// countObjects lists the repository.
func (s *repoSums) countObjects(ctx context.Context, r *repo.Repo) error {
	for info, err := range r.Backend().List(ctx, "") {
		if err != nil {
			return err
		}
		s.all.add(info.Size)
		if name, ok := pack.ParseObject(info.Name); ok {
			p, known, err := r.Index().Pack(name)
			switch {
			case err != nil:
				return err
			case !known:
				s.unlisted.add(info.Size)
			case p.Kind == pack.Meta:
				s.meta.add(info.Size)
			default:
				s.data.add(info.Size)
			}
			continue
		}
		if _, ok := index.ParseSegmentName(info.Name); ok {
			s.segments.add(info.Size)
		} else {
			s.rest.add(info.Size)
		}
		if strings.HasPrefix(info.Name, "parity/") {
			s.parity.add(info.Size)
		}
	}
	return nil
}

// countChunks counts each chunk of each pack once.
func (s *repoSums) countChunks(ctx context.Context, r *repo.Repo) error {
	refs := newRefSet()
	return r.Index().EachPack(ctx, func(t *pack.Trailer) error {
		s.countPack(t, refs)
		return ctx.Err()
	})
}

func (s *repoSums) countPack(t *pack.Trailer, refs *refSet) {
	to := &s.unique.Data
	if t.Kind == pack.Meta {
		to = &s.unique.Meta
	}
	for i := range t.Frames {
		f := &t.Frames[i]
		for _, c := range f.Chunks {
			share := shareOf(c.Len, f.Stored, f.Plain)
			if change, _ := refs.refer(c.ID, 0); change == refNew {
				to.add(use{1, uint64(c.Len), share})
			} else {
				s.copies += share
			}
		}
	}
}

func (a *app) printRepoStats(s *repoSums) error {
	d, m := s.unique.Data, s.unique.Meta
	dedup, comp, total := ratio(s.logical, d.Plain), ratio(d.Plain, d.Stored), ratio(s.logical, s.all.Bytes)
	if err := a.table(func(w *tabwriter.Writer) {
		row := func(what string, n uint64, bytes uint64, more string) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", what, countText(n), bytesText(bytes), more)
		}
		row("snapshots", uint64(s.snapshots), s.logical, "files of all, without deduplication")
		row("chunks", d.Chunks, d.Plain, fmt.Sprintf("deduplication %.2f", dedup))
		row("  stored", d.Chunks, d.Stored, fmt.Sprintf("compression %.2f", comp))
		row("pages", m.Chunks, m.Plain, "names, attributes, recipes")
		row("  stored", m.Chunks, m.Stored, fmt.Sprintf("compression %.2f", ratio(m.Plain, m.Stored)))
		row("data packs", s.data.N, s.data.Bytes, "")
		row("meta packs", s.meta.N, s.meta.Bytes, "")
		if s.unlisted.N > 0 {
			row("unlisted packs", s.unlisted.N, s.unlisted.Bytes, "of writers at work, or interrupted")
		}
		row("index", s.segments.N, s.segments.Bytes, "")
		if s.parity.N > 0 {
			row("parity", s.parity.N, s.parity.Bytes, "of packs")
		}
		row("other objects", s.rest.N-s.parity.N, s.rest.Bytes-s.parity.Bytes, "")
		row("repository", s.all.N, s.all.Bytes, fmt.Sprintf("ratio %.2f", total))
	}); err != nil {
		return err
	}
	if s.copies > 0 {
		a.sayf("%s of chunks are stored more than once", bytesText(s.copies))
	}
	return a.emit("stats", object{"snapshots": s.snapshots, "logical": s.logical, "data": d.object(), "meta": m.object(), "copies": s.copies,
		"data_packs": s.data.object(), "meta_packs": s.meta.object(), "unlisted_packs": s.unlisted.object(), "index": s.segments.object(),
		"other": s.rest.object(), "parity": s.parity.object(), "repository": s.all.object(), "dedup_ratio": dedup, "compression_ratio": comp, "ratio": total})
}
