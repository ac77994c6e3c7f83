package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

// repairFlags are those of all ways to repair.
type repairFlags struct {
	dryRun, readData bool
	from             fromFlags
}

func (s *repairFlags) add(c *cobra.Command, packs, donors bool) {
	f := c.Flags()
	f.BoolVarP(&s.dryRun, "dry-run", "n", false, "show what would be done, and change nothing")
	if packs {
		f.BoolVar(&s.readData, "read-data", false, "read every pack to find damage, not only those that are known to have some")
	}
	if donors {
		s.from.add(c)
	}
}

func (a *app) repairCommand() *cobra.Command {
	var s repairFlags
	c := &cobra.Command{
		Use:   "repair",
		Short: "Bring back what damage has taken",
		Long: `repair brings back what can be brought back, in three steps that can be taken one
by one, too: "repair index" lists packs that the index has lost, from the packs
alone; "repair packs" stores anew what damaged packs still hold; "repair
snapshots" fetches what is lost from elsewhere, and makes a new snapshot beside
each one of which something stays lost.

What is lost can come from a second repository (--from) or from directories that
still hold the same files (--from-dir). Nothing is taken that is not exactly what
was lost. A second repository that was made with "init --like" has the same
chunks; in any other, and in directories, the files of the damaged snapshots are
looked for, at the same path.

Which packs are damaged is known from earlier runs of "verify --read-data", and
seen where packs are missing, cut short or cannot be listed. With --read-data all
are read.

Damaged marks, ledgers and records of what was forgotten can be brought back by
nothing: "repair" without a subcommand removes them, and names each. A mark may have
been a pin or a tag. A damaged record of a snapshot stays, and stops prune, until it
is given up with "forget --damaged".

After somebody has overwritten or removed objects in a bucket that locks them (init
--lock), "repair versions" puts them back; that is no part of "repair" itself.

Nothing that can be read is removed or changed. Damaged packs stay until prune,
damaged snapshots until they are forgotten. If something stays lost, the exit
code is 3.`,
		Example: `  cutbank repair -r /backup --read-data --dry-run
  cutbank repair -r /backup --read-data
  cutbank repair -r /backup --from /mnt/offsite --from-dir /
  cutbank repair index -r /backup
  cutbank repair snapshots -r /backup db/latest`,
		Args: subcommand("index, packs, snapshots or versions"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.repair(c.Context(), &s, repo.RepairOptions{Notes: true, Index: true, Packs: true, Snapshots: true}, nil)
		},
	}
	s.add(c, true, true)
	c.AddCommand(a.repairIndexCommand(), a.repairPacksCommand(), a.repairSnapshotsCommand(), a.repairVersionsCommand())
	return c
}

func (a *app) repairIndexCommand() *cobra.Command {
	var s repairFlags
	c := &cobra.Command{
		Use:   "index",
		Short: "List packs again that the index has lost",
		Long: `index reads all segments of the index, and lists every pack again that none of
them lists, by what the pack says of itself. Segments that are damaged are removed
once every pack is listed by others.`,
		Example: `  cutbank repair index -r /backup --dry-run
  cutbank repair index -r /backup`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.repair(c.Context(), &s, repo.RepairOptions{Index: true}, nil)
		},
	}
	s.add(c, false, false)
	return c
}

func (a *app) repairPacksCommand() *cobra.Command {
	var s repairFlags
	c := &cobra.Command{
		Use:   "packs",
		Short: "Store anew what damaged packs still hold",
		Long: `packs looks into every damaged pack, frame by frame, also where its beginning or
its end cannot be read, and gives each chunk that proves itself a new place. The
damaged packs stay; prune removes them once nothing in them is needed.`,
		Example: `  cutbank repair packs -r /backup --read-data --dry-run
  cutbank repair packs -r /backup`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.repair(c.Context(), &s, repo.RepairOptions{Packs: true}, nil)
		},
	}
	s.add(c, true, false)
	return c
}

func (a *app) repairSnapshotsCommand() *cobra.Command {
	var s repairFlags
	c := &cobra.Command{
		Use:   "snapshots [SNAPSHOT...]",
		Short: "Fetch what is lost from elsewhere, and do without the rest",
		Long: `snapshots walks the trees of all snapshots, or of the given ones. What no pack
holds any more is looked for in the second repository and the directories that are
named. For each snapshot of which something stays lost it makes a new one, of the
same name and time, that can be read: lost ranges of files give an I/O error, never
zeros, and directories that have lost names say so. Each lost path is printed, and
kept in the new record. The damaged snapshot stays until it is forgotten.`,
		Example: `  cutbank repair snapshots -r /backup --dry-run
  cutbank repair snapshots -r /backup --from-dir / latest
  cutbank repair snapshots -r /backup --from /mnt/offsite --from-password-file pw`,
		Args: between(0, -1, "SNAPSHOTs"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.repair(c.Context(), &s, repo.RepairOptions{Snapshots: true}, args)
		},
	}
	s.add(c, true, true)
	return c
}

func (a *app) repair(ctx context.Context, s *repairFlags, opt repo.RepairOptions, args []string) error {
	a.diskCache = 0 // what is there is to be looked at, not what was
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	if opt.Only, err = a.snapshotsNamed(ctx, r, args); err != nil {
		return err
	}
	donors, done, err := a.donors(ctx, r, &s.from)
	if err != nil {
		return err
	}
	defer done()
	var p repo.RepairProgress
	opt.DryRun, opt.ReadData, opt.Donors, opt.Progress = s.dryRun, s.readData, donors, &p
	stop := a.showProgress("repair", func() status {
		return status{p.Bytes.Load(), p.BytesTotal.Load(), fmt.Sprintf("%d of %d packs read, %d of %d snapshots walked", p.Packs.Load(), p.PacksTotal.Load(), p.Snapshots.Load(), p.SnapshotsTotal.Load())}
	}, nil)
	start := now()
	var jerr error
	res, err := r.Repair(ctx, opt, func(st repo.RepairStep) {
		if e := a.repairStep(st, s.dryRun); e != nil {
			jerr = e
		}
	})
	stop()
	if err == nil {
		err = jerr
	}
	if err != nil {
		return err
	}
	if err := a.emit("repair", object{"dry_run": s.dryRun, "notes": res.Notes, "listed": res.Listed, "segments": res.Segments, "damaged": res.Damaged, "salvaged": res.Salvaged,
		"found": res.Found, "lost": res.Lost, "snapshots": res.Snapshots, "hopeless": res.Hopeless, "seconds": now().Sub(start).Seconds()}); err != nil {
		return err
	}
	a.repairSummary(&res, &opt)
	if res.Lost > 0 || res.Hopeless > 0 {
		hint := ""
		if s.from.none() {
			hint = "; --from REPOSITORY or --from-dir DIR may still hold it"
		}
		return fmt.Errorf("something stays lost: %w%s", errDamaged, hint)
	}
	return nil
}

func (a *app) repairSummary(res *repo.RepairResult, opt *repo.RepairOptions) {
	for _, l := range []struct {
		n    uint64
		what string
	}{
		{res.Notes, "damaged marks, ledgers and forgotten records removed"}, {res.Listed, "packs listed again"}, {res.Segments, "damaged segments of the index removed"}, {res.Damaged, "damaged packs"},
		{res.Salvaged, "chunks of them stored anew"}, {res.Found, "lost chunks found elsewhere"}, {res.Lost, "chunks that stay lost"},
		{res.Snapshots, "new snapshots that do without them"}, {res.Hopeless, "snapshots of which nothing can be read"},
	} {
		if l.n > 0 {
			a.sayf("%s: %s", l.what, countText(l.n))
		}
	}
	if *res == (repo.RepairResult{}) {
		a.sayf("nothing to repair")
		if (opt.Packs || opt.Snapshots) && !opt.ReadData {
			a.sayf("  only damage that is known was looked for; --read-data reads all packs")
		}
	}
	if opt.DryRun {
		a.sayf("dry run: nothing was changed")
	}
	if res.Damaged > 0 && opt.Packs && !opt.DryRun {
		a.sayf("  the damaged packs stay until `cutbank prune`, which removes them once nothing in them is needed")
	}
	if res.Snapshots > 0 && !opt.DryRun {
		a.sayf("  the damaged ones stay until `cutbank forget`")
	}
}

// repairStep prints one step.
func (a *app) repairStep(st repo.RepairStep, dry bool) error {
	o := object{"do": st.Do}
	if st.Object != "" {
		o["object"] = st.Object
	}
	if !st.Chunk.IsZero() {
		o["chunk"], o["from"] = st.Chunk.String(), st.From
	}
	if st.Path != "" {
		o.setPath("path", st.Path)
	}
	if st.Snapshot != nil {
		o["snapshot"], o["name"], o["dir"] = st.Snapshot.ID.String(), st.Snapshot.Name, st.Snapshot.Dir
	}
	if st.New != nil {
		o["new"] = st.New.ID.String()
		if st.New.Lost != nil {
			o["lost"] = st.New.Lost
		}
	}
	for key, n := range map[string]uint64{"frames": st.Frames, "missing": st.Missing, "chunks": st.Chunks, "bytes": st.Bytes} {
		if n > 0 {
			o[key] = n
		}
	}
	if st.Err != nil {
		o["error"] = st.Err.Error()
	}
	if st.Do != repo.RepairFound || a.verbose { // one for each chunk; the sum is told
		text := repairText(st)
		if dry && slices.Contains([]string{repo.RepairListed, repo.RepairDropped, repo.RepairRemoved, repo.RepairSalvaged, repo.RepairSnapshot}, st.Do) {
			text = "would be " + text
		}
		a.printf("%s\n", text)
	}
	return a.emit("repair-step", o)
}

func repairText(st repo.RepairStep) string {
	from, why := "", ""
	if st.From != "" {
		from = ", by its " + st.From
	}
	if st.Err != nil {
		why = strings.TrimPrefix(st.Err.Error(), st.Object+": ")
	}
	switch st.Do {
	case repo.RepairListed:
		return fmt.Sprintf("listed: %s, %s chunks", st.Object, countText(st.Chunks))
	case repo.RepairDropped:
		return fmt.Sprintf("dropped: %s, which said something of others: %s", st.Object, why)
	case repo.RepairRemoved:
		return fmt.Sprintf("removed: %s, of no use any more: %s", st.Object, why)
	case repo.RepairDamaged:
		return fmt.Sprintf("damaged: %s: %s", st.Object, why)
	case repo.RepairSalvaged:
		return fmt.Sprintf("salvaged: %s: %d of %d frames, %s chunks stored anew (%s)%s; %s",
			st.Object, st.Frames, st.Frames+st.Missing, countText(st.Chunks), bytesText(st.Bytes), from, why)
	case repo.RepairHealed:
		return fmt.Sprintf("whole: %s", st.Object)
	case repo.RepairFound:
		return fmt.Sprintf("found: chunk %s in %s", st.Chunk.Short(), quote(st.From))
	case repo.RepairLost:
		return fmt.Sprintf("lost: %s -> %s: %v", quote(st.Path), snapshotName(st.Snapshot), st.Err)
	case repo.RepairHopeless:
		if st.Snapshot == nil {
			return fmt.Sprintf("hopeless: %v; if another repository has a copy of that snapshot, `cutbank copy` brings it back", st.Err)
		}
		return fmt.Sprintf("hopeless: %s: nothing of it can be read: %v", snapshotName(st.Snapshot), st.Err)
	}
	text := fmt.Sprintf("repaired: %s", snapshotName(st.Snapshot))
	if id := st.New.ID.String(); strings.Trim(id, "0") != "" {
		text += " as " + id[:8]
	}
	l := st.New.Lost
	switch {
	case l == nil || l.Files+l.Dirs+l.Xattrs == 0:
		return text + ", whole but for what the next snapshot would compare with"
	case l.Names > 0:
		return fmt.Sprintf("%s, without %s names in %s directories, and %s in %s files", text, countText(l.Names), countText(l.Dirs), bytesText(l.Bytes), countText(l.Files))
	}
	return fmt.Sprintf("%s, without %s in %s files", text, bytesText(l.Bytes), countText(l.Files))
}
