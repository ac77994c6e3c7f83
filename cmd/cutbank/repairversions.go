package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cutbankfs/cutbank/chunkstore/backend"
	"github.com/cutbankfs/cutbank/repo"
)

func (a *app) repairVersionsCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "versions",
		Short: "Put back what somebody has overwritten or removed in a bucket",
		Long: `versions is for repositories made with "init --lock", after somebody with the
credentials has overwritten objects or removed them. What was there before is kept
by the bucket, and locked: --oldest-versions reads it at once, with every command.
versions makes it what everybody sees again, so that the repository works as
before. It removes what lies over it, or, where the thief has locked that too, stores
the first version once more; nothing else is moved.

Change the credentials first, or it happens again.

What prune has removed is gone for good and does not come back. What is not locked
(who is at work, what was forgotten, what was verified) may be lost: then a snapshot
that was forgotten, but still locked, is there again; forget it again.`,
		Example: `  cutbank snapshots -r s3://bucket/backup --oldest-versions
  cutbank repair versions -r s3://bucket/backup --dry-run
  cutbank repair versions -r s3://bucket/backup
  cutbank verify -r s3://bucket/backup --read-data`,
		Args: exactly(0, "no arguments"),
		RunE: func(c *cobra.Command, _ []string) error { return a.repairVersions(c.Context(), dryRun) },
	}
	c.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "show what would be put back, and change nothing")
	return c
}

func (a *app) repairVersions(ctx context.Context, dryRun bool) error {
	a.oldest = true
	r, err := a.anyRepo(ctx)
	if err != nil {
		return err
	}
	var failed error
	res, err := r.RepairVersions(ctx, repo.VersionsOptions{DryRun: dryRun, Report: func(s repo.VersionStep) {
		fields, did := object{"object": s.Object, "bytes": s.Size, "do": "put-back", "was": "overwritten"}, "put back, it was overwritten"
		switch {
		case s.Err != nil:
			fields["do"], did = "stays", fmt.Sprintf("stays as it is: %v", s.Err)
		case s.Dropped:
			fields["do"], did = "dropped", "removed, nothing but junk is left of it"
		case s.Gone:
			fields["was"], did = "removed", "put back, it was removed"
		}
		a.sayf("%s: %s", s.Object, did)
		if err := a.emit("repair-version", fields); err != nil && failed == nil {
			failed = err
		}
	}})
	if errors.Is(err, repo.ErrNoLock) {
		return fmt.Errorf("%s: %w; --oldest-versions reads what was there", a.repoPath, err)
	}
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	would := ""
	if dryRun {
		would = "would "
	}
	a.sayf("%sput back %s objects of %s: %s had been overwritten, %s removed", would, countText(res.Overwritten+res.Gone), bytesText(res.Bytes), countText(res.Overwritten), countText(res.Gone))
	if res.Dropped > 0 {
		a.sayf("%sremove %s objects of which nothing but junk is left; they are not locked, and no file needs them", would, countText(res.Dropped))
	}
	if err := a.emit("repair-versions", object{"dry_run": dryRun, "objects": res.Objects, "overwritten": res.Overwritten, "gone": res.Gone, "bytes": res.Bytes,
		"stored": res.Stored, "junk": res.Junk, "dropped": res.Dropped, "failed": res.Failed}); err != nil {
		return err
	}
	if res.Failed > 0 {
		return errDamaged
	}
	return nil
}

// place opens the place that --repo names, as --oldest-versions says.
func (a *app) place() (backend.Backend, error) {
	b, err := a.backendAt(a.repoPath)
	if err != nil || !a.oldest {
		return b, err
	}
	old, err := repo.Oldest(b)
	if err != nil {
		return nil, usagef("--oldest-versions: %v", err)
	}
	return old, nil
}

// coveredHint tells where what a repository begins with is, if it is damaged or
// gone and there are older versions of it.
func (a *app) coveredHint(ctx context.Context, b backend.Backend) string {
	if a.oldest || !repo.Covered(ctx, b) {
		return ""
	}
	return "; older versions of it are kept there: --oldest-versions reads them, and `cutbank repair versions` puts them back"
}
