package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

type pruneFlags struct {
	dryRun, wait, discard bool
	grace                 spanFlag
	maxRepack, parity     string
}

func (a *app) pruneCommand() *cobra.Command {
	f := pruneFlags{grace: spanFlag(repo.DefaultGrace)}
	c := &cobra.Command{
		Use:   "prune",
		Short: "Remove what no snapshot needs any more",
		Long: `prune removes packs of which no snapshot needs anything. Where less than half of
some frame of a pack is needed, or where many packs are small, it copies what is
needed into new packs and removes the old ones. It runs beside snapshots, mounts,
restores, verifications and other prunes, on this machine and on others: nobody
waits for it, and nothing is locked.

A snapshot that is being made may lean on a pack that was just condemned. So prune
waits for it: what it cannot remove yet it leaves to the next run, or stays until
the snapshot is done (--wait). A writer that has given no sign of life for --grace
is declared dead: should it wake up, it fails and says so, nothing is lost, and
its next run takes over what it had stored, unless another prune comes first.
Writers give a sign of life every five minutes, or as "snapshot --heartbeat" says;
times are those of the storage, not of the writers.

--parity changes what the repository keeps from now on, 0 for none; what packs have
already stays as it is.

In a repository made with "init --no-fencing" no writer is declared dead, however
long it is silent: "cutbank unlock" is for those that are gone.

In a repository made with "init --lock" packs that are not needed any more are
removed when their locks have passed, by a later run; until then they take their
place. The locks of what is needed are lengthened where less than half is left.

prune can be interrupted at any point; the next run goes on. Two runs after the
last writer is gone leave nothing that no snapshot needs.`,
		Example: `  cutbank prune -r /backup --dry-run
  cutbank prune -r /backup
  cutbank prune -r /backup --max-repack 10GiB      # copy at most that much
  cutbank prune -r /backup --max-repack 0          # copy nothing, only remove
  cutbank prune -r /backup --parity 2%             # and from now on keep parity`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.prune(c.Context(), &f) },
	}
	fl := c.Flags()
	fl.BoolVarP(&f.dryRun, "dry-run", "n", false, "tell what would be done, and change nothing")
	fl.BoolVar(&f.wait, "wait", false, "stay until writers at work are done, rather than leave the rest to the next run")
	fl.Var(&f.grace, "grace", "declare a writer dead that was silent for so long, such as 2h or 1d")
	fl.StringVar(&f.maxRepack, "max-repack", "unlimited", "copy at most so many bytes, as a `SIZE`")
	fl.StringVar(&f.parity, "parity", "", "from now on keep so much parity for each pack, as 2%; packs that have none get it now")
	fl.BoolVar(&f.discard, "discard-damaged", false, "remove records of condemned packs that cannot be read; only while no other prune runs anywhere")
	return c
}

func (a *app) prune(ctx context.Context, f *pruneFlags) error {
	opt := repo.PruneOptions{DryRun: f.dryRun, Wait: f.wait, Grace: time.Duration(f.grace), MaxRepack: -1, DiscardDamaged: f.discard, Warnf: a.warnf, Progress: &repo.PruneProgress{}}
	if f.maxRepack != "unlimited" {
		n, err := parseSize(f.maxRepack)
		if err != nil {
			return usagef("--max-repack: %v", err)
		}
		opt.MaxRepack = n
	}
	percent, err := repo.ParseParity(f.parity)
	if err != nil {
		return usagef("--%v", err)
	}
	a.warnGrace(time.Duration(f.grace))
	a.frameCache = 24 << 20 // pages are read once, more or less in the order they lie
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	if f.parity != "" {
		if f.dryRun {
			return usagef("--parity changes the repository: leave it out of a --dry-run")
		}
		if err := r.SetParity(ctx, percent); err != nil {
			return err
		}
	}
	stop := a.showCount("prune", func() status { return pruneStatus(opt.Progress) }, func() object { return pruneFields(opt.Progress) })
	start := now()
	res, err := r.Prune(ctx, opt)
	stop()
	if err != nil && res.Total.Packs == 0 {
		return err
	}
	return errors.Join(a.pruned(&res, f.dryRun, now().Sub(start)), err)
}

// warnGrace tells what a grace does that is shorter than a few signs of life.
func (a *app) warnGrace(grace time.Duration) {
	if grace < 2*repo.DefaultHeartbeat {
		a.warnf("--grace %s: writers give a sign of life every %s, unless --heartbeat says otherwise: one that is at work can be declared dead, and has to run again", spanText(grace), spanText(repo.DefaultHeartbeat))
	}
}

// pruneFields is what --json tells of a prune beside how far it is.
func pruneFields(p *repo.PruneProgress) object {
	return object{"snapshots": p.Mark.Snapshots.Load(), "pages": p.Mark.Pages.Load(), "packs": p.Packs.Load(), "packs_total": p.PacksTotal.Load(),
		"copied": p.Copied.Load(), "removed": p.Removed.Load(), "waiting": p.Waiting.Load()}
}

// pruneStatus tells how far a prune is: first it marks snapshot by snapshot,
// then it goes through the condemned packs.
func pruneStatus(p *repo.PruneProgress) status {
	if n := p.Waiting.Load(); n > 0 {
		return status{0, 0, fmt.Sprintf("writers waited for: %d", n)}
	}
	if total := p.PacksTotal.Load(); total > 0 {
		return status{p.Packs.Load(), total, fmt.Sprintf("%d of %d packs, %s copied, %s removed", p.Packs.Load(), total, bytesText(p.Copied.Load()), bytesText(p.Removed.Load()))}
	}
	return status{p.Mark.Snapshots.Load(), p.Mark.SnapshotsTotal.Load(), fmt.Sprintf("%d snapshots, %s pages marked", p.Mark.Snapshots.Load(), countText(p.Mark.Pages.Load()))}
}

// pruned tells what was done, or would be.
func (a *app) pruned(res *repo.PruneResult, dry bool, d time.Duration) error {
	kept := res.Total.Bytes - res.Unneeded.Bytes - res.Repack.Bytes
	if err := a.table(func(w *tabwriter.Writer) {
		row := func(what string, s repo.PackSums, more string) {
			if s.Packs > 0 || what == "packs" {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", what, countText(s.Packs), bytesText(s.Bytes), more)
			}
		}
		row("packs", res.Total, fmt.Sprintf("%s snapshots need %s chunks and %s pages of them", countText(uint64(res.Snapshots)), countText(res.Chunks), countText(res.Pages)))
		row("  unneeded", res.Unneeded, "no snapshot needs anything of them")
		row("  to repack", res.Repack, fmt.Sprintf("about %s of it is needed", bytesText(res.Needed)))
		row("  too much", res.Skipped, "would be repacked too, but for --max-repack")
		row("  at work", res.AtWork, "of snapshots that are being made, or were killed; `cutbank unlock` lists them")
		if dry {
			row("  condemned", res.Left, "by an earlier run, not yet removed")
			return
		}
		row("removed", res.Removed, "")
		row("left", res.Left, "for the next run")
		row("locked", res.Locked, "removed by a later run, the last after "+lockText(res.LockedUntil))
		row("parity", res.Parity, "added to packs that had none")
	}); err != nil {
		return err
	}
	if dry {
		a.sayf("a prune would free about %s; %s stay", bytesText(res.Unneeded.Bytes+res.Repack.Bytes-min(res.Needed, res.Repack.Bytes)), bytesText(kept+res.Needed))
	} else {
		a.sayf("freed %s, copied %s, took %s", bytesText(res.Removed.Bytes-min(res.Copied, res.Removed.Bytes)), bytesText(res.Copied), durationText(d))
	}
	waiting, dead, stay := []object{}, []string{}, []string{}
	for _, w := range res.Waiting {
		waiting = append(waiting, workObject(w))
		a.sayf("  writer %s on %s, process %d, is at work, with a last sign of life at %s", w.Intent.ID.String()[:8], quote(w.Intent.Host), w.Intent.PID, w.Last.UTC().Format(time.DateTime)+"Z")
	}
	if len(waiting) > 0 {
		a.sayf("  run prune again when they are done, or with --wait")
	}
	if len(waiting) > 0 && a.open.Config().NoFencing {
		a.warnf("no writer is declared dead in this repository, made with --no-fencing: `cutbank unlock` is for those that are gone")
	}
	for _, id := range res.Dead {
		dead = append(dead, id.String())
		a.sayf("declared writer %s dead", id.String()[:8])
	}
	for name, err := range res.Stay {
		stay = append(stay, name)
		a.warnf("pack %s stays: %v", name, err)
	}
	slices.Sort(stay)
	a.tellLocks(&res.Locks)
	locked := ""
	if !res.LockedUntil.IsZero() {
		locked = res.LockedUntil.UTC().Format(time.RFC3339)
	}
	if dry && res.Homeless > 0 { // a prune that is carried out has an error for it
		a.warnf("%s chunks that snapshots need are in no pack: `cutbank verify` names the files, `cutbank repair` may bring them back", countText(res.Homeless))
	}
	sums := func(s repo.PackSums) object { return object{"packs": s.Packs, "bytes": s.Bytes} }
	return a.emit("prune", object{"dry_run": dry, "snapshots": res.Snapshots, "chunks": res.Chunks, "pages": res.Pages, "total": sums(res.Total), "unneeded": sums(res.Unneeded),
		"repack": sums(res.Repack), "skipped": sums(res.Skipped), "at_work": sums(res.AtWork), "needed": res.Needed, "copied": res.Copied, "removed": sums(res.Removed),
		"left": sums(res.Left), "locked": sums(res.Locked), "locked_until": locked, "relocked": renewed(&res.Locks), "parity": sums(res.Parity), "waiting": waiting, "dead": dead, "stay": stay, "homeless": res.Homeless, "seconds": d.Seconds()})
}

// renewed is how many locks were lengthened.
func renewed(res *repo.LockResult) (n uint64) {
	for _, k := range res.Kinds {
		n += k.Renewed
	}
	return n
}
