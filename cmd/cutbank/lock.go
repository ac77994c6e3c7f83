package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) lockCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "lock",
		Short: "Lock for longer what snapshots need, and show how long it is locked",
		Long: `lock is for repositories made with "init --lock". It lengthens the locks of all that
live snapshots need, where less than half of the time is left, so that they last
for the whole of it from now on; and shows until when what is locked. Every
"prune" does the same, and every snapshot for what it leans on: lock is for
repositories that are pruned seldom. Run one of the two at least twice in the time
of a lock.

What no snapshot needs any more, and what was forgotten, is not locked any longer.

Objects that were not locked although a snapshot needs them are named, and such
that somebody has overwritten or removed: their first version is locked on, and
"cutbank repair versions" puts it back. If there are any the exit code is 3.`,
		Example: `  cutbank lock -r s3://bucket/backup
  cutbank lock -r s3://bucket/backup --dry-run     # only show`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.lock(c.Context(), dryRun) },
	}
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "show how things are, and change nothing")
	return c
}

func (a *app) lock(ctx context.Context, dryRun bool) error {
	a.frameCache = 24 << 20 // as prune
	r, err := a.repo(ctx)
	if err != nil {
		return err
	}
	opt := repo.LockOptions{DryRun: dryRun, Progress: &repo.LockProgress{}}
	stop := a.showCount("lock", func() status {
		p := opt.Progress
		if n := p.Objects.Load(); n > 0 {
			return status{n, 0, fmt.Sprintf("%s objects, %s locked anew", countText(n), countText(p.Renewed.Load()))}
		}
		return pruneStatus(&p.Plan)
	}, func() object {
		return object{"objects": opt.Progress.Objects.Load(), "renewed": opt.Progress.Renewed.Load()}
	})
	res, err := r.KeepLocks(ctx, opt)
	stop()
	if errors.Is(err, repo.ErrNoLock) {
		return fmt.Errorf("%s: %w: it was made without `cutbank init --lock`", a.repoPath, err)
	}
	if err != nil {
		return err
	}
	cfg := r.Config()
	return a.locked(&res, cfg.LockPeriod(), dryRun)
}

// locked tells how things are locked.
func (a *app) locked(res *repo.LockResult, period time.Duration, dryRun bool) error {
	anew, kinds := "locked anew", object{}
	if dryRun {
		anew = "to be locked anew"
	}
	if err := a.table(func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "needed\tobjects\t\t%s\tlocked until at least\n", anew)
		for _, name := range slices.Sorted(maps.Keys(res.Kinds)) {
			k := res.Kinds[name]
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", name, countText(k.Objects), bytesText(k.Bytes), countText(k.Renewed), lockText(k.First))
		}
	}); err != nil {
		return err
	}
	for name, k := range res.Kinds {
		kinds[name] = object{"objects": k.Objects, "bytes": k.Bytes, "renewed": k.Renewed, "first": k.First.UTC().Format(time.RFC3339)}
	}
	a.tellLocks(res)
	guessed := ""
	if res.Guessed != nil {
		guessed = res.Guessed.Error()
	}
	if err := a.emit("lock", object{"dry_run": dryRun, "period_seconds": period.Seconds(), "kinds": kinds, "exposed": manyText(res.Exposed), "exposed_count": res.ExposedCount,
		"changed": manyText(res.Changed), "changed_count": res.ChangedCount, "guessed": guessed}); err != nil {
		return err
	}
	if res.ExposedCount+res.ChangedCount > 0 || res.Guessed != nil {
		return errExposed
	}
	return nil
}

// tellLocks warns of what lock and prune have found.
func (a *app) tellLocks(res *repo.LockResult) {
	if res.Guessed != nil {
		a.warnf("nobody knows what is needed, so every pack is taken for it: %v", res.Guessed)
	}
	if n := res.ExposedCount; n > 0 {
		a.warnf("%s objects that snapshots need were not locked (the first: %s): run prune or lock more often than every half of the lock's time", countText(n), res.Exposed[0])
	}
	if n := res.ChangedCount; n > 0 {
		a.warnf("%s objects were overwritten or removed by somebody (the first: %s): what was there before is kept and locked; --oldest-versions reads it, `cutbank repair versions` puts it back", countText(n), res.Changed[0])
	}
}

func manyText(names []string) []string { return append([]string{}, names...) }

func lockText(t time.Time) string {
	if t.IsZero() {
		return "not locked"
	}
	return t.UTC().Format(time.DateTime) + "Z"
}
